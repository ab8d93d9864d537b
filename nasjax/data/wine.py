"""The survey's wine task: white Vinho Verde in three classes, without the leak.

Cortez et al., "Modeling wine preferences by data mining from physicochemical
properties", 2009. Quality 5 or less is `low`, 6 and 7 `medium`, 8 and more `high`. The
survey's own file kept the numeric quality and the row number among the features; only
the eleven measurements are used here.
"""

import os

import numpy as np

from nasjax.core.types import InputError
from nasjax.data import base, tabular_files

MEASUREMENTS = (
  "fixed acidity",
  "volatile acidity",
  "citric acid",
  "residual sugar",
  "chlorides",
  "free sulfur dioxide",
  "total sulfur dioxide",
  "density",
  "pH",
  "sulphates",
  "alcohol",
)
_WHITE_ROWS, _RED_ROWS = 4898, 1599


def classes(quality: np.ndarray) -> np.ndarray:
  """low, medium or high of a quality `[N]` from 0 to 10."""
  return np.select([quality <= 5, quality <= 7], ["low", "medium"], "high")


def from_measurements(
  columns: dict[str, np.ndarray],
  labels: np.ndarray,
  *,
  seed: int = 0,
  valid_fraction: float = 0.2,
  test_fraction: float = 0.2,
  warnings: tuple[str, ...] = (),
) -> base.Dataset:
  """The data set from the eleven columns `[N]` by name and the labels `[N]`.

  Raises:
    InputError: what cannot be learned from, in one line.
  """
  return base.build(
    "wine_quality",
    columns,
    {name: "numeric" for name in MEASUREMENTS},
    base.encode_target(labels, "multiclass"),
    seed=seed,
    valid_fraction=valid_fraction,
    test_fraction=test_fraction,
    warnings=warnings,
  )


def load_csv(
  path: str | os.PathLike | None,
  *,
  seed: int = 0,
  valid_fraction: float = 0.2,
  test_fraction: float = 0.2,
) -> base.Dataset:
  """The wine task from UCI's `winequality-white.csv` or the survey's three-class file.

  A file of another number of rows, such as the red wines with the same columns, is
  taken with a warning.

  Args:
    path: the file; it has the eleven measurements and `quality` or `quality_label`.
    seed: draws the splits.
    valid_fraction: of the rows that are not test.
    test_fraction: of all rows.

  Raises:
    InputError: when a column is missing or is not numbers.
  """
  base.check_options(None, valid_fraction, test_fraction)
  file = tabular_files.check_path(path)
  if file.name.endswith(".npz"):
    raise InputError(f"{file} is no wine quality file: it holds arrays")
  table = tabular_files.read_table(file)
  label = "quality_label" if "quality_label" in table.column_names else "quality"
  missing = [n for n in (*MEASUREMENTS, label) if n not in table.column_names]
  if missing:
    raise InputError(f"{file} is no wine quality file: it lacks {', '.join(missing)}")
  labels = tabular_files.target_values(table[label])
  with tabular_files.naming(file):
    base.check_complete(labels)
  columns = {}
  for name in MEASUREMENTS:
    columns[name], kind = tabular_files.column_values(table[name])
    if kind != "numeric":
      raise InputError(f"column {name!r} of {file} must be numbers, it is {kind}")
  if label == "quality":
    if labels.dtype == object:
      raise InputError(f"column 'quality' of {file} must be numbers")
    labels = classes(labels)
  with tabular_files.naming(file):
    return from_measurements(
      columns,
      labels,
      seed=seed,
      valid_fraction=valid_fraction,
      test_fraction=test_fraction,
      warnings=_other_wine(file.name, table.num_rows),
    )


def _other_wine(name: str, rows: int) -> tuple[str, ...]:
  """A warning where a file has not the rows of the task's white wines."""
  if rows == _WHITE_ROWS:
    return ()
  red = ", as many as the red ones" if rows == _RED_ROWS else ""
  return (
    f"{name} has {rows} rows{red}; the white wines of this task are {_WHITE_ROWS}, and "
    "scores on others cannot be compared",
  )
