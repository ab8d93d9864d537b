import numpy as np
import pytest

from nasjax.core.types import InputError
from nasjax.data import wine

_KEY = np.random.default_rng(0)


def _write(path, label="quality", values=None, names=wine.MEASUREMENTS, cell="1.5"):
  values = [4 + i % 5 for i in range(60)] if values is None else values
  lines = [";".join((*names, label))]
  for value in values:
    cells = [f"{v:.3f}" for v in _KEY.random(len(names))]
    lines.append(";".join((*cells[:-1], cell, str(value))))
  path.write_text("\n".join(lines) + "\n")
  return path


def test_classes_are_the_surveys():
  assert wine.classes(np.arange(3, 10)).tolist() == [
    *["low"] * 3,
    *["medium"] * 2,
    *["high"] * 2,
  ]


def test_only_the_measurements_are_features(tmp_path):
  data = wine.load_csv(_write(tmp_path / "w.csv"), seed=2)
  assert data.feature_names == wine.MEASUREMENTS
  assert data.class_names == ("high", "low", "medium")
  assert (data.task, data.num_outputs) == ("multiclass", 3)
  assert len(data.warnings) == 1 and data.warnings[0].startswith("w.csv has 60 rows; ")


def test_both_files_are_one_task(shared_data):
  folder = shared_data / "wine_quality"
  uci = wine.load_csv(folder / "winequality-white.csv")
  survey = wine.load_csv(folder / "wine_3class.csv")
  assert sum(len(s.y) for s in (uci.train, uci.valid, uci.test)) == 4898
  np.testing.assert_array_equal(uci.test.y, survey.test.y)
  np.testing.assert_allclose(uci.test.x, survey.test.x, atol=1e-4)
  assert uci.warnings == survey.warnings == ()


def test_the_red_wines_are_warned_of(shared_data):
  data = wine.load_csv(shared_data / "wine_quality" / "winequality-red.csv")
  assert len(data.warnings) == 1
  assert data.warnings[0].startswith(
    "winequality-red.csv has 1599 rows, as many as the red ones; the white wines of "
    "this task are 4898"
  )


@pytest.mark.parametrize(
  "options, message",
  [
    (dict(names=wine.MEASUREMENTS[:-1]), "it lacks alcohol"),
    (dict(label="grade"), "it lacks quality"),
    (dict(cell="much"), "column 'alcohol' of .* must be numbers"),
    (dict(values=["", *[4, 6, 8] * 9]), "w.csv: .* 1 NaN or infinite values.*row 1"),
    (dict(values=[" ", *[4, 6, 8] * 9]), "w.csv: .* 1 missing values.*row 1"),
    (dict(values=["good"] * 20), "'quality' of .* must be numbers"),
    (dict(values=[5] * 20), "w.csv: the target has one class only"),
  ],
)
def test_files_that_are_not_the_task(tmp_path, options, message):
  with pytest.raises(InputError, match=message):
    wine.load_csv(_write(tmp_path / "w.csv", **options))
