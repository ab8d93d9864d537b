import zipfile

import numpy as np
import pytest

from nasjax.core.types import InputError
from nasjax.results import export

FILES = ("genotype.json", "weights.npz", "preprocessing.json")


def save(folder, **changes):
  values = {
    "genotype": [3, 1, 0],
    "arch": "256 relu - 64 tanh",
    "space": {"widths": [64, 256]},
    "task": "multiclass",
    "weights": {
      "layer_0/kernel": np.arange(6, dtype=np.float32).reshape(2, 3),
      "layer_0/bias": np.zeros(3, np.float32),
    },
    "preprocessing": {"mean": [0.5, 1.0], "columns": ["a", "b"]},
    "metrics": {"test_score": 0.9, "test_loss": float("nan")},
  } | changes
  export.save_best(folder, **values)
  return values


def test_what_is_saved_is_loaded_back(tmp_path):
  saved = save(tmp_path / "best")
  loaded = export.load_best(tmp_path / "best")
  assert sorted(p.name for p in (tmp_path / "best").iterdir()) == sorted(FILES)
  for name in ("genotype", "arch", "space", "task"):
    assert loaded.description[name] == saved[name]
  assert loaded.description["metrics"] == {"test_score": 0.9, "test_loss": None}
  assert loaded.preprocessing == saved["preprocessing"]
  assert loaded.weights.keys() == saved["weights"].keys()
  for name, value in saved["weights"].items():
    np.testing.assert_array_equal(loaded.weights[name], value)
    assert loaded.weights[name].dtype == value.dtype


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named_in_one_line(tmp_path, name):
  save(tmp_path)
  (tmp_path / name).unlink()
  with pytest.raises(InputError, match=name) as error:
    export.load_best(tmp_path)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", [b"", b"nonsense\n{"])
def test_a_damaged_file_is_an_error_of_one_line(tmp_path, name, content):
  save(tmp_path)
  (tmp_path / name).write_bytes(content)
  with pytest.raises(InputError, match="cannot be read") as error:
    export.load_best(tmp_path)
  assert "\n" not in str(error.value)


def test_pickled_weights_are_neither_written_nor_read(tmp_path):
  objects = np.array([{"a": 1}], dtype=object)
  with pytest.raises(ValueError, match="layer_0/bias"):
    save(tmp_path / "new", weights={"layer_0/bias": objects})
  assert not (tmp_path / "new").exists()
  save(tmp_path)
  np.savez(tmp_path / "weights.npz", **{"layer_0/bias": objects})
  assert zipfile.is_zipfile(tmp_path / "weights.npz")
  with pytest.raises(InputError, match="cannot be read"):
    export.load_best(tmp_path)
