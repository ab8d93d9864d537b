"""A data set: three splits, made once from the seed; `test` is never selected on."""

import dataclasses
from typing import Any, Literal, NamedTuple

import numpy as np
from sklearn.model_selection import train_test_split

from nasjax.core.types import InputError
from nasjax.data import preprocessing

TaskName = Literal["binary", "multiclass", "regression"]
# A numeric target with more distinct values than this is a quantity, not a class.
_MAX_NUMERIC_CLASSES = 50
_MIN_ROWS = 10


class Split(NamedTuple):
  """Rows: x `[N, F]` float32; y `[N]` int32 classes, or float32 for regression."""

  x: np.ndarray
  y: np.ndarray


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A data set ready for training.

  Attributes:
    name: for the report.
    task: "binary", "multiclass" or "regression".
    train: search-train rows.
    valid: search-valid rows, the same for every child.
    test: rows that nothing is ever selected on.
    feature_names: `[F]`, after encoding.
    class_names: labels in the order of the classes; empty for regression.
    preprocessing: JSON values that turn a raw row into x and an output into an answer.
    warnings: what the user should know before training, one line each.
  """

  name: str
  task: TaskName
  train: Split
  valid: Split
  test: Split
  feature_names: tuple[str, ...]
  class_names: tuple[str, ...]
  preprocessing: dict[str, Any]
  warnings: tuple[str, ...] = ()

  @property
  def num_features(self) -> int:
    """F."""
    return self.train.x.shape[1]

  @property
  def num_classes(self) -> int:
    """Classes; 0 for regression."""
    return len(self.class_names)

  @property
  def num_outputs(self) -> int:
    """C: one unit for binary and regression, else one a class."""
    return self.num_classes if self.task == "multiclass" else 1


def describe(dataset: Dataset) -> str:
  """One line: rows, features, task."""
  rows = " + ".join(
    f"{len(split.y):,} {name}"
    for name, split in (
      ("train", dataset.train),
      ("valid", dataset.valid),
      ("test", dataset.test),
    )
  )
  what = f"{dataset.num_classes} classes" if dataset.num_classes else "regression"
  return f"{dataset.name}: {rows} rows, {dataset.num_features} features, {what}"


class Target(NamedTuple):
  """An encoded target: task, y `[N]`, class names."""

  task: TaskName
  y: np.ndarray
  class_names: tuple[str, ...]


def encode_target(y: np.ndarray, task: str | None = None) -> Target:
  """Finds out the task and encodes the labels by sorted order.

  Args:
    y: `[N]` numbers, strings or booleans.
    task: one of the three, or None to infer it: whole numbers with at most 50 distinct
      values, and anything that is not a number, are classes.

  Raises:
    InputError: missing or infinite values, one class only, a class with fewer than
      three rows, or a task that does not fit.
  """
  y = np.asarray(y)
  if y.ndim != 1:
    raise InputError(f"the target must be one column, got shape {y.shape}")
  numeric = np.issubdtype(y.dtype, np.number)
  if numeric:
    bad = np.flatnonzero(~np.isfinite(y.astype(np.float64)))
    kind = "NaN or infinite"
  else:
    bad = np.flatnonzero([value is None or value == "" for value in y.tolist()])
    kind = "missing"
  if len(bad):
    raise InputError(
      f"the target has {len(bad)} {kind} values, the first in row {bad[0] + 1}; "
      "remove these rows"
    )
  if task is None:
    values = np.unique(y)
    classes = not numeric or (
      len(values) <= _MAX_NUMERIC_CLASSES and np.all(values == np.round(values))
    )
    task = "multiclass" if classes else "regression"
  if task == "regression":
    if not numeric:
      raise InputError("regression needs a target of numbers, this one is text")
    if np.all(y == y[0]):
      raise InputError(f"the target is {y[0]} in every row; nothing to learn")
    return Target("regression", y.astype(np.float32), ())
  if task not in ("binary", "multiclass"):
    raise InputError(f"unknown task {task!r}; binary, multiclass or regression")
  values, encoded, counts = np.unique(y, return_inverse=True, return_counts=True)
  names = tuple(str(v.item() if hasattr(v, "item") else v) for v in values)
  if len(names) < 2:
    raise InputError(f"the target has one class only ({names[0]!r}); nothing to learn")
  if counts.min() < 3:
    rare = int(counts.argmin())
    raise InputError(
      f"class {names[rare]!r} has {counts[rare]} rows, too few for the three splits "
      f"(train, valid, test); at least 3 are needed"
    )
  if task == "binary" and len(names) > 2:
    raise InputError(f"a binary target has two classes, this one has {len(names)}")
  kind_of_task: TaskName = "binary" if len(names) == 2 else "multiclass"
  return Target(kind_of_task, encoded.astype(np.int32), names)


class Indices(NamedTuple):
  """Row numbers of the three splits."""

  train: np.ndarray
  valid: np.ndarray
  test: np.ndarray


def split_indices(
  target: Target,
  *,
  seed: int,
  valid_fraction: float = 0.2,
  test_fraction: float = 0.2,
  test_mask: np.ndarray | None = None,
) -> Indices:
  """Three splits from the seed, stratified by class.

  Args:
    target: the encoded target.
    seed: draws them.
    valid_fraction: of what the test split leaves (the survey's 20 %).
    test_fraction: of all rows (the survey's 20 %).
    test_mask: `[N]` bool, an official test split, instead of `test_fraction`.

  Raises:
    InputError: fractions outside (0, 1), or splits that cannot hold every class.
  """
  for name, value in (("valid", valid_fraction), ("test", test_fraction)):
    if not 0 < value < 1:
      raise InputError(f"{name}_fraction must be between 0 and 1, got {value}")
  rows = np.arange(len(target.y))

  def cut(rows, fraction):
    labels = None if target.task == "regression" else target.y[rows]
    try:
      return train_test_split(
        rows, test_size=fraction, random_state=seed, stratify=labels
      )
    except ValueError as error:
      raise InputError(f"the rows cannot be split: {' '.join(str(error).split())}") from None

  if test_mask is None:
    rest, test = cut(rows, test_fraction)
  else:
    test_mask = np.asarray(test_mask, bool)
    rest, test = rows[~test_mask], rows[test_mask]
    if not len(rest) or not len(test):
      raise InputError("the test mask leaves one side without rows")
  train, valid = cut(rest, valid_fraction)
  return Indices(train, valid, test)


def build(
  name: str,
  columns: dict[str, np.ndarray],
  kinds: dict[str, str],
  target: Target,
  indices: Indices,
  *,
  scaling: str = "standard",
  warnings: tuple[str, ...] = (),
) -> Dataset:
  """Fits the preprocessing on the train rows and applies it to all.

  Args:
    name: of the data set.
    columns: raw columns, `[N]` or `[N, M]` each.
    kinds: of each column, see `preprocessing`.
    target: the encoded target.
    indices: the splits.
    scaling: of numeric columns, see `preprocessing`.
    warnings: passed on.
  """
  fitted = preprocessing.fit(
    {key: value[indices.train] for key, value in columns.items()}, kinds, scaling
  )
  x = preprocessing.apply(fitted, columns)
  y = target.y
  info: dict[str, Any] = {"task": target.task, "classes": list(target.class_names)}
  if target.task == "regression":
    # Standardised, so that one learning rate serves any unit; R2 does not notice.
    mean, scale = float(y[indices.train].mean()), float(y[indices.train].std()) or 1.0
    y = ((y - mean) / scale).astype(np.float32)
    info |= {"mean": mean, "scale": scale}
  splits = {
    part: Split(np.ascontiguousarray(x[rows]), y[rows])
    for part, rows in indices._asdict().items()
  }
  return Dataset(
    name=name,
    task=target.task,
    feature_names=tuple(preprocessing.feature_names(fitted)),
    class_names=target.class_names,
    preprocessing={"features": fitted, "target": info},
    warnings=warnings,
    **splits,
  )


def from_arrays(
  x: np.ndarray,
  y: np.ndarray,
  *,
  name: str = "arrays",
  task: str | None = None,
  seed: int = 0,
  valid_fraction: float = 0.2,
  test_fraction: float = 0.2,
  x_test: np.ndarray | None = None,
  y_test: np.ndarray | None = None,
  scaling: str = "standard",
) -> Dataset:
  """A data set from arrays of one's own.

  Args:
    x: `[N, ...]` numbers; more axes are flattened. NaN is a missing value.
    y: `[N]` labels of any kind, or numbers.
    name: for the report.
    task: None infers it, see `encode_target`.
    seed: draws the splits.
    valid_fraction: of the rows that are not test.
    test_fraction: of all rows, unless the test rows are given.
    x_test: `[M, ...]` official test rows.
    y_test: `[M]` their targets.
    scaling: "standard", "minmax", "pixels" (divide by the largest value) or "none".

  Raises:
    InputError: what cannot be learned from, in one line.
  """
  x, y = np.asarray(x), np.asarray(y)
  mask = None
  if (x_test is None) != (y_test is None):
    raise InputError("x_test and y_test go together; one of them is missing")
  if x_test is not None and y_test is not None:
    x_test, y_test = np.asarray(x_test), np.asarray(y_test)
    if x.shape[1:] != x_test.shape[1:]:
      raise InputError(
        f"rows of x have shape {x.shape[1:]} and those of x_test {x_test.shape[1:]}"
      )
    mask = np.repeat([False, True], [len(x), len(x_test)])
    x, y = np.concatenate([x, x_test]), np.concatenate([y, y_test])
  if x.size == 0 or y.size == 0:
    raise InputError(f"{name} is empty")
  if len(x) != len(y):
    raise InputError(f"x has {len(x)} rows and y has {len(y)}")
  if len(x) < _MIN_ROWS:
    raise InputError(f"{name} has {len(x)} rows; at least {_MIN_ROWS} are needed")
  if not (np.issubdtype(x.dtype, np.number) or x.dtype == bool):
    raise InputError(f"x must be numbers, it holds {x.dtype} (text?)")
  x = x.reshape(len(x), -1).astype(np.float32)
  if np.isinf(x).any():
    row, column = np.argwhere(np.isinf(x))[0]
    raise InputError(f"x is infinite in row {row + 1}, column {column + 1}")
  target = encode_target(y, task)
  indices = split_indices(
    target,
    seed=seed,
    valid_fraction=valid_fraction,
    test_fraction=test_fraction,
    test_mask=mask,
  )
  return build(name, {"x": x}, {"x": "numeric"}, target, indices, scaling=scaling)
