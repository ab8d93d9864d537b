import numpy as np
import pytest

from nasjax.data import base, column_checks


def _target(rows, classes):
  return base.encode_target(np.random.default_rng(1).permutation(rows) % classes)


def _relabelled(target, words):
  return {"copy": np.array(list(words), object)[target.y]}, {"copy": "category"}


@pytest.mark.parametrize(
  "rows, words", [(16, "pn"), (30, "pn"), (30, [None, "n"]), (14, "abc")]
)
def test_a_relabelling_is_warned_of_in_a_small_table(rows, words):
  target = _target(rows, len(words))
  warnings = column_checks.column_warnings(*_relabelled(target, words), target)
  assert len(warnings) == 1 and "'copy' determines the target" in warnings[0]


@pytest.mark.parametrize("rows, words", [(10, "pn"), (12, "abcd"), (9, "abc")])
def test_what_chance_does_in_a_tiny_table_is_not(rows, words):
  target = _target(rows, len(words))
  assert not column_checks.column_warnings(*_relabelled(target, words), target)


def test_a_rare_flag_that_goes_with_a_rare_class_is_not():
  target = base.encode_target(np.arange(39) < 3)
  assert not column_checks.matrix_warnings(target.y[:, None], target)


@pytest.mark.parametrize("rows, classes", [(20, 2), (30, 2), (30, 3), (45, 4)])
def test_honest_columns_of_small_tables_are_left_alone(rows, classes):
  key, target = np.random.default_rng(0), _target(rows, classes)
  x = key.integers(0, classes, (rows, 500))
  # Half of them good features, right in four rows of five.
  right = (key.random(x.shape) < 0.8) & (np.arange(500) < 250)
  x = np.where(right, target.y[:, None], x)
  x[np.arange(3), :] = (target.y[:3, None] + 1) % classes
  assert column_checks.matrix_warnings(x, target) == []


def test_columns_of_many_rows_are_probed_and_then_judged_in_all():
  key, rows = np.random.default_rng(0), 5000
  target = base.encode_target(np.arange(rows) * 3 // rows)  # sorted by class
  late = target.y * 1.0
  late[-1] = 0  # the first rows do not show it
  x = [key.normal(size=rows), target.y + 0.5, np.arange(rows), late, late]
  x = np.stack(x, 1)
  x[-2:, 2] = 0
  x[:, 4] = target.y + key.random(rows) / 2
  warned = column_checks.matrix_warnings(x, target)
  assert [w.split("'")[1] for w in warned] == ["x[1]", "x[2]", "x[3]", "x[4]"]
  assert "determines" in warned[0]
  assert all("tells the classes" in w for w in warned[1:])


def test_after_twenty_warnings_the_others_are_counted():
  x = np.arange(60)[:, None] + np.arange(23)
  warnings = column_checks.matrix_warnings(x, _target(60, 2))
  assert len(warnings) == 21 and warnings[-1].startswith("3 more columns")


def test_one_column_and_columns_of_booleans():
  target = _target(30, 2)
  for y in (target.y, target.y == 0, target.y.astype(np.float32)):
    assert "'x'" in column_checks.matrix_warnings(y[:, None], target)[0]
