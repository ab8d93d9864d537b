"""MLPNAS on who speaks, from cepstral frames: stands for the survey's 10 speakers.

Reproduces the configuration of the survey's table 5 (`--config.preset=table5`); its
recordings are not public, so the figures are of another set of speakers.

Command: python run.py --experiment=mlpnas_speakers --config.data.path=speakers.npz
Result: on six speakers of the Free Spoken Digit Dataset seed 0 tests at 0.9900, random
search at 1.0000, scikit-learn at 0.9967 (300 test rows), in 174 s on one busy CPU core.
"""

import dataclasses

from experiments import common, common_run
from nasjax.core.config import field
from nasjax.data import speakers
from nasjax.data.base import Dataset
from nasjax.runtime import Run


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Which rows."""

  path: str | None = field(None, "npz with x, n_frames, speaker and maybe is_test")
  segments: int = field(4, "spans that a recording is cut into")
  valid_fraction: float = field(0.2, "of the rows that are not test")
  test_fraction: float = field(0.2, "of all rows, without is_test")


@dataclasses.dataclass(frozen=True)
class Config(common.MLPNASConfig):
  """Configuration of `mlpnas_speakers`."""

  data: DataConfig = DataConfig()


PRESETS = common.presets("table5")


def load(config: Config, seed: int) -> Dataset:
  """The data set of a config."""
  return speakers.load(seed=seed, **dataclasses.asdict(config.data))


def run(config: Config, run: Run) -> None:
  """Runs the experiment."""
  space = common.check(config)
  common_run.run_mlpnas(config, run, load(config, run.seed), space)
