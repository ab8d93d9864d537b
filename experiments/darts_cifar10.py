"""DARTS on CIFAR-10, with the paper's settings; `--config.scale=small` for a CPU.

Reproduces Liu, Simonyan and Yang (ICLR 2019), section 3: test error 2.76 % (second
order), of an accelerator's days. The small scale is a few cells of few channels on
whatever part of CIFAR-10 the file holds.

Command: python run.py --experiment=darts_cifar10 --config.data.path=cifar10.npz
"""

import dataclasses

from experiments import common_darts
from experiments.common import replace
from nasjax.core.config import field
from nasjax.data import images
from nasjax.runtime import Run


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Which rows."""

  path: str = field("", "npz with x_train, y_train, x_test and y_test")
  train_fraction: float = field(0.5, "of x_train: for the weights; else for the alphas")


@dataclasses.dataclass(frozen=True)
class Config(common_darts.DARTSConfig):
  """Configuration of `darts_cifar10`."""

  data: DataConfig = DataConfig()

  def smoke(self) -> "Config":
    """The seconds-long version that the tests run end to end."""
    return replace(
      self,
      supernet={"channels": 2, "layers": 3},
      strategy={"epochs": 1, "batch_size": 64},
      retrain={"channels": 2, "layers": 3, "epochs": 2, "batch_size": 64},
      nodes=1,
      random_cells=1,
    )


def _small(config: Config) -> Config:
  """About twenty minutes on two CPU cores and 10,000 images."""
  return replace(
    config,
    supernet={"channels": 4, "layers": 5},
    strategy={"epochs": 5, "order": "1", "alpha_learning_rate": 3e-3},
    retrain={
      "channels": 8,
      "layers": 5,
      "epochs": 10,
      "batch_size": 64,
      "drop_path": 0.0,
      "cutout": 0,
      "auxiliary_weight": 0.0,
    },
    random_cells=1,
  )


SCALES = {"small": _small}


def run(config: Config, run: Run) -> None:
  """Runs the experiment."""
  common_darts.check(config)
  data = images.from_npz(seed=run.seed, **dataclasses.asdict(config.data))
  common_darts.run_darts(config, run, data)
