"""What the DARTS experiments on images share: configuration and checks.

The job is in `common_darts_run`; an experiment file adds the data.
"""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Iterator

import jax
import numpy as np

from nasjax.core.config import field
from nasjax.core.types import InputError
from nasjax.networks.supernet_cnn import Form
from nasjax.spaces import base
from nasjax.spaces.conv_cell import ConvCell
from nasjax.strategies import darts
from nasjax.training.population import DTYPES

NO_SCALARS = ("epoch", "arch", "alphas")
"""What a record of an epoch has beside what is plotted over epochs."""


@dataclasses.dataclass(frozen=True)
class SupernetConfig:
  """The network that is searched; see `nasjax.networks.supernet_cnn`."""

  channels: int = field(16, "of a node in the first cells")
  layers: int = field(8, "cells")
  edges: str = field(
    "auto", "one after another, or those of a state together", ("auto", "loop", "stack")
  )
  remat: bool = field(False, "less memory for more time")
  compute_dtype: str = field("float32", "of activations", DTYPES)

  def form(self) -> Form:
    """How it is evaluated: in loops on a CPU, which is busy with one edge.

    A GPU would gain by stacking, but there XLA (jax 0.11.2, H100) aborts while it
    compiles the stacked form, see `benchmarks/RESULTS.md`.
    """
    stacked = self.edges == "stack"
    if self.edges == "auto":
      stacked = jax.default_backend() == "tpu"
    return Form(stacked, self.remat, self.compute_dtype)


@dataclasses.dataclass(frozen=True)
class StrategyConfig:
  """The two levels; see `nasjax.strategies.darts`."""

  order: str = field("2", "1, 2 (exact) or finite_difference", darts.ORDERS)
  inner_steps: int = field(1, "training steps that an architecture step looks through")
  epochs: int = field(50, "of the search")
  batch_size: int = field(64, "rows of a step, on each level")
  learning_rate: float = field(0.025, "of the weights, at the start")
  final_learning_rate: float = field(0.001, "at the end")
  momentum: float = field(0.9, "of the weights")
  weight_decay: float = field(3e-4, "of the weights")
  clip_norm: float = field(5.0, "largest norm of the weights' gradient")
  alpha_learning_rate: float = field(3e-4, "of the alphas' Adam")
  alpha_weight_decay: float = field(1e-3, "of the alphas")
  crop: int = field(4, "pixels of padding to crop from, with mirroring; 0 = off")
  stop_at_skips: int = field(
    0, "end the search once the normal cell has so many skips (DARTS+: 2); 0 = never"
  )


@dataclasses.dataclass(frozen=True)
class RetrainConfig:
  """The derived network and its training; see `nasjax.training.cells.Recipe`."""

  channels: int = field(36, "of a node in the first cells")
  layers: int = field(20, "cells")
  epochs: int = field(600, "epochs")
  batch_size: int = field(96, "rows of a step")
  learning_rate: float = field(0.025, "at the start; it falls to 0 by a cosine")
  momentum: float = field(0.9, "of SGD")
  weight_decay: float = field(3e-4, "L2")
  clip_norm: float = field(5.0, "largest norm of the gradient")
  auxiliary_weight: float = field(0.4, "of the auxiliary head's loss; 0 = no head")
  drop_path: float = field(0.2, "part of the paths dropped in the last epoch")
  crop: int = field(4, "pixels of padding to crop from, with mirroring; 0 = off")
  cutout: int = field(16, "side of the square cut out; 0 = off")
  remat: bool = field(False, "less memory for more time")
  compute_dtype: str = field("float32", "of activations", DTYPES)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Over what a batch is shared; see `nasjax.training.data_parallel`."""

  data: int | None = field(None, "devices that share a batch; none for all")


@dataclasses.dataclass(frozen=True)
class DARTSConfig:
  """Configuration of a DARTS experiment; each experiment adds its `data`."""

  supernet: SupernetConfig = SupernetConfig()
  strategy: StrategyConfig = StrategyConfig()
  retrain: RetrainConfig = RetrainConfig()
  mesh: MeshConfig = MeshConfig()
  nodes: int = field(4, "of a cell")
  genotype: str = field(
    "", "train this one, no search: DARTS_V1, DARTS_V2, a run's genotype.json, or text"
  )
  random_cells: int = field(2, "random cells trained alike, as a control; 0 = none")


@contextlib.contextmanager
def naming(flag: str) -> Iterator[None]:
  """Puts the flag before what is wrong with it."""
  try:
    yield
  except InputError as error:
    raise InputError(f"--config.{flag}: {error}") from None


def check(config: DARTSConfig) -> tuple[ConvCell, np.ndarray | None]:
  """Refuses what cannot run, before any data is read.

  Returns:
    The space, and the genotype that was given, if any.

  Raises:
    InputError: naming the flag.
  """
  positive = ("epochs", "batch_size", "learning_rate", "clip_norm")
  parts = {"strategy": ("momentum",), "retrain": ("momentum", "drop_path")}
  for section in parts:
    for name in positive:
      value = getattr(getattr(config, section), name)
      if not value > 0:
        raise InputError(f"--config.{section}.{name} must be positive, got {value}")
  for section, names in parts.items():
    for name in names:
      value = getattr(getattr(config, section), name)
      if not 0 <= value < 1:
        raise InputError(
          f"--config.{section}.{name} must be at least 0 and below 1, got {value}"
        )
  not_negative = {
    "strategy": (
      "final_learning_rate",
      "weight_decay",
      "alpha_learning_rate",
      "alpha_weight_decay",
      "crop",
      "stop_at_skips",
    ),
    "retrain": ("weight_decay", "auxiliary_weight", "crop", "cutout"),
  }
  for section, names in not_negative.items():
    for name in names:
      value = getattr(getattr(config, section), name)
      if not value >= 0:
        raise InputError(f"--config.{section}.{name} must not be negative, got {value}")
  if config.random_cells < 0:
    raise InputError(
      f"--config.random_cells must not be negative, got {config.random_cells}"
    )
  with naming("nodes"):
    space = ConvCell(config.nodes)
  with naming("genotype"):
    return space, read_genotype(config.genotype, space) if config.genotype else None


def read_genotype(text: str, space: base.Space) -> np.ndarray:
  """The genotype of `--config.genotype`."""
  if text.endswith(".json"):
    path = pathlib.Path(text)
    try:
      text = json.loads(path.read_text(encoding="utf-8"))["arch"]
    except OSError as error:
      raise InputError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
      raise InputError(f"{path} is no genotype.json of a run") from None
  return space.parse(str(text))
