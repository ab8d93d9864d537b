"""What the MLPNAS experiments share: configuration, presets and the whole job.

MLPNAS is the survey's system (sections 4 and 5): an LSTM controller trained by
REINFORCE writes multi-layer perceptrons, every child is really trained, and the best is
retrained from scratch and tested once. An experiment file adds the data.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

from experiments.common_ray import RayConfig
from nasjax import runtime
from nasjax.core.config import field
from nasjax.core.types import InputError
from nasjax.estimators.trained import trained
from nasjax.parallel import ray_cluster
from nasjax.spaces.mlp_chain import ACTIVATIONS, MLPChain
from nasjax.strategies.base import Strategy
from nasjax.strategies.random_search import random_search
from nasjax.strategies.reinforce import reinforce
from nasjax.training import rungs as rungs_lib
from nasjax.training.kept_children import KeptChildren
from nasjax.training.losses import get_task
from nasjax.training.packing import LAYOUTS
from nasjax.training.population import DTYPES, device_data, population_trainer
from nasjax.training.profile import DEVICES
from nasjax.training.ray_trainer import ray_trainer
from nasjax.training.team_trainer import serve as team_serve
from nasjax.training.team_trainer import team_trainer


@dataclasses.dataclass(frozen=True)
class SpaceConfig:
  """The search space; see `nasjax.spaces.mlp_chain`."""

  widths: tuple[int, ...] = field((8, 16, 32, 64, 128, 256, 512), "units of a layer")
  activations: tuple[str, ...] = field(ACTIVATIONS, "activation functions")
  dropout_rate: float = field(0.2, "rate of a dropout layer; 0 leaves it out")
  max_layers: int = field(10, "longest chain, output layer included")
  prior: str = field(
    "depth", "what is uniform before anything is learned", ("depth", "token")
  )
  dropout_prior: float = field(0.25, "share of dropout among later layers (depth)")


@dataclasses.dataclass(frozen=True)
class StrategyConfig:
  """The controller; see `nasjax.strategies.reinforce`."""

  rounds: int = field(10, "rounds of sampling, training and learning")
  population: int = field(10, "children of a round")
  max_seconds: float | None = field(
    None, "seconds of search after which no round begins; none for all rounds"
  )
  hidden: int = field(128, "units of the controller's LSTM")
  learning_rate: float = field(0.01, "of the controller's Adam")
  learning_rate_decay: float = field(0.1, "update i uses rate / (1 + decay * i)")
  clip_norm: float = field(1.0, "largest global norm of a gradient")
  updates: int = field(10, "gradient steps on each round's children")
  baseline_decay: float = field(0.9, "of the moving-average baseline")
  fixed_baseline: float | None = field(None, "the survey's 0.5 instead of the average")
  utility: str = field("rank", "what is rewarded", ("rank", "score"))
  discount: float = field(1.0, "per decision, counted from the sequence's end")
  entropy: float = field(0.0, "weight of the entropy bonus")
  predictor: float = field(1.0, "weight of the accuracy predictor's loss; 0 = none")
  adversarial: float = field(0.0, "reward for what the predictor misjudges; 0 = off")


@dataclasses.dataclass(frozen=True)
class EstimatorConfig:
  """How a child is trained and scored; see `nasjax.estimators.trained`."""

  epochs: int = field(10, "epochs of a child, at most")
  batch_size: int = field(32, "rows of a step")
  learning_rate: float = field(1e-3, "of the child's Adam")
  final_rate: float = field(1.0, "part of the rate that is left at the last epoch")
  patience: int = field(3, "epochs without a lower validation loss before it stops")
  score: str = field(
    "weighted", "which epochs' validation metric", ("weighted", "best", "last")
  )
  one_shot: str = field(
    "off", "share weights by bigram, which writer wins", ("off", "last", "best")
  )
  rungs: tuple[int, ...] = field(
    (), "epochs after which only the best 1 / eta go on, the last = epochs; empty = off"
  )
  eta: int = field(3, "one of so many children goes on at a rung")
  halving: str = field(
    "successive", "rungs: one bracket a round, or Hyperband's", rungs_lib.KINDS
  )
  layout: str = field("auto", "how a population is compiled", LAYOUTS)
  memory_limit_gb: float | None = field(
    None, "of a vmapped population on each device; none for free", matters=False
  )
  device: str = field(
    "measured", "what plans suppose: this device, or one by name", DEVICES
  )
  compute_dtype: str = field("float32", "of activations and gradients", DTYPES)
  workers: str = field("here", "who trains children", ("here", "ray"))


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Over what a vmapped population is sharded; see `nasjax.training.population`."""

  population: int | None = field(
    None, "devices that share a population; none for all", matters=False
  )


@dataclasses.dataclass(frozen=True)
class RetrainConfig:
  """The winner's training; see `nasjax.training.retrain`."""

  epochs: int = field(50, "epochs, at most")
  batch_size: int = field(64, "rows of a step")
  learning_rate: float = field(1e-3, "of Adam")
  refit: bool = field(True, "learn from train and valid rows for all epochs")
  patience: int = field(6, "without refit: epochs without a better one before it stops")
  monitor: str = field(
    "metric", "without refit: what decides which is better", ("metric", "loss")
  )
  stop_fraction: float = field(0.1, "without refit: part of the rows that decides")
  label_smoothing: float = field(0.1, "part of a label spread over all classes")


@dataclasses.dataclass(frozen=True)
class MLPNASConfig:
  """Configuration of an MLPNAS experiment; each experiment adds its `data`."""

  space: SpaceConfig = SpaceConfig()
  strategy: StrategyConfig = StrategyConfig()
  estimator: EstimatorConfig = EstimatorConfig()
  retrain: RetrainConfig = RetrainConfig()
  mesh: MeshConfig = MeshConfig()
  ray: RayConfig = RayConfig()
  control: bool = field(True, "random search at the same budget, as a control")
  baseline: bool = field(True, "scikit-learn's MLP on the same splits, as a baseline")
  distributed: str = field(
    "off",
    "several processes: auto (TPU slice, SLURM, Open MPI), or HOST:PORT,COUNT,NUMBER",
    matters=False,
  )
  heartbeat_seconds: int = field(
    60,
    "silence after which a process counts as lost and ends the others",
    matters=False,
  )
  keep_seconds: float = field(
    1.0,
    "children whose training took as long are kept as soon as they are done",
    matters=False,
  )
  max_failures: int = field(
    30, "children that fail in a row before a search stops with what it has; 0 = never"
  )
  published: str = field("", "the survey's table beside ours; a preset sets it")

  def smoke(self) -> "MLPNASConfig":
    """The seconds-long version that the tests run end to end."""
    return replace(
      self,
      space={"widths": (8, 16), "max_layers": 3},
      strategy={"rounds": 2, "population": 2, "hidden": 8},
      estimator={"epochs": 2},
      retrain={"epochs": 3},
    )


def replace(config: Any, **sections: Any) -> Any:
  """A config with fields replaced; a dict replaces fields inside a section."""
  changed = {
    name: dataclasses.replace(getattr(config, name), **value)
    if isinstance(value, dict)
    else value
    for name, value in sections.items()
  }
  return dataclasses.replace(config, **changed)


def check(config: MLPNASConfig) -> MLPChain:
  """Refuses what cannot run, before any data is read; builds the space.

  Raises:
    InputError: naming the flag.
  """
  positive = {
    "strategy": (
      "rounds",
      "population",
      "hidden",
      "updates",
      "learning_rate",
      "clip_norm",
    ),
    "estimator": ("epochs", "batch_size", "patience", "learning_rate"),
    "retrain": ("epochs", "batch_size", "patience", "learning_rate"),
  }
  for section, names in positive.items():
    for name in names:
      value = getattr(getattr(config, section), name)
      if not value > 0:
        raise InputError(f"--config.{section}.{name} must be positive, got {value}")
  parts = {  # between 0 and 1, both allowed
    "strategy": ("baseline_decay", "discount"),
    "estimator": ("final_rate",),
  }
  not_negative = ("entropy", "predictor", "adversarial", "learning_rate_decay")
  for section, names in parts.items():
    for name in names:
      value = getattr(getattr(config, section), name)
      if not 0 <= value <= 1:
        raise InputError(
          f"--config.{section}.{name} must be between 0 and 1, got {value}"
        )
  for name in not_negative:
    value = getattr(config.strategy, name)
    if not value >= 0:
      raise InputError(f"--config.strategy.{name} must not be negative, got {value}")
  if config.published and config.published not in PUBLISHED:
    raise InputError(
      f"--config.published must be one of {', '.join(PUBLISHED)}, got "
      f"{config.published!r}"
    )
  seconds = config.strategy.max_seconds
  if seconds is not None and not seconds > 0:
    raise InputError(f"--config.strategy.max_seconds must be positive, got {seconds}")
  if config.distributed != "off" and config.estimator.workers != "here":
    raise InputError("--config.distributed is not for --config.estimator.workers=ray")
  if not config.keep_seconds >= 0:
    raise InputError(
      f"--config.keep_seconds must not be negative, got {config.keep_seconds}"
    )
  if config.heartbeat_seconds < 1:
    raise InputError(
      f"--config.heartbeat_seconds must be positive, got {config.heartbeat_seconds}"
    )
  limit = config.estimator.memory_limit_gb
  if limit is not None and not limit > 0:
    raise InputError(
      f"--config.estimator.memory_limit_gb must be positive, got {limit}"
    )
  if config.estimator.rungs:
    rungs_lib.begin(
      config.estimator.rungs,
      config.estimator.eta,
      config.estimator.epochs,
      name="--config.estimator.rungs",
    )
  elif config.estimator.halving == "hyperband":
    raise InputError(
      "--config.estimator.halving=hyperband needs --config.estimator.rungs, such as "
      f"1,3,{max(config.estimator.epochs, 4)}"
    )
  if not 0 < config.retrain.stop_fraction < 1:
    raise InputError(
      "--config.retrain.stop_fraction must be between 0 and 1, got "
      f"{config.retrain.stop_fraction}"
    )
  if not 0 <= config.retrain.label_smoothing < 1:
    raise InputError(
      "--config.retrain.label_smoothing must be at least 0 and below 1, got "
      f"{config.retrain.label_smoothing}"
    )
  return MLPChain(**dataclasses.asdict(config.space))


def make_controller(config: MLPNASConfig, space: MLPChain) -> Strategy:
  """The strategy of the config."""
  options = dataclasses.asdict(config.strategy)
  budget = options.pop("rounds") * options["population"]
  del options["max_seconds"]  # the loop's
  return reinforce(space, max_evaluations=budget, **options)


def make_control(config: MLPNASConfig, space: MLPChain) -> Strategy:
  """Random search with the same budget."""
  strategy = config.strategy
  return random_search(
    space,
    population=strategy.population,
    max_evaluations=strategy.rounds * strategy.population,
  )


def make_estimator(
  config: MLPNASConfig,
  space: MLPChain,
  dataset,
  ray: Any = None,
  team: Any = None,
  identity: str = "",
  kept: KeptChildren | None = None,
  **callbacks,
):
  """The estimator of the config, with the callbacks of `estimators.trained`.

  Args:
    config: of the job.
    space: of the genotypes.
    dataset: the splits.
    ray: the connected module, where Ray's workers train the children.
    team: the processes, where several train the children.
    identity: of the job, where they do; see `serve`.
    kept: where this process keeps the children that it has trained.
    **callbacks: `on_child`, `on_plan` and `log`.
  """
  options = dataclasses.asdict(config.estimator)
  trainer: Any = functools.partial(population_trainer, kept=kept)
  if options.pop("workers") == "ray":
    each = config.ray.options()
    trainer = functools.partial(ray_trainer, ray, task_options=each)
  if team:
    trainer = functools.partial(
      team_trainer,
      team,
      identity=identity,
      wants_weights=config.estimator.one_shot != "off",
      kept=kept,
    )
  callbacks["trainer"] = trainer
  return trained(
    space, dataset, num_devices=config.mesh.population, **options, **callbacks
  )


def serve(
  config: MLPNASConfig,
  space: MLPChain,
  dataset,
  team: Any,
  identity: str,
  kept: KeptChildren,
) -> None:
  """Trains what process 0 sends, with the options of `make_estimator`.

  Args:
    config: of the job.
    space: of the genotypes.
    dataset: the splits.
    team: the processes, of which this is not the first.
    identity: of the job.
    kept: where this process keeps the children that it has trained.

  Raises:
    InputError: process 0 has another job, or other rows.
  """
  options = config.estimator
  team_serve(
    team,
    space,
    get_task(dataset.task),
    device_data(dataset.train, dataset.valid),
    dataset.num_outputs,
    epochs=options.epochs,
    batch_size=options.batch_size,
    identity=identity,
    layout=options.layout,
    num_devices=config.mesh.population,
    memory_limit_gb=options.memory_limit_gb,
    compute_dtype=options.compute_dtype,
    kept=kept,
  )


@contextlib.contextmanager
def workers(config: MLPNASConfig) -> Iterator[Any]:
  """The module `ray`, connected, if Ray's workers train the children; else None.

  Raises:
    InputError: Ray is not there, or has no room for a child.
  """
  config.ray.check()
  if config.estimator.workers == "here":
    yield None
    return
  variables = runtime.compilation_cache_variables()
  with ray_cluster.connected(config.ray.address, variables) as ray:
    config.ray.check_room(ray)
    yield ray


# The survey's six configurations (its tables 1 to 6) and what it printed for them.
_SURVEY = {
  "table1": dict(one_shot="off", predictor=0.0),
  "table2": dict(one_shot="off", predictor=1.0),
  "table3": dict(one_shot="last", predictor=1.0),
  "table4": dict(one_shot="last", predictor=1.0, rounds=15, population=30),
  "table5": dict(one_shot="last", predictor=1.0),
  "table6": dict(one_shot="last", predictor=1.0, hidden=512),
}

_WIDE_WINE = (
  "512 sigmoid - 512 relu - dropout 0.2 - 512 relu - 256 elu - 256 elu - 256 tanh - "
  "512 elu - 256 elu"
)
_DEEP_MNIST = (
  "128 elu - 64 relu - 64 relu - 32 relu - 512 sigmoid - 64 tanh - 64 relu - 32 relu - "
  "256 relu"
)
_SPEAKERS_A = (
  "64 elu - 32 relu - 16 tanh - 512 relu - 32 elu - 16 sigmoid - 64 elu - 16 elu - "
  "512 relu"
)
_SPEAKERS_B = (
  "128 elu - 64 elu - 32 relu - 128 sigmoid - 32 relu - 8 elu - 32 relu - 16 elu - "
  "32 tanh"
)
_LEAK = "scored with the label among the features; majority class alone: 0.628"

# (architecture, validation accuracy, test accuracy, note), as printed there.
PUBLISHED: dict[str, list[tuple[str, float | None, float | None, str]]] = {
  "table1": [
    ("scikit-learn MLP", None, 0.93, ""),
    ("256 sigmoid - 8 elu - 256 tanh - 256 relu", 0.68, None, ""),
    ("32 elu - 512 sigmoid - 32 elu - 512 sigmoid", 0.72, 0.72, ""),
  ],
  "table2": [
    ("scikit-learn MLP", None, 0.91, ""),
    ("128 sigmoid - 64 sigmoid - 16 relu - 512 elu", 0.66, None, ""),
    ("32 elu - 32 relu - 64 relu - 64 elu", 0.74, 0.86, ""),
  ],
  "table3": [
    ("scikit-learn MLP", None, 0.92, ""),
    ("64 sigmoid - 512 relu", 0.70, None, ""),
    ("512 sigmoid", 0.77, 0.84, ""),
  ],
  "table4": [
    ("scikit-learn MLP", None, 0.92, ""),
    (_DEEP_MNIST, 0.96, None, ""),
    ("256 elu", 0.95, None, ""),
  ],
  "table5": [
    ("scikit-learn MLP", None, 0.21, "ten other speakers; their data is not public"),
    (_SPEAKERS_A, 0.42, None, ""),
    (_SPEAKERS_B, 0.43, 0.47, ""),
  ],
  "table6": [
    ("scikit-learn MLP", None, 0.69, _LEAK),
    (_WIDE_WINE, 0.64, None, _LEAK),
    ("16 sigmoid - 512 sigmoid", 0.66, 0.64, _LEAK),
  ],
}


def presets(*names: str) -> dict:
  """The survey's configurations of these names, as functions on a config.

  Each sets what the survey states: one-shot weights, predictor, controller size and
  budget; its prior (every token alike); the discount and the 0.5 baseline of its
  REINFORCE (appendix A); children at a constant rate; and retraining that stops on the
  validation loss. It gives no coefficient for the adversarial part, which stays off.
  """

  def preset(name):
    def apply(config: MLPNASConfig) -> MLPNASConfig:
      changes = dict(_SURVEY[name])
      estimator = {
        "one_shot": changes.pop("one_shot"),
        "score": "weighted",
        "final_rate": 1.0,
      }
      return replace(
        config,
        space={"prior": "token"},
        strategy={
          "utility": "score",
          "fixed_baseline": 0.5,
          "discount": 0.9,
          **changes,
        },
        estimator=estimator,
        retrain={"refit": False, "monitor": "loss", "label_smoothing": 0.0},
        published=name,
      )

    return apply

  return {name: preset(name) for name in names}
