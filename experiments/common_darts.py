"""What the DARTS experiments on images share: configuration, checks and the whole job.

Liu, Simonyan and Yang, "DARTS: differentiable architecture search", ICLR 2019: alphas
and weights of a supernet descend in turn, the strongest operations make a genotype, and
its network is trained from scratch and tested once. Random cells of the same space,
trained alike, are the control. An experiment file adds the data.
"""

import dataclasses
import json
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import common_darts_report
from nasjax import runtime
from nasjax.core import counter, keys
from nasjax.core.config import field
from nasjax.core.types import InputError
from nasjax.data.images import Images, describe
from nasjax.networks import cell_cnn, supernet_cnn
from nasjax.results import export
from nasjax.runtime import Run
from nasjax.spaces import base
from nasjax.spaces.conv_cell import ConvCell
from nasjax.strategies import darts
from nasjax.training import cells as training
from nasjax.training.losses import get_task


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
  """A network of cells; see `nasjax.networks.cell_cnn`."""

  channels: int = field(16, "of a node in the first cells")
  layers: int = field(8, "cells")


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


@dataclasses.dataclass(frozen=True)
class DARTSConfig:
  """Configuration of a DARTS experiment; each experiment adds its `data`."""

  supernet: NetworkConfig = NetworkConfig()
  strategy: StrategyConfig = StrategyConfig()
  retrain: RetrainConfig = RetrainConfig()
  nodes: int = field(4, "of a cell")
  genotype: str = field(
    "", "train this one, no search: DARTS_V1, DARTS_V2, a run's genotype.json, or text"
  )
  random_cells: int = field(2, "random cells trained alike, as a control; 0 = none")


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
  if config.random_cells < 0:
    raise InputError(
      f"--config.random_cells must not be negative, got {config.random_cells}"
    )
  space = ConvCell(config.nodes)
  return space, read_genotype(config.genotype, space) if config.genotype else None


def read_genotype(text: str, space: base.Space) -> np.ndarray:
  """The genotype of `--config.genotype`."""
  if text.endswith(".json"):
    path = pathlib.Path(text)
    try:
      text = json.loads(path.read_text(encoding="utf-8"))["arch"]
    except OSError as error:
      raise InputError(f"--config.genotype: {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
      raise InputError(
        f"--config.genotype: {path} is no genotype.json of a run"
      ) from None
  try:
    return space.parse(str(text))
  except InputError as error:
    raise InputError(f"--config.genotype: {error}") from None


def run_darts(config: DARTSConfig, run: Run, images: Images) -> None:
  """Search, derive, retrain, control, report.

  On Ctrl-C what was recorded is kept, and the report of it is written.

  Raises:
    InputError: for a config that does not fit the images (nothing was touched then), or
      alphas that became NaN, saying which.
  """
  job = _Job(config, run, images)
  run.begin()
  height, width, channels = images.shape
  summary: dict[str, Any] = {
    "experiment": run.experiment,
    "seed": run.seed,
    "status": "interrupted",
    "data": {
      "name": images.name,
      "rows": {s: len(getattr(images, s).y) for s in ("train", "valid", "test")},
      "image": [height, width, channels],
      "classes": len(images.class_names),
    },
    "environment": runtime.environment(),
    "command": run.command,
    "warnings": [],
  }
  run.log(describe(images))
  try:
    job.work(summary)
    summary["status"] = "finished"
  finally:
    summary |= run.compile_stats()
    run.write_summary(summary)
    run.log(f"report: {common_darts_report.write(run, summary, job.space)}")
  job.print_result(summary)


class _Job:
  """The parts of a job, made before anything is written, and the work."""

  def __init__(self, config: DARTSConfig, run: Run, images: Images):
    self.config, self.run, self.images = config, run, images
    self.space, self.given = check(config)
    self.task = get_task("multiclass")
    retrain = dataclasses.asdict(config.retrain)
    classes = len(images.class_names)
    # Two classes have two logits here: the networks end in a classifier.
    self.supernet = cell_cnn.make_plan(
      images.shape, classes, **dataclasses.asdict(config.supernet), nodes=config.nodes
    )
    self.network = cell_cnn.make_plan(
      images.shape,
      classes,
      retrain.pop("channels"),
      retrain.pop("layers"),
      config.nodes,
    )
    self.recipe = training.Recipe(**retrain)
    options = dataclasses.asdict(config.strategy)
    del options["stop_at_skips"]
    epochs, batch_size = options.pop("epochs"), options.pop("batch_size")
    rows = min(len(images.train.y), len(images.valid.y))
    self.steps = len(images.train.y) // min(batch_size, rows)
    loss = training.supernet_loss(self.supernet, self.task)
    self.strategy = darts.darts(
      lambda key: supernet_cnn.init(np.uint32(counter.seed(key)), self.supernet),
      lambda key: supernet_cnn.init_alphas(key, config.nodes),
      loss,
      loss,
      self.space.derive,
      num_steps=epochs * self.steps,
      steps_per_epoch=self.steps,
      **options,
    )
    if self.recipe.auxiliary_weight:
      cell_cnn.auxiliary_init(np.uint32(0), self.network)

  def work(self, summary: dict[str, Any]) -> None:
    """Enters what each step gave."""
    run, space = self.run, self.space
    search_key, retrain_key, random_key = keys.named(
      run.key, "search", "retrain", "random"
    )
    if self.given is None:
      start = time.perf_counter()
      genotype = self._search(search_key, summary)
      summary["search_seconds"] = time.perf_counter() - start
    else:
      genotype = self.given
    arch = space.describe(genotype)
    summary |= {"arch": arch, "normal_skips": num_skips(genotype, space)}
    run.log(f"training from scratch: {arch}")
    result, model = self._train(retrain_key, genotype, "the derived cell")
    summary |= result
    _export(run, self, genotype, model, result)
    drawn = jax.vmap(lambda key: base.sample(space, key))(
      jax.random.split(random_key, max(self.config.random_cells, 1))
    )
    summary["random_cells"] = []
    with run.records("control_records") as records:
      for number in range(self.config.random_cells):
        label = f"random cell {number + 1} of {self.config.random_cells}"
        found, _ = self._train(retrain_key, np.asarray(drawn[number]), label)
        row = {
          "arch": space.describe(np.asarray(drawn[number])),
          "score": None,
          **found,
        }
        records.write(row)
        summary["random_cells"].append(row)

  def _search(self, key: jax.Array, summary: dict[str, Any]) -> np.ndarray:
    """The supernet's search; the genotype of its last epoch."""
    run, images, space = self.run, self.images, self.space
    config, strategy, steps = self.config.strategy, self.strategy, self.steps
    epochs, batch_size = config.epochs, config.batch_size
    init_key, rows_key = keys.named(key, "init", "rows")
    data = {
      name: jax.device_put(training.Batch(*getattr(images, name)))
      for name in ("train", "valid")
    }
    state = strategy.init(init_key)
    running = training.initial_statistics(
      lambda w, a, x: supernet_cnn.apply(w, a, self.supernet, x),
      state.weights,
      state.alphas,
      data["train"].x[:1],
    )
    summary["supernet_params"] = cell_cnn.num_params(state.weights)

    # See `strategies.darts`: on a CPU the step is not compiled as a whole.
    whole = jax.default_backend() != "cpu"
    step = jax.jit(strategy.step, donate_argnums=0) if whole else strategy.step
    batch_of, update = jax.jit(training.batch_of), jax.jit(training.update_statistics)
    test = training.supernet_tester(self.supernet, self.task, batch_size)
    run.log(f"compiling the supernet's step, {summary['supernet_params']:,} weights")
    genotype = strategy.derive(state)
    with (
      run.progress(epochs * steps, "search", "steps") as progress,
      run.records() as out,
    ):
      for epoch in range(epochs):
        seen = []
        train, valid = training.search_rows(
          rows_key, epoch, len(images.train.y), len(images.valid.y), batch_size
        )
        for number in range(steps):
          train_rows, valid_rows = train[number], valid[number]
          if config.inner_steps > 1:  # the batches that come next, round the epoch
            ahead = (number + np.arange(config.inner_steps)) % steps
            train_rows = train[ahead]
          state, info = step(
            state,
            batch_of(data["train"], train_rows),
            batch_of(data["valid"], valid_rows),
          )
          running = update(running, info.auxiliary.statistics)
          seen.append([info.train_loss, info.auxiliary.metric, info.valid_loss])
          jax.block_until_ready(running)
          progress.update(epoch * steps + number + 1, epoch=epoch + 1)
        genotype = strategy.derive(state)
        tested = test((state.weights, state.alphas, running), *data["valid"])
        means = np.asarray(seen).mean(0)
        row = {
          "epoch": epoch + 1,
          "train_loss": means[0],
          "train_accuracy": means[1],
          "outer_loss": means[2],
          "valid_loss": tested.loss,
          "valid_accuracy": tested.metric,
          "skips": num_skips(genotype, space),
          "arch": space.describe(genotype),
          "alphas": dict(state.alphas),
        }
        out.write(row)
        run.metrics.write(
          epoch + 1,
          {k: float(v) for k, v in row.items() if k not in ("epoch", "arch", "alphas")},
        )
        summary |= {
          "epochs_searched": epoch + 1,
          "supernet_valid": float(tested.metric),
        }
        if 0 < config.stop_at_skips <= row["skips"]:
          run.log(
            f"stopped after epoch {epoch + 1}: the normal cell has {row['skips']} skips"
          )
          break
    skips = num_skips(genotype, space)
    if skips >= self.config.nodes:
      warning = (
        f"the normal cell has collapsed: {skips} of its {2 * self.config.nodes} edges "
        "are skips; --config.strategy.stop_at_skips ends a search before"
      )
      run.warn(warning)
      summary["warnings"].append(warning)
    return genotype

  def _train(
    self, key: jax.Array, genotype: np.ndarray, label: str
  ) -> tuple[dict[str, Any], Any]:
    """One network from scratch; what it gave, and (weights, statistics)."""
    run, images = self.run, self.images
    cells = self.space.decode(genotype)
    rows = images.learned_from
    start = time.perf_counter()
    model: Any = None
    with run.progress(self.recipe.epochs, label, "epochs") as progress:
      for each in training.train_derived(
        key, self.network, cells, rows, self.task, self.recipe
      ):
        model = each.weights, each.statistics
        progress.update(
          each.epoch,
          loss=f"{each.train_loss:.4f}",
          accuracy=f"{each.train_metric:.4f}",
        )
    test = training.derived_tester(
      self.network, cells, self.task, self.recipe.batch_size
    )
    tested = test(model, jnp.asarray(images.test.x), jnp.asarray(images.test.y))
    return {
      "test_accuracy": float(tested.metric),
      "test_loss": float(tested.loss),
      "num_params": cell_cnn.num_params(model[0]["network"]),
      "flops": training.derived_flops(self.network, cells),
      "train_loss": each.train_loss,
      "seconds": time.perf_counter() - start,
    }, model

  def print_result(self, summary: dict[str, Any]) -> None:
    """The result as a table for the user."""
    rows = [
      ["derived cell", f"{summary['test_accuracy']:.4f}", f"{summary['num_params']:,}"]
    ]
    rows += [
      [f"random cell {i + 1}", f"{r['test_accuracy']:.4f}", f"{r['num_params']:,}"]
      for i, r in enumerate(summary["random_cells"])
    ]
    self.run.table("Result", ["", "test accuracy", "parameters"], rows)


def num_skips(genotype: np.ndarray, space: ConvCell) -> int:
  """Skips among the edges of the normal cell."""
  cells = space.decode(genotype)
  return sum(edge.op == "skip_connect" for node in cells.normal for edge in node)


def _export(run: Run, job: _Job, genotype: np.ndarray, model, result) -> None:
  """The network as files: `best/`."""
  named = jax.tree_util.tree_leaves_with_path(
    {"weights": model[0], "statistics": model[1]}
  )
  export.save_best(
    run.workdir / "best",
    genotype=np.asarray(genotype).tolist(),
    arch=job.space.describe(genotype),
    space=job.space.to_dict() | {"network": job.network._asdict()},
    task="multiclass",
    weights={
      jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
      for path, leaf in named
    },
    preprocessing={
      "mean": job.images.mean.tolist(),
      "std": job.images.std.tolist(),
      "classes": list(job.images.class_names),
    },
    metrics={
      "test_accuracy": result["test_accuracy"],
      "test_loss": result["test_loss"],
    },
  )
