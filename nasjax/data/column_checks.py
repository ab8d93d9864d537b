"""Columns that give the answer away or only number the rows, warned of by name."""

import math
import shlex

import numpy as np
from sklearn.metrics import balanced_accuracy_score
from sklearn.tree import DecisionTreeClassifier

from nasjax.data.base import Target

_MIN_ROWS_PER_VALUE = 20
# A shuffled column stands for the classes one to one less often than this, and each
# class has so many rows, where a small table's column is warned of.
_RELABELLING_CHANCE, _RELABELLING_ROWS = 1e-3, 4
# A column that tells the classes this well, each class counting alike, is suspicious;
# in fewer rows than this a good feature does so by chance.
_SUSPICIOUS_ACCURACY, _SUSPICIOUS_ROWS = 0.99, 50
# What is far from it in this many rows need not be looked at in all.
_PROBE_ACCURACY, _PROBE_ROWS = 0.9, 1000
_MAX_WARNINGS = 20


def column_warnings(
  columns: dict[str, np.ndarray],
  kinds: dict[str, str],
  target: Target,
  *,
  droppable: bool = True,
) -> list[str]:
  """Warnings about columns that a model should probably not see.

  Args:
    columns: `[N]` arrays by name.
    kinds: see `preprocessing`.
    target: the encoded target.
    droppable: whether `--config.data.drop` takes their names.

  Returns:
    One line each, naming the column; after 20 one line counts the others.
  """
  warnings = []
  for name, values in columns.items():
    if what := _what_is_wrong(values, kinds[name], target):
      flag = shlex.quote(f"--config.data.drop={name}")  # as a shell takes it
      remedy = f"{flag} leaves it out" if droppable else "better left out of x"
      warnings.append(f"column {name!r} {what}; {remedy}")
  more = len(warnings) - _MAX_WARNINGS
  if more > 0:
    warnings[_MAX_WARNINGS:] = [
      f"{more} more columns look like an identifier or like the label in another form"
    ]
  return warnings


def matrix_warnings(x: np.ndarray, target: Target) -> list[str]:
  """The same about the columns of x `[N, M]`, named `x[0]` and so on."""
  names = [f"x[{i}]" for i in range(x.shape[1])] if x.shape[1] > 1 else ["x"]
  x = x.astype(np.uint8) if x.dtype == bool else x
  columns = {name: x[:, i] for i, name in enumerate(names)}
  return column_warnings(
    columns, dict.fromkeys(names, "numeric"), target, droppable=False
  )


def _what_is_wrong(values: np.ndarray, kind: str, target: Target) -> str | None:
  if is_identifier(values, kind):
    return "looks like an identifier (another value in every row)"
  if duplicates_label(values, kind, target):
    return "determines the target by itself and may be the label in another form"
  if accuracy := suspicious_accuracy(values, kind, target):
    return (
      f"tells the classes by itself with balanced accuracy {accuracy:.3f} and may be "
      "the label in another form"
    )
  return None


def is_identifier(values: np.ndarray, kind: str) -> bool:
  """Whether a column is whole numbers or words that never repeat."""
  if kind == "category":
    return len(set(values.tolist())) == len(values)
  if kind != "numeric":
    return False
  for rows in (values[:_PROBE_ROWS], values):
    if np.isnan(rows).any() or np.any(rows != np.round(rows)):
      return False
    if len(np.unique(rows)) < len(rows):
      return False
  return True


def duplicates_label(values: np.ndarray, kind: str, target: Target) -> bool:
  """Whether the target follows from this column alone.

  For classes: few distinct values, each with one class only, or one value for each
  class where chance would not do it. For regression: a numeric column that is a
  straight line in the target.
  """
  if target.task == "regression":
    if kind != "numeric":
      return False
    known = ~np.isnan(values)
    if known.sum() < 3 or values[known].std() == 0:
      return False
    return bool(abs(np.corrcoef(values[known], target.y[known])[0, 1]) > 0.999)
  values = _comparable(values, kind)
  num_classes = len(target.class_names)
  for rows in (slice(_PROBE_ROWS), slice(None)):
    distinct, index = np.unique(values[rows], return_inverse=True)
    # With nearly one value a row, one class a value would mean nothing.
    few = len(distinct) * _MIN_ROWS_PER_VALUE <= len(values)
    if not few and len(distinct) > num_classes:
      return False
    counts = np.zeros((len(distinct), num_classes), int)
    np.add.at(counts, (index, target.y[rows]), 1)
    if not np.all((counts > 0).sum(1) == 1):
      return False
  return few or (len(distinct) == num_classes and _beyond_chance(counts.sum(0)))


def _beyond_chance(rows: np.ndarray) -> bool:
  """Whether classes of so many rows `[C]` are too many to be matched by chance.

  A shuffled column with the same counts matches one to one, up to the names of its
  values, with a chance of at most C! n_1! ... n_C! / N!.
  """
  chance = math.lgamma(len(rows) + 1) + sum(math.lgamma(n + 1) for n in rows)
  chance -= math.lgamma(rows.sum() + 1)
  return bool(
    rows.min() >= _RELABELLING_ROWS and chance < math.log(_RELABELLING_CHANCE)
  )


def suspicious_accuracy(values: np.ndarray, kind: str, target: Target) -> float | None:
  """How well a column tells the classes by itself, where that is almost without error.

  `duplicates_label` knows those that do so value by value; these are numbers that a
  threshold between each two classes sorts, and words that stand for the classes but
  for a few rows.
  """
  if target.task == "regression" or len(values) < _SUSPICIOUS_ROWS:
    return None
  num_classes = len(target.class_names)
  leaves = num_classes
  if kind == "category":
    words, values = np.unique(_comparable(values, kind), return_inverse=True)
    leaves = len(words)
    # With a value for every few rows anything would be told apart.
    if leaves > max(50, 5 * num_classes) or leaves * 3 > len(values):
      return None
  elif kind == "date":
    values = _comparable(values, kind)
  x = values.astype(np.float64)[:, None]
  if len(x) > 2 * _PROBE_ROWS:
    # Drawn, not the first: rows may be sorted by class.
    probe = np.random.default_rng(0).choice(len(x), _PROBE_ROWS, replace=False)
    if _accuracy_alone(x[probe], target.y[probe], leaves) < _PROBE_ACCURACY:
      return None
  accuracy = _accuracy_alone(x, target.y, leaves)
  return accuracy if accuracy > _SUSPICIOUS_ACCURACY else None


def _comparable(values: np.ndarray, kind: str) -> np.ndarray:
  """Values that have an order: a missing word is the empty one, a date its seconds."""
  if kind == "category":
    return np.array(["" if v is None else v for v in values], str)
  if kind == "date":
    return values.astype("datetime64[s]").astype(np.int64)
  return values


def _accuracy_alone(x: np.ndarray, y: np.ndarray, leaves: int) -> float:
  """Balanced accuracy of x `[N, 1]` over the rows that a tree is fitted on."""
  tree = DecisionTreeClassifier(
    max_leaf_nodes=leaves, class_weight="balanced", random_state=0
  ).fit(x, y)
  return float(balanced_accuracy_score(y, tree.predict(x)))
