"""What the DARTS experiments on texts share: configuration and checks.

The job is in `common_darts_text_run`; an experiment file adds the data.
"""

import dataclasses

import numpy as np

from experiments import common_darts
from nasjax.core.config import field
from nasjax.core.types import InputError
from nasjax.spaces.recurrent_cell import RecurrentCell
from nasjax.strategies import darts


@dataclasses.dataclass(frozen=True)
class DropoutConfig:
  """Parts that are dropped; see `nasjax.networks.cell_rnn.Dropout`."""

  output: float = field(0.75, "of the cell's outputs")
  hidden: float = field(0.25, "of the states that a node's matrix reads")
  embedded: float = field(0.2, "of embedded words")
  input: float = field(0.75, "of embedded words again, where the cell reads them")
  words: float = field(0.0, "of the words of the vocabulary")


@dataclasses.dataclass(frozen=True)
class StrategyConfig:
  """The supernet and the two levels; see `nasjax.strategies.darts`."""

  hidden: int = field(300, "units of the supernet")
  order: str = field("2", "1, 2 (exact) or finite_difference", darts.ORDERS)
  epochs: int = field(50, "of the search")
  batch_size: int = field(256, "streams side by side, on each level")
  part: float = field(1.0, "of the training text that the search reads, its beginning")
  learning_rate: float = field(20.0, "of the weights' SGD")
  weight_decay: float = field(5e-7, "of the weights")
  clip_norm: float = field(0.25, "largest norm of the weights' gradient")
  inner_clip: bool = field(True, "clip also the step that alphas look through")
  slowness: float = field(1e-3, "weight of the mean squared change of states")
  alpha_learning_rate: float = field(3e-3, "of the alphas' Adam")
  alpha_decays: tuple[float, ...] = field((0.9, 0.999), "its two")
  alpha_weight_decay: float = field(1e-3, "of the alphas")
  stop_at_identities: int = field(
    0, "end the search once so many nodes only copy; 0 = never"
  )
  dropout: DropoutConfig = DropoutConfig()


@dataclasses.dataclass(frozen=True)
class RetrainConfig:
  """The derived cell and its training; see `nasjax.training.recurrent.Recipe`."""

  hidden: int = field(850, "units")
  epochs: int = field(8000, "at most")
  batch_size: int = field(64, "streams side by side")
  learning_rate: float = field(20.0, "of SGD")
  weight_decay: float = field(8e-7, "L2")
  clip_norm: float = field(0.25, "largest norm of the gradient")
  slowness: float = field(1e-3, "weight of the mean squared change of states")
  patience: int = field(5, "epochs without a lower validation loss, then average")
  dropout: DropoutConfig = DropoutConfig(words=0.1)


@dataclasses.dataclass(frozen=True)
class DARTSTextConfig:
  """Configuration of a DARTS experiment on text; an experiment adds its `data`."""

  strategy: StrategyConfig = StrategyConfig()
  retrain: RetrainConfig = RetrainConfig()
  nodes: int = field(8, "of a cell")
  window: int = field(35, "steps that are differentiated through; one in 20 is half")
  test_streams: int = field(10, "streams side by side where perplexity is measured")
  genotype: str = field(
    "", "train this one, no search: DARTS_V1, DARTS_V2, a run's genotype.json, or text"
  )
  random_cells: int = field(2, "random cells trained alike, as a control; 0 = none")


def check(config: DARTSTextConfig) -> tuple[RecurrentCell, np.ndarray | None]:
  """Refuses what cannot run, before any data is read.

  Returns:
    The space, and the genotype that was given, if any.

  Raises:
    InputError: naming the flag.
  """
  positive = ("hidden", "epochs", "batch_size", "learning_rate", "clip_norm")
  not_negative = ("weight_decay", "slowness")
  for section in ("strategy", "retrain"):
    values = getattr(config, section)
    for name in positive:
      if not getattr(values, name) > 0:
        raise InputError(
          f"--config.{section}.{name} must be positive, got {getattr(values, name)}"
        )
    for name in not_negative:
      if not getattr(values, name) >= 0:
        raise InputError(
          f"--config.{section}.{name} must not be negative, got {getattr(values, name)}"
        )
    for name, rate in dataclasses.asdict(values.dropout).items():
      if not 0 <= rate < 1:
        raise InputError(
          f"--config.{section}.dropout.{name} must be at least 0 and below 1, got "
          f"{rate}"
        )
  if not 0 < config.strategy.part <= 1:
    raise InputError(
      "--config.strategy.part must be above 0 and at most 1, got "
      f"{config.strategy.part}"
    )
  decays = config.strategy.alpha_decays
  if len(decays) != 2 or not all(0 <= decay < 1 for decay in decays):
    raise InputError(
      f"--config.strategy.alpha_decays must be two numbers in [0, 1), got {decays}"
    )
  for name in ("window", "test_streams"):
    if getattr(config, name) < 1:
      raise InputError(f"--config.{name} must be positive, got {getattr(config, name)}")
  if config.retrain.patience < 1:
    raise InputError(
      f"--config.retrain.patience must be positive, got {config.retrain.patience}"
    )
  if config.random_cells < 0:
    raise InputError(
      f"--config.random_cells must not be negative, got {config.random_cells}"
    )
  space = RecurrentCell(config.nodes)
  if not config.genotype:
    return space, None
  with common_darts.naming("genotype"):
    return space, common_darts.read_genotype(config.genotype, space)
