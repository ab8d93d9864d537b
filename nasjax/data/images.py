"""Images for convolutional networks: the splits of a search, as `[N, H, W, C]`."""

import dataclasses
import os

import numpy as np
from sklearn import datasets
from sklearn.model_selection import train_test_split

from nasjax.core.types import InputError
from nasjax.data import tabular_files
from nasjax.data.base import Split

_ARRAYS = ("x_train", "y_train", "x_test", "y_test")


@dataclasses.dataclass(frozen=True)
class Images:
  """A set of labelled images.

  Attributes:
    name: for the report.
    train: rows that the weights of a supernet learn from: x `[N, H, W, C]` float32,
      each channel standardised; y `[N]` int32.
    valid: rows that its alphas learn from.
    test: rows that nothing is ever selected on.
    class_names: labels in the order of the classes.
    mean: `[C]` of the training pixels, taken off x.
    std: `[C]` that x is divided by.
  """

  name: str
  train: Split
  valid: Split
  test: Split
  class_names: tuple[str, ...]
  mean: np.ndarray
  std: np.ndarray

  @property
  def shape(self) -> tuple[int, int, int]:
    """(H, W, C) of an image."""
    return self.train.x.shape[1:]

  @property
  def learned_from(self) -> Split:
    """Train and valid rows together, which a derived network is trained on."""
    return Split(
      np.concatenate([self.train.x, self.valid.x]),
      np.concatenate([self.train.y, self.valid.y]),
    )


def describe(images: Images) -> str:
  """One line: rows, size, classes."""
  splits = (("train", images.train), ("valid", images.valid), ("test", images.test))
  rows = " + ".join(f"{len(split.y):,} {name}" for name, split in splits)
  height, width, channels = images.shape
  return (
    f"{images.name}: {rows} images of {height} x {width} x {channels}, "
    f"{len(images.class_names)} classes"
  )


def make(
  name: str,
  learned_from: Split,
  test: Split,
  class_names: tuple[str, ...],
  seed: int,
  train_fraction: float,
) -> Images:
  """Splits and standardises.

  Args:
    name: of the set.
    learned_from: all rows that are not test; x `[N, H, W, C]` of any type.
    test: the others.
    class_names: labels in the order of the classes.
    seed: draws which rows are for the weights.
    train_fraction: part of the rows that is; the rest is for the alphas.

  Raises:
    InputError: a fraction outside (0, 1), or too few rows for it.
  """
  if not 0 < train_fraction < 1:
    raise InputError(
      f"--config.data.train_fraction must be between 0 and 1, got {train_fraction}"
    )
  try:
    train_rows, valid_rows = train_test_split(
      np.arange(len(learned_from.y)),
      train_size=train_fraction,
      random_state=seed,
      stratify=learned_from.y,
    )
  except ValueError as error:
    raise InputError(f"{name}: the rows cannot be split: {error}") from None
  x = np.asarray(learned_from.x, np.float32)
  mean, std = x[train_rows].mean((0, 1, 2)), x[train_rows].std((0, 1, 2))
  std = np.where(std > 0, std, 1.0).astype(np.float32)

  def standard(x: np.ndarray) -> np.ndarray:
    return (np.asarray(x, np.float32) - mean) / std

  x, y = standard(x), learned_from.y
  return Images(
    name=name,
    train=Split(x[train_rows], y[train_rows]),
    valid=Split(x[valid_rows], y[valid_rows]),
    test=Split(standard(test.x), test.y),
    class_names=class_names,
    mean=mean,
    std=std,
  )


def digits(
  *, seed: int = 0, train_fraction: float = 0.5, test_fraction: float = 0.2
) -> Images:
  """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels; embedded.

  Args:
    seed: draws the splits.
    train_fraction: part of the rows that are not test that the weights learn from.
    test_fraction: of all rows.

  Raises:
    InputError: a fraction outside (0, 1).
  """
  if not 0 < test_fraction < 1:
    raise InputError(
      f"--config.data.test_fraction must be between 0 and 1, got {test_fraction}"
    )
  bunch = datasets.load_digits()
  x, y = bunch.images[..., None], bunch.target.astype(np.int32)
  x, x_test, y, y_test = train_test_split(
    x, y, test_size=test_fraction, random_state=seed, stratify=y
  )
  names = tuple(map(str, range(10)))
  return make("digits", Split(x, y), Split(x_test, y_test), names, seed, train_fraction)


def from_npz(
  path: str | os.PathLike,
  *,
  seed: int = 0,
  train_fraction: float = 0.5,
) -> Images:
  """Images of an npz file: `x_train`, `y_train`, `x_test`, `y_test`.

  Args:
    path: the file; x `[N, H, W]` or `[N, H, W, C]` of numbers, y `[N]` of whole ones.
    seed: draws which rows are for the weights.
    train_fraction: part of the training rows that is; the rest is for the alphas.

  Raises:
    InputError: no such file, an array that is missing or of another shape, or labels
      of the test rows that no training row has.
  """
  file = tabular_files.check_path(path)
  arrays = tabular_files.read_npz(file)
  missing = [name for name in _ARRAYS if name not in arrays]
  if missing:
    raise InputError(f"{file} lacks {', '.join(missing)}")
  splits = {}
  for part in ("train", "test"):
    x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
    if x.ndim == 3:
      x = x[..., None]
    if x.ndim != 4 or x.dtype.kind not in "uif" or not len(x):
      raise InputError(
        f"{file}: x_{part} must be images [N, H, W, C] of numbers, is {x.dtype} of "
        f"shape {x.shape}"
      )
    if y.shape != x.shape[:1] or y.dtype.kind not in "ui":
      raise InputError(
        f"{file}: y_{part} must be {len(x)} whole numbers, is {y.dtype} of shape "
        f"{y.shape}"
      )
    if x.dtype.kind == "f" and not np.isfinite(x).all():
      raise InputError(f"{file}: x_{part} holds values that are not finite")
    splits[part] = x, y
  if splits["train"][0].shape[1:] != splits["test"][0].shape[1:]:
    raise InputError(f"{file}: x_train and x_test are of different sizes")
  labels = np.unique(splits["train"][1])
  if len(labels) < 2:
    raise InputError(f"{file}: y_train has one class only; nothing to learn")
  unknown = np.setdiff1d(splits["test"][1], labels)
  if len(unknown):
    raise InputError(f"{file}: y_test has label {unknown[0]}, which y_train has not")
  encoded = {
    part: Split(x, np.searchsorted(labels, y).astype(np.int32))
    for part, (x, y) in splits.items()
  }
  return make(
    file.stem,
    encoded["train"],
    encoded["test"],
    tuple(map(str, labels.tolist())),
    seed,
    train_fraction,
  )
