"""DARTS for recurrent cells on any text file; the paper's settings are a preset.

Reproduces Liu, Simonyan and Yang (ICLR 2019), section 3.1.2: test perplexity 55.7 on
Penn Treebank (second order), of an accelerator's day. The default is a few units on
the characters of about a megabyte.

Command: python run.py --experiment=darts_text --config.data.path=FILE
The paper: --config.preset=ptb --config.data.path=ptb.train.txt
--config.data.valid_path=ptb.valid.txt --config.data.test_path=ptb.test.txt
"""

import dataclasses

from experiments import common_darts_text, common_darts_text_run
from experiments.common import replace
from experiments.common_darts_text import DropoutConfig
from nasjax.core.config import field
from nasjax.data import text
from nasjax.runtime import Run

_NO_DROPOUT = DropoutConfig(output=0.0, hidden=0.0, embedded=0.0, input=0.0)


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Which text; see `nasjax.data.text`."""

  path: str = field("", "a text file in UTF-8; its training part, with the next two")
  valid_path: str = field("", "the validation part, if it has a file of its own")
  test_path: str = field("", "the test part, likewise")
  unit: str = field("characters", "what is predicted", text.UNITS)
  valid_fraction: float = field(0.1, "of a single file, before the test part")
  test_fraction: float = field(0.1, "of a single file, its end")
  min_count: int = field(1, "what occurs less often in the training part is unknown")


@dataclasses.dataclass(frozen=True)
class Config(common_darts_text.DARTSTextConfig):
  """Configuration of `darts_text`."""

  # A small model that reads the text a few times has nothing to forget: no dropout. An
  # epoch is 40 steps here: alphas must move faster to get anywhere.
  strategy: common_darts_text.StrategyConfig = common_darts_text.StrategyConfig(
    hidden=32,
    epochs=5,
    batch_size=128,
    part=0.2,
    alpha_learning_rate=1e-2,
    dropout=_NO_DROPOUT,
  )
  retrain: common_darts_text.RetrainConfig = common_darts_text.RetrainConfig(
    hidden=64,
    epochs=6,
    batch_size=32,
    patience=2,
    dropout=_NO_DROPOUT,
  )
  data: DataConfig = DataConfig()

  def smoke(self) -> "Config":
    """The seconds-long version that the tests run end to end."""
    return replace(
      self,
      strategy={"hidden": 4, "epochs": 1, "batch_size": 4},
      retrain={"hidden": 4, "epochs": 2, "batch_size": 4},
      nodes=2,
      window=6,
      test_streams=2,
      random_cells=1,
    )


def _ptb(config: Config) -> Config:
  """The paper's settings on words: search for 50 epochs, train for 8000."""
  return replace(
    config,
    strategy=common_darts_text.StrategyConfig(),
    retrain=common_darts_text.RetrainConfig(),
    data={"unit": "words"},
  )


PRESETS = {"ptb": _ptb}


def run(config: Config, run: Run) -> None:
  """Runs the experiment."""
  common_darts_text.check(config)
  data = text.from_files(**dataclasses.asdict(config.data))
  common_darts_text_run.run_darts(config, run, data)
