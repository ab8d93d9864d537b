"""Images: the embedded digits, npz files, and what is refused."""

import numpy as np
import pytest

from nasjax.core.types import InputError
from nasjax.data import images


def test_digits():
  data = images.digits(seed=1)
  assert data.shape == (8, 8, 1) and len(data.class_names) == 10
  assert [len(s.y) for s in (data.train, data.valid, data.test)] == [718, 719, 360]
  np.testing.assert_allclose(data.train.x.mean(), 0.0, atol=1e-4)
  np.testing.assert_allclose(data.train.x.std(), 1.0, atol=1e-3)
  assert len(data.learned_from.y) == 1437
  rows = [s.x.reshape(len(s.y), -1) for s in (data.train, data.valid, data.test)]
  together = np.concatenate(rows)
  assert len(np.unique(together, axis=0)) == 1797  # no row is in two splits
  assert "718 train + 719 valid + 360 test images of 8 x 8 x 1" in images.describe(data)
  other = images.digits(seed=2)
  assert (other.train.x != data.train.x).any()


def arrays(**changes):
  rng = np.random.default_rng(0)
  made = {
    "x_train": rng.integers(0, 256, (40, 5, 6, 3), np.uint8),
    "y_train": np.arange(40) % 4 + 7,
    "x_test": rng.integers(0, 256, (8, 5, 6, 3), np.uint8),
    "y_test": np.arange(8) % 4 + 7,
  }
  return {k: v for k, v in (made | changes).items() if v is not None}


def write(folder, **changes):
  path = folder / "set.npz"
  np.savez(path, **arrays(**changes))
  return path


def test_an_npz_file(tmp_path):
  data = images.from_npz(write(tmp_path), train_fraction=0.75)
  assert data.shape == (5, 6, 3) and data.class_names == ("7", "8", "9", "10")
  assert [len(s.y) for s in (data.train, data.valid, data.test)] == [30, 10, 8]
  assert data.train.y.dtype == np.int32 and set(data.train.y) == {0, 1, 2, 3}
  raw = arrays()["x_test"].astype(np.float32)
  np.testing.assert_allclose(data.test.x * data.std + data.mean, raw, atol=1e-3)
  grey = images.from_npz(
    write(tmp_path, x_train=np.ones((40, 5, 6)), x_test=np.ones((8, 5, 6)))
  )
  assert grey.shape == (5, 6, 1) and np.isfinite(grey.train.x).all()


@pytest.mark.parametrize(
  "changes, match",
  [
    ({"y_test": None}, "lacks y_test"),
    ({"x_train": np.zeros((40, 5))}, r"x_train must be images \[N, H, W, C\]"),
    ({"y_train": np.zeros(39, int)}, "y_train must be 40 whole numbers"),
    ({"y_train": np.zeros(40)}, "y_train must be 40 whole numbers"),
    ({"y_train": np.full(40, 7)}, "one class only"),
    ({"y_test": np.full(8, 3)}, "y_test has label 3, which y_train has not"),
    ({"x_test": np.zeros((8, 5, 5, 3))}, "different sizes"),
    ({"x_train": np.full((40, 5, 6, 3), np.nan)}, "not finite"),
  ],
)
def test_bad_files_are_refused(tmp_path, changes, match):
  with pytest.raises(InputError, match=match):
    images.from_npz(write(tmp_path, **changes))


def test_bad_fractions_are_refused():
  with pytest.raises(InputError, match="train_fraction must be between 0 and 1"):
    images.digits(train_fraction=1.0)
  with pytest.raises(InputError, match="test_fraction must be between 0 and 1"):
    images.digits(test_fraction=0.0)
  with pytest.raises(InputError, match="cannot be split"):
    images.digits(train_fraction=0.001)
