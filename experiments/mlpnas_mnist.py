"""MLPNAS on MNIST, the standard split: the survey's main experiment, done right.

Reproduces the survey's tables 1 to 4 (`--config.preset=table1` ... `table4`).

Command: python run.py --experiment=mlpnas_mnist
Result: seeds 0, 1 and 2 test at 0.9864, 0.9844 and 0.9833 (scikit-learn 0.9817, 0.9823,
0.9752), in 34 minutes (seed 0) without the control on one CPU core.
"""

import dataclasses

from experiments import common, common_run
from nasjax.core.config import field
from nasjax.data import tfds
from nasjax.data.base import Dataset
from nasjax.runtime import Run


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Which rows."""

  data_dir: str | None = field(None, "where TFDS keeps prepared data (its default)")
  manual_dir: str | None = field(None, "folder with the four original .gz files")
  valid_fraction: float = field(0.2, "of the 60,000 rows that are not test")


@dataclasses.dataclass(frozen=True)
class Config(common.MLPNASConfig):
  """Configuration of `mlpnas_mnist`."""

  # With 12,000 validation rows the best epoch is hardly luck, and the survey's weighted
  # mean would hold a slow start against dropout. At a constant rate the last steps are
  # noise as large as the differences between good children; at a falling one a child is
  # measured as it will be retrained.
  estimator: common.EstimatorConfig = common.EstimatorConfig(
    score="best", final_rate=0.0
  )
  data: DataConfig = DataConfig()


PRESETS = common.presets("table1", "table2", "table3", "table4")


def load(config: Config, seed: int) -> Dataset:
  """The data set of a config."""
  return tfds.load_mnist(seed=seed, **dataclasses.asdict(config.data))


def run(config: Config, run: Run) -> None:
  """Runs the experiment."""
  space = common.check(config)
  common_run.run_mlpnas(config, run, load(config, run.seed), space)
