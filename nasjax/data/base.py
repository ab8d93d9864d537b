"""A data set: three splits, made once from the seed; `test` is never selected on."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

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
  """An encoded target: task, y `[N]` int32 (regression: float64), class names."""

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
  check_options(task)
  y = np.asarray(y)
  check_complete(y)
  numeric = y.dtype.kind in "iuf"
  if y.dtype == object:
    y = y.astype(str)  # labels of mixed kinds have no order
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
    return Target("regression", y.astype(np.float64), ())
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


def check_options(
  task: str | None, valid_fraction: float = 0.2, test_fraction: float = 0.2
) -> None:
  """Refuses an unknown task and fractions outside (0, 1).

  Raises:
    InputError: naming the option.
  """
  if task is not None and task not in get_args(TaskName):
    raise InputError(f"unknown task {task!r}; binary, multiclass or regression")
  for name, value in (("valid", valid_fraction), ("test", test_fraction)):
    if not 0 < value < 1:
      raise InputError(f"{name}_fraction must be between 0 and 1, got {value}")


def check_complete(y: np.ndarray) -> None:
  """Refuses a target with missing, NaN or infinite values.

  Args:
    y: `[N]` numbers or labels; a label of white space alone is missing.

  Raises:
    InputError: saying how many, and the first row, counted from 1.
  """
  if y.ndim != 1:
    raise InputError(f"the target must be one column, got shape {y.shape}")
  if y.dtype.kind in "iuf":
    bad, kind = np.flatnonzero(~np.isfinite(y)), "NaN or infinite"
  else:
    # A NaN among objects is the one value that differs from itself.
    bad = np.flatnonzero(
      [
        v is None or v != v or (isinstance(v, (str, bytes)) and not v.strip())
        for v in y.tolist()
      ]
    )
    kind = "missing"
  if len(bad):
    raise InputError(
      f"the target has {len(bad)} {kind} values, the first in row {bad[0] + 1}; "
      "remove these rows"
    )


class Indices(NamedTuple):
  """Row numbers of the three splits."""

  train: np.ndarray
  valid: np.ndarray
  test: np.ndarray


def split_indices(
  labels: np.ndarray | None,
  rows: int,
  *,
  seed: int,
  valid_fraction: float = 0.2,
  test_fraction: float = 0.2,
  test_mask: np.ndarray | None = None,
) -> Indices:
  """Three splits from the seed, stratified by class.

  Args:
    labels: `[N]` classes to stratify by, None for regression.
    rows: N.
    seed: draws them.
    valid_fraction: of what the test split leaves (the survey's 20 %).
    test_fraction: of all rows (the survey's 20 %).
    test_mask: `[N]` bool, an official test split, instead of `test_fraction`.

  Raises:
    InputError: fractions outside (0, 1), a mask that does not fit the rows, or splits
      too small to hold every class.
  """
  check_options(None, valid_fraction, test_fraction)

  def cut(indices, fraction):
    strata = None if labels is None else labels[indices]
    try:
      return train_test_split(
        indices, test_size=fraction, random_state=seed, stratify=strata
      )
    except ValueError as error:
      why = " ".join(str(error).split())
      raise InputError(f"the rows cannot be split: {why}") from None

  every = np.arange(rows)
  if test_mask is None:
    rest, test = cut(every, test_fraction)
  else:
    test_mask = np.asarray(test_mask).astype(bool)
    if test_mask.shape != (rows,):
      raise InputError(f"the test mask has shape {test_mask.shape}, not ({rows},)")
    rest, test = every[~test_mask], every[test_mask]
    if not len(rest) or not len(test):
      raise InputError("the test mask leaves one side without rows")
  train, valid = cut(rest, valid_fraction)
  return Indices(train, valid, test)


def build(
  name: str,
  columns: dict[str, np.ndarray],
  kinds: dict[str, str],
  target: Target,
  *,
  seed: int,
  valid_fraction: float = 0.2,
  test_fraction: float = 0.2,
  test_mask: np.ndarray | None = None,
  scaling: str = "standard",
  names: dict[str, list[str]] | None = None,
  warnings: tuple[str, ...] = (),
) -> Dataset:
  """Splits, fits the preprocessing on the train rows and applies it to all.

  Args:
    name: of the data set.
    columns: raw columns, `[N]` or `[N, M]` each.
    kinds: of each column, see `preprocessing`.
    target: the encoded target.
    seed: draws the splits, see `split_indices`.
    valid_fraction: of the rows that are not test.
    test_fraction: of all rows, unless there is a test mask.
    test_mask: `[N]` bool, an official test split.
    scaling: of numeric columns, see `preprocessing`.
    names: of the M values of a matrix column; numbered where not given.
    warnings: passed on.

  Raises:
    InputError: rows that cannot be split, or a class without a train row.
  """
  labels = None if target.task == "regression" else target.y
  indices = split_indices(
    labels,
    len(target.y),
    seed=seed,
    valid_fraction=valid_fraction,
    test_fraction=test_fraction,
    test_mask=test_mask,
  )
  if labels is not None:
    unseen = set(range(len(target.class_names))) - set(labels[indices.train].tolist())
    if unseen:
      raise InputError(f"class {target.class_names[min(unseen)]!r} has no train row")
  fitted = preprocessing.fit(
    {key: value[indices.train] for key, value in columns.items()}, kinds, scaling
  )
  for spec in fitted:
    if names and spec["name"] in names:
      spec["names"] = names[spec["name"]]
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
  class_names: Sequence[str] | None = None,
  feature_names: Sequence[str] | None = None,
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
    class_names: what to call the classes, in the sorted order of the labels.
    feature_names: one for each value of a row.

  Raises:
    InputError: what cannot be learned from, in one line.
  """
  x, y = np.asarray(x), np.asarray(y)
  mask = None
  if (x_test is None) != (y_test is None):
    raise InputError("x_test and y_test go together; one of them is missing")
  for what, array in dict(x=x, y=y, x_test=x_test, y_test=y_test).items():
    if array is not None and not np.ndim(array):
      raise InputError(f"{what} is a single value; it must hold one for every row")
  if x.size == 0 or y.size == 0:
    raise InputError(f"{name} is empty")
  if len(x) != len(y):
    raise InputError(f"x has {len(x)} rows and y has {len(y)}")
  if x_test is not None and y_test is not None:
    x_test, y_test = np.asarray(x_test), np.asarray(y_test)
    if x.shape[1:] != x_test.shape[1:]:
      raise InputError(
        f"rows of x have shape {x.shape[1:]} and those of x_test {x_test.shape[1:]}"
      )
    if len(x_test) != len(y_test):
      raise InputError(f"x_test has {len(x_test)} rows and y_test has {len(y_test)}")
    mask = np.repeat([False, True], [len(x), len(x_test)])
    x, y = np.concatenate([x, x_test]), np.concatenate([y, y_test])
  if len(x) < _MIN_ROWS:
    raise InputError(f"{name} has {len(x)} rows; at least {_MIN_ROWS} are needed")
  if x.dtype.kind not in "biuf":
    raise InputError(f"x must be numbers, it holds {x.dtype} (text?)")
  x = x.reshape(len(x), -1)
  if np.isinf(x).any():
    row, column = np.argwhere(np.isinf(x))[0]
    raise InputError(f"x is infinite in row {row + 1}, column {column + 1}")
  target = encode_target(y, task)
  if class_names is not None:
    if len(class_names) != len(target.class_names):
      raise InputError(
        f"{len(class_names)} class names for {len(target.class_names)} classes"
      )
    target = target._replace(class_names=tuple(map(str, class_names)))
  if feature_names is not None and len(feature_names) != x.shape[1]:
    raise InputError(f"{len(feature_names)} feature names for {x.shape[1]} features")
  return build(
    name,
    {"x": x},
    {"x": "numeric"},
    target,
    seed=seed,
    valid_fraction=valid_fraction,
    test_fraction=test_fraction,
    test_mask=mask,
    scaling=scaling,
    names=None if feature_names is None else {"x": [str(n) for n in feature_names]},
  )
