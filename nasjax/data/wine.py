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
) -> base.Dataset:
  """The data set from the eleven columns `[N]` and the labels `[N]`."""
  target = base.encode_target(labels)
  indices = base.split_indices(
    target, seed=seed, valid_fraction=valid_fraction, test_fraction=test_fraction
  )
  kinds = {name: "numeric" for name in MEASUREMENTS}
  return base.build("wine_quality", columns, kinds, target, indices)


def load_csv(path: str | os.PathLike, **options) -> base.Dataset:
  """The wine task from UCI's `winequality-white.csv` or the survey's three-class file.

  Args:
    path: the file; it has the eleven measurements and `quality` or `quality_label`.
    **options: seed and fractions, see `from_measurements`.

  Raises:
    InputError: when a column is missing.
  """
  table = tabular_files.read_table(tabular_files.check_path(path))
  label = "quality_label" if "quality_label" in table.column_names else "quality"
  missing = [n for n in (*MEASUREMENTS, label) if n not in table.column_names]
  if missing:
    raise InputError(f"{path} is no wine quality file: it lacks {', '.join(missing)}")
  values = np.array(table[label].to_pylist())
  labels = classes(values) if label == "quality" else values
  columns, _, _ = tabular_files.read_columns(table.select(MEASUREMENTS), ())
  return from_measurements(columns, labels, **options)
