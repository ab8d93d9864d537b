"""Columns that give the answer away or only number the rows, warned of by name."""

import shlex

import numpy as np

from nasjax.data.base import Target

_MIN_VALUES_PER_ROWS = 20


def column_warnings(
  columns: dict[str, np.ndarray], kinds: dict[str, str], target: Target
) -> list[str]:
  """Warnings about columns that a model should probably not see.

  Args:
    columns: `[N]` arrays by name.
    kinds: see `preprocessing`.
    target: the encoded target.

  Returns:
    One line each, naming the column.
  """
  warnings = []
  for name, values in columns.items():
    if is_identifier(values, kinds[name]):
      warnings.append(
        f"column {name!r} looks like an identifier (another value in every row); "
        f"{_drop_flag(name)} leaves it out"
      )
    elif duplicates_label(values, kinds[name], target):
      warnings.append(
        f"column {name!r} determines the target by itself and may be the label in "
        f"another form; {_drop_flag(name)} leaves it out"
      )
  return warnings


def _drop_flag(name: str) -> str:
  """The flag that drops a column, as a shell takes it."""
  return shlex.quote(f"--config.data.drop={name}")


def is_identifier(values: np.ndarray, kind: str) -> bool:
  """Whether a column is whole numbers or words that never repeat."""
  if kind == "category":
    return len(set(values.tolist())) == len(values)
  if kind != "numeric" or np.isnan(values).any():
    return False
  return bool(
    np.all(values == np.round(values)) and len(np.unique(values)) == len(values)
  )


def duplicates_label(values: np.ndarray, kind: str, target: Target) -> bool:
  """Whether the target follows from this column alone.

  For classes: few distinct values, each with one class only. For regression: a
  numeric column that is a straight line in the target.
  """
  if target.task == "regression":
    if kind != "numeric":
      return False
    known = ~np.isnan(values)
    if known.sum() < 3 or values[known].std() == 0:
      return False
    return bool(abs(np.corrcoef(values[known], target.y[known])[0, 1]) > 0.999)
  if kind == "category":
    values = np.array(["" if v is None else v for v in values], str)
  elif kind == "date":
    values = values.astype("datetime64[s]").astype(np.int64)
  distinct, index = np.unique(values, return_inverse=True)
  # With nearly one value a row, one class a value would mean nothing.
  if len(distinct) * _MIN_VALUES_PER_ROWS > len(values):
    return False
  counts = np.zeros((len(distinct), len(target.class_names)), int)
  np.add.at(counts, (index, target.y), 1)
  return bool(np.all((counts > 0).sum(1) == 1))
