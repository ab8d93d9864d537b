import json
import os
import zipfile

import numpy as np
import pytest

from nasjax.core.types import InputError
from nasjax.data import benchmarks

N = 6
GENOTYPES = np.array([[1, 0], [0, 0], [0, 2], [1, 1], [0, 1], [1, 2]])
SPACE = json.dumps({"kind": "categorical", "num_choices": [2, 3]})


def made(**changes):
  """The columns of a whole table of `Categorical((2, 3))`; None takes one away."""
  row = np.arange(N)
  columns = {
    "space": np.array(SPACE),
    "genotypes": GENOTYPES,
    "epochs": np.array(10),
    "iris_valid": 50.0 + row,
    "iris_test": 40.0 + row,
    "iris_train_seconds": 100.0 + row,
    "ep2_iris_valid": 20.0 + row,
    "ep4_iris_valid": 30.0 + row,
    "ep4_iris_train_seconds": 7.0 + row,
    "iris_valid_per_seed": np.array([[1.0, np.nan, 3.0]] * N),
    "rows9_iris_valid": np.where(row == 2, np.nan, 10.0 + row),
    "rows5_iris_valid": 5.0 + row,
    "iris_params_m": 0.5 + row,
    "latency_ms_phone": np.where(row == 0, np.nan, 2.0 * row),
    "wine_valid": np.full(N, 100),  # integers are numbers
    "wine_test": np.zeros(N),
    "wine_train_seconds": np.ones(N),
  }
  columns |= changes
  return {key: value for key, value in columns.items() if value is not None}


def spoiled(key, row, value):
  """The columns with one value that is wrong."""
  values = np.array(made()[key], float)
  values[row] = value
  return {key: values}


def put(path, **changes):
  np.savez(path, **made(**changes))
  return path


def refusal(path):
  with pytest.raises(InputError) as caught:
    benchmarks.read(path)
  message = str(caught.value)
  assert path.name in message and "\n" not in message
  return message


def test_a_table_round_trips(tmp_path):
  benchmarks.write(tmp_path / "made.npz", made())
  table = benchmarks.read(tmp_path / "made.npz")
  assert table.name == "made.npz" and table.op_names == ()
  assert table.space == {"kind": "categorical", "num_choices": [2, 3]}
  np.testing.assert_array_equal(table.genotypes, GENOTYPES)
  assert table.genotypes.dtype == np.int32
  assert list(table.measured) == ["iris", "wine"]
  iris, row = table.on("iris"), np.arange(N)
  assert iris.epochs.tolist() == [2, 4, 10]
  close = dict(rtol=1e-6)
  valid = np.stack([20 + row, 30 + row, 50 + row]) / 100
  np.testing.assert_allclose(iris.valid, valid, **close)
  np.testing.assert_allclose(iris.test, (40 + row) / 100, **close)
  # Two of ten epochs have no cost of their own, four have.
  seconds = np.stack([(100 + row) * 2 / 10, 7 + row, 100 + row])
  np.testing.assert_allclose(iris.seconds, seconds, **close)
  assert iris.per_seed is not None
  np.testing.assert_allclose(iris.per_seed, [[0.01, np.nan, 0.03]] * N, **close)
  assert list(iris.fewer_rows) == [5, 9]
  assert np.flatnonzero(np.isnan(iris.fewer_rows[9])).tolist() == [2]
  assert list(iris.figures) == ["params_m"]
  np.testing.assert_allclose(table.latency["phone"], [np.nan, 2, 4, 6, 8, 10])
  wine = table.on("wine")
  assert wine.epochs.tolist() == [10] and wine.per_seed is None
  assert wine.valid.tolist() == [[1.0] * N] and wine.valid.dtype == np.float32


def test_without_a_space_it_is_nasbench201s_with_ops(tmp_path):
  ops = np.array([[0, 1, 2, 3, 4, 0], [4, 3, 2, 1, 0, 0]])
  np.savez(
    tmp_path / "n.npz",
    ops=ops,
    op_names=["a", "b"],
    edges=np.array([[0, 1], [0, 2], [1, 2], [0, 3], [1, 3], [2, 3]], np.int8),
    **{f"c_{k}": np.ones(2) for k in ("valid", "test", "train_seconds")},
  )
  table = benchmarks.read(tmp_path / "n.npz")
  assert table.space == {"kind": "nasbench201"} and table.op_names == ("a", "b")
  assert table.edges == ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
  assert table.on("c").epochs.tolist() == [200]
  np.testing.assert_array_equal(table.genotypes, ops)


@pytest.mark.parametrize(
  ("changes", "named"),
  [
    ({"genotypes": None}, ("no column genotypes",)),
    ({"iris_test": None}, ("no column iris_test",)),
    ({"iris_train_seconds": None}, ("no column iris_train_seconds",)),
    ({"iris_valid": None, "wine_valid": None}, ("no column <data>_valid",)),
    ({"genotypes": np.zeros((0, 2), int)}, ("no rows",)),
    ({"genotypes": GENOTYPES * 1.0}, ("genotypes must be integers", "float64 [6, 2]")),
    ({"genotypes": GENOTYPES[:, 0]}, ("genotypes must be integers", "[6]")),
    (
      {"genotypes": GENOTYPES + (np.arange(N) == 4)[:, None] * 2**32},
      ("genotypes", "row 4", "[4294967296, 4294967297]"),
    ),
    (
      {"genotypes": GENOTYPES[[0, 1, 2, 3, 1, 3]]},
      ("row 4", "genotype of row 1 again", "[0, 0]"),
    ),
    ({"iris_valid": np.ones(N - 1)}, ("iris_valid must be 6 numbers", "[5]")),
    ({"iris_test": np.ones((N, 1))}, ("iris_test must be 6 numbers", "[6, 1]")),
    ({"iris_test": np.array(["high"] * N)}, ("iris_test must be 6 numbers", "<U4")),
    ({"iris_valid_per_seed": np.ones(N)}, ("iris_valid_per_seed", "[6, seeds]")),
    ({"iris_valid_per_seed": np.array([["a"]] * N)}, ("iris_valid_per_seed", "<U1")),
    (spoiled("iris_valid", 3, np.nan), ("iris_valid, row 3", "nan is not a percent")),
    (spoiled("ep2_iris_valid", 1, np.nan), ("ep2_iris_valid, row 1", "nan")),
    (spoiled("iris_test", 5, np.nan), ("iris_test, row 5", "nan")),
    (spoiled("iris_test", 2, 100.5), ("iris_test, row 2: 100.5 is not a percentage",)),
    (spoiled("iris_valid", 0, -1), ("iris_valid, row 0: -1 is not a percentage",)),
    (spoiled("rows9_iris_valid", 4, 101), ("rows9_iris_valid, row 4: 101",)),
    (
      spoiled("iris_valid_per_seed", 4, [1, 101, np.nan]),
      ("iris_valid_per_seed, row 4: 101",),
    ),
    (spoiled("iris_train_seconds", 2, np.nan), ("iris_train_seconds, row 2: nan",)),
    (spoiled("iris_train_seconds", 2, np.inf), ("iris_train_seconds, row 2: inf",)),
    (spoiled("iris_train_seconds", 2, 1e39), ("iris_train_seconds, row 2: inf",)),
    (spoiled("iris_train_seconds", 1, -3), ("iris_train_seconds, row 1: -3 is not",)),
    (spoiled("ep4_iris_train_seconds", 1, np.nan), ("ep4_iris_train_seconds, row 1",)),
    (spoiled("iris_params_m", 3, np.nan), ("iris_params_m, row 3",)),
    (spoiled("latency_ms_phone", 3, np.inf), ("latency_ms_phone, row 3: inf",)),
    ({"ep10_iris_valid": np.ones(N)}, ("ep10_iris_valid is not a lower", "10 epochs")),
    ({"ep0_iris_valid": np.ones(N)}, ("ep0_iris_valid is not a lower",)),
    ({"epochs": np.array("ten")}, ("epochs must be one positive integer", "ten")),
    ({"epochs": np.array([10, 20])}, ("epochs must be one positive integer", "20")),
    ({"epochs": np.array(0)}, ("epochs must be one positive integer", "0")),
    ({"edges": np.zeros((2, 3), int)}, ("edges must be integers [2, 2]", "[2, 3]")),
    ({"edges": np.zeros((2, 2))}, ("edges must be integers [2, 2]", "float64")),
    ({"space": np.array("{kind")}, ("space must be a JSON object with a kind",)),
    ({"space": np.array("[1]")}, ("space must be a JSON object with a kind",)),
    ({"space": np.array('{"length": 2}')}, ("space must be a JSON object",)),
    ({"space": np.array('{"kind": [1]}')}, ("space must be a JSON object",)),
  ],
)
def test_a_refusal_names_file_column_and_row(tmp_path, changes, named):
  message = refusal(put(tmp_path / "bad.npz", **changes))
  for part in named:
    assert part in message
  # The same is refused before it is written, and what was there stays.
  (tmp_path / "there.npz").write_bytes(b"before")
  with pytest.raises(InputError) as caught:
    benchmarks.write(tmp_path / "there.npz", made(**changes))
  assert str(caught.value) == message.replace("bad.npz", "there.npz")
  assert (tmp_path / "there.npz").read_bytes() == b"before"
  assert sorted(os.listdir(tmp_path)) == ["bad.npz", "there.npz"]


class Runs:
  """Makes a folder when it is unpickled."""

  def __init__(self, folder):
    self._folder = str(folder)

  def __reduce__(self):
    return os.mkdir, (self._folder,)


def test_nothing_pickled_runs(tmp_path):
  ran = tmp_path / "ran"
  objects = np.array([Runs(ran)] * N, dtype=object)
  message = refusal(put(tmp_path / "p.npz", iris_test=objects))
  assert "not an npz file of arrays" in message
  with pytest.raises(InputError, match="not an npz file of arrays"):
    benchmarks.write(tmp_path / "w.npz", made(iris_test=objects))
  np.save(tmp_path / "o.npz.npy", objects)
  refusal((tmp_path / "o.npz.npy").rename(tmp_path / "o.npz"))
  assert not ran.exists()
  np.load(tmp_path / "p.npz", allow_pickle=True)["iris_test"]
  assert ran.exists()  # it would have run


def test_what_is_no_npz_file_is_refused(tmp_path):
  whole = put(tmp_path / "whole.npz").read_bytes()
  for name, content in {
    "text.npz": b"genotype,valid\n1,2\n",
    "empty.npz": b"",
    "half.npz": whole[: len(whole) // 2],
    "flipped.npz": whole[:400] + bytes(200) + whole[600:],
  }.items():
    (tmp_path / name).write_bytes(content)
    assert "not an npz file of arrays" in refusal(tmp_path / name)
  np.save(tmp_path / "one.npy", np.ones(3))
  assert "it is one array" in refusal(tmp_path / "one.npy")
  assert "no table at" in refusal(tmp_path / "absent.npz")
  refusal(tmp_path)


def test_a_member_that_is_no_array_is_refused(tmp_path):
  path = put(tmp_path / "extra.npz")
  with zipfile.ZipFile(path, "a") as file:
    file.writestr("notes.txt", "hello")
  assert "notes.txt is something else" in refusal(path)


def test_a_table_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
  path = tmp_path / "made.npz"
  benchmarks.write(path, made())
  before = path.read_bytes()

  def fails(*_):
    raise OSError("disk full")

  monkeypatch.setattr(benchmarks.os, "replace", fails)
  with pytest.raises(OSError, match="disk full"):
    benchmarks.write(path, made(iris_test=np.zeros(N)))
  assert path.read_bytes() == before and os.listdir(tmp_path) == ["made.npz"]
  with pytest.raises(InputError, match="no folder"):
    benchmarks.write(tmp_path / "nowhere" / "made.npz", made())


def test_an_unknown_name_lists_those_there_are(tmp_path):
  table = benchmarks.read(put(tmp_path / "made.npz"))
  with pytest.raises(InputError, match="no data set 'beer'; it has iris, wine"):
    table.on("beer")
  with pytest.raises(InputError, match="'beer'; there are mlp_digits"):
    benchmarks.embedded("beer")


def test_nasbench201(shared_data):
  table = benchmarks.read(shared_data / "nasbench201" / "nasbench201.npz")
  assert list(table.measured) == ["cifar10", "cifar100", "imagenet16"]
  assert table.genotypes.shape == (15_625, 6)
  assert table.op_names[0] == "none" and len(table.op_names) == 5
  # Row 0 of the authors' numbering, as their record has it.
  assert table.genotypes[0].tolist() == [4, 2, 1, 2, 1, 1]
  for name, valid, test, seconds in (
    ("cifar10", [0.63364, 0.819827], 0.858633, [86.65311, 1444.2186]),
    ("cifar100", [0.3184, 0.527], 0.529133, [173.30623, 2888.4373]),
    ("imagenet16", [0.184667, 0.282111], 0.266333, [525.8111, 8763.519]),
  ):
    measured = table.on(name)
    assert measured.epochs.tolist() == [12, 200]
    np.testing.assert_allclose(measured.valid[:, 0], valid, atol=1e-6)
    np.testing.assert_allclose(measured.test[0], test, atol=1e-6)
    np.testing.assert_allclose(measured.seconds[:, 0], seconds, rtol=1e-6)
  cifar10 = table.on("cifar10")
  assert cifar10.test.max() == pytest.approx(0.9437, abs=5e-5)
