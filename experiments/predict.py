"""Predictions of a saved model for new rows, as CSV; no search and no run directory.

The rows are raw, as the model's were (CSV, Parquet or npz). Columns are read as what
they were in training; those that the model does not know are ignored, and one that is
missing, or has a value that is none of its kind, is refused by name. Missing values are
filled and flagged as in training. A category that training has not seen is all zeros,
with a warning, or is refused.

Command: python run.py --experiment=predict --config.model=runs/x/best \
           --config.data.path=new.csv --config.output=predictions.csv
         (--overwrite replaces an output that is there)
Result: a row for each row, in their order: the prediction, and for classes the
  probability of each. `best/predict.py` does the same with NumPy alone.
"""

import dataclasses
import sys

import numpy as np

from nasjax.core.config import field
from nasjax.core.types import InputError
from nasjax.data import preprocessing, standalone, tabular_files
from nasjax.runtime import Run
from nasjax.training import portable

KEEPS_RUN = False  # nothing is written but the output


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Which rows."""

  path: str | None = field(None, "the file of new rows: CSV, Parquet or npz")


@dataclasses.dataclass(frozen=True)
class Config:
  """Configuration of `predict`."""

  model: str | None = field(None, "the folder `best` of a run")
  data: DataConfig = DataConfig()
  output: str = field("predictions.csv", "the file to write")
  unseen: str = field(
    "zeros", "what a category not seen in training is", ("zeros", "refuse")
  )

  def smoke(self) -> "Config":
    """The same: it takes seconds as it is."""
    return self


def run(config: Config, run: Run) -> None:
  """Runs the experiment; it does not begin the run, whose directory stays untouched."""
  if not config.model:
    raise InputError("which model? --config.model=runs/NAME/best")
  model, program = portable.load(config.model)
  rows = tabular_files.check_path(config.data.path)
  try:
    standalone.check_output(config.output, rows, run.overwrite)
  except ValueError as error:
    raise InputError(str(error)) from None
  columns = tabular_files.read_columns(rows, model.features)
  x = preprocessing.apply(model.features, columns)
  strange = standalone.unseen(model.features, columns)
  if strange and config.unseen == "refuse":
    raise InputError(f"{rows}: {'; '.join(strange)}")
  answers = np.asarray(program(x))
  standalone.write(config.output, standalone.table(model.target, answers))
  if not len(x):
    print(f"warning: {rows} has no rows", file=sys.stderr)
  for line in strange:
    print(f"warning: {line}: no category (all zeros)", file=sys.stderr)
  print(f"{config.output}: predictions for {len(x):,} rows by {config.model}")
