"""DARTS on CIFAR-10, with the paper's settings; `--config.scale=small` for a CPU.

Reproduces Liu, Simonyan and Yang (ICLR 2019), section 3: test error 2.76 % (second
order), of an accelerator's days. The small scale is a few cells of few channels on
whatever part of CIFAR-10 the file holds.

Command: python run.py --experiment=darts_cifar10
"""

import dataclasses

from experiments import common_darts, common_darts_run
from experiments.common import replace
from nasjax.core.config import field
from nasjax.core.types import InputError
from nasjax.data import images, tfds
from nasjax.data.images import Images
from nasjax.runtime import Run


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Which rows."""

  path: str = field(
    "", "npz with x_train, y_train, x_test and y_test; without it CIFAR-10 by TFDS"
  )
  data_dir: str | None = field(None, "where TFDS keeps prepared data (its default)")
  manual_dir: str | None = field(None, "folder with the original archive, for TFDS")
  train_fraction: float = field(
    0.5, "of the rows that are not test, for the weights; the rest for the alphas"
  )


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
      "epochs": 7,
      "batch_size": 64,
      "drop_path": 0.0,
      "cutout": 0,
      "auxiliary_weight": 0.0,
    },
    random_cells=1,
  )


SCALES = {"small": _small}


def load(data: DataConfig, seed: int) -> Images:
  """The file of the user, or CIFAR-10.

  Raises:
    InputError: both are asked for, or what is asked for is not there.
  """
  if not data.path:
    options = dataclasses.asdict(data)
    del options["path"]
    return tfds.load_cifar10(seed=seed, **options)
  if data.data_dir or data.manual_dir:
    raise InputError(
      "--config.data.path is a file of yours; leave --config.data.data_dir and "
      "--config.data.manual_dir, which are for TFDS, out"
    )
  return images.from_npz(data.path, seed=seed, train_fraction=data.train_fraction)


def run(config: Config, run: Run) -> None:
  """Runs the experiment."""
  common_darts.check(config)
  data = load(config.data, run.seed)
  common_darts_run.run_darts(config, run, data)
