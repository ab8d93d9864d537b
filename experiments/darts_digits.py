"""DARTS on scikit-learn's handwritten digits: embedded, real, no download.

Reproduces the method of Liu, Simonyan and Yang (ICLR 2019), second order and exact,
with a small supernet on 1,797 images of 8 x 8 pixels.

Command: python run.py --experiment=darts_digits
Result: over seeds 0 to 4 the derived cells test at 0.9894, ten random cells at 0.9917,
in 4 to 7 minutes a seed on two busy CPU cores with two random cells each.
"""

import dataclasses

from experiments import common_darts, common_darts_run
from experiments.common import replace
from nasjax.core.config import field
from nasjax.data import images
from nasjax.runtime import Run


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Which rows."""

  train_fraction: float = field(0.5, "of the rows that are not test: for the weights")
  test_fraction: float = field(0.2, "of all rows")


@dataclasses.dataclass(frozen=True)
class Config(common_darts.DARTSConfig):
  """Configuration of `darts_digits`."""

  supernet: common_darts.SupernetConfig = common_darts.SupernetConfig(8, 5)
  # An epoch is 11 steps here, 390 on CIFAR-10: alphas must move faster to get anywhere.
  strategy: common_darts.StrategyConfig = common_darts.StrategyConfig(
    epochs=30, alpha_learning_rate=3e-3, crop=0
  )
  # After two reductions 2 x 2 pixels are left: no auxiliary head. Digits are not to be
  # mirrored, and a hole of 16 pixels would be larger than the image.
  retrain: common_darts.RetrainConfig = common_darts.RetrainConfig(
    channels=16,
    layers=5,
    epochs=30,
    batch_size=64,
    auxiliary_weight=0.0,
    drop_path=0.0,
    crop=0,
    cutout=0,
  )
  data: DataConfig = DataConfig()

  def smoke(self) -> "Config":
    """The seconds-long version that the tests run end to end."""
    return replace(
      self,
      supernet={"channels": 2, "layers": 3},
      strategy={"epochs": 1, "batch_size": 256},
      retrain={"channels": 2, "layers": 3, "epochs": 2, "batch_size": 256},
      nodes=1,
      random_cells=1,
    )


def run(config: Config, run: Run) -> None:
  """Runs the experiment."""
  common_darts.check(config)
  data = images.digits(seed=run.seed, **dataclasses.asdict(config.data))
  common_darts_run.run_darts(config, run, data)
