"""The DARTS job on images; see `common_darts_job`."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import common_darts_report
from experiments.common_darts import DARTSConfig, check, naming
from experiments.common_darts_job import Copies, Job, Search
from nasjax.core import counter, keys, trees
from nasjax.core.types import InputError
from nasjax.data.images import Images, describe
from nasjax.networks import cell_cnn, supernet_cnn
from nasjax.results import export
from nasjax.runtime import Run
from nasjax.spaces.conv_cell import ConvCell
from nasjax.strategies import darts
from nasjax.training import cells as training
from nasjax.training import data_parallel, portable_images
from nasjax.training.losses import get_task

_GOOD = "last_good"  # folder of what a search that failed had before
_CHECKED_STEPS = 100  # after so many, and after each epoch, alphas are looked at


class _Good(NamedTuple):
  """A search at the end of an epoch in which nothing was wrong, on the host."""

  epoch: int
  genotype: np.ndarray
  arrays: dict[str, Any]


def run_darts(config: DARTSConfig, run: Run, images: Images) -> None:
  """Search, derive, retrain, control, report; see `common_darts_job.Job.execute`.

  Raises:
    InputError: for a config that does not fit the images (nothing was touched then), or
      alphas that became NaN, saying which.
  """
  _ImageJob(config, run, images).execute()


class _ImageJob(Job):
  """A job on images."""

  validated = ("supernet_valid", "valid_accuracy")
  columns = ["test accuracy", "parameters"]

  def __init__(self, config: DARTSConfig, run: Run, images: Images):
    self.config, self.run, self.images = config, run, images
    self.space, self.given = check(config)
    self.copies = Copies(
      name="skips",
      entry="normal_skips",
      most=2 * config.nodes,
      alarm=common_darts_report.collapsed_from(self.space),
      stopped="the normal cell has {} skips",
      collapsed="the normal cell has collapsed: {} of its {} edges are skips",
    )
    self.good: _Good | None = None
    self.task = get_task("multiclass")
    with naming("data.path"):
      cell_cnn.check_image(images.shape)
    # Two classes have two logits here: the networks end in a classifier.
    classes = len(images.class_names)
    self.supernet, self.network = (
      self._plan(section, classes) for section in ("supernet", "retrain")
    )
    retrain = dataclasses.asdict(config.retrain)
    del retrain["channels"], retrain["layers"]
    self.recipe = training.Recipe(**retrain)
    if self.recipe.auxiliary_weight:
      with naming("retrain.auxiliary_weight"):
        cell_cnn.auxiliary_init(np.uint32(0), self.network)
    options = dataclasses.asdict(config.strategy)
    del options["stop_at_skips"], options["crop"]
    epochs, batch_size = options.pop("epochs"), options.pop("batch_size")
    sizes = len(images.train.y), len(images.valid.y)
    self.steps = sizes[0] // min(batch_size, *sizes)
    self.form = config.supernet.form()
    loss = training.supernet_loss(self.supernet, self.task, self.form)
    with naming("strategy"):
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
    with naming("mesh.data"):
      self.placement = data_parallel.over(config.mesh.data)
    devices = self.placement.devices
    for section, rows in (("strategy", min(sizes)), ("retrain", sum(sizes))):
      size = min(getattr(config, section).batch_size, rows)
      if size % devices:
        raise InputError(
          f"--config.{section}.batch_size: the {devices} devices of --config.mesh.data "
          f"cannot share {size} rows alike"
        )

  def _plan(self, section: str, classes: int) -> cell_cnn.Plan:
    """The network that a section of the config describes."""
    chosen = getattr(self.config, section)
    with naming(section):
      return cell_cnn.make_plan(
        self.images.shape, classes, chosen.channels, chosen.layers, self.config.nodes
      )

  def describe_data(self) -> tuple[str, dict[str, Any]]:
    images = self.images
    return describe(images), {
      "name": images.name,
      "rows": {s: len(getattr(images, s).y) for s in ("train", "valid", "test")},
      "image": list(images.shape),
      "classes": len(images.class_names),
    }

  def data_digest(self) -> int:
    return trees.digest(self.images.train, self.images.valid, self.images.test)

  def make_search(self, key: jax.Array) -> Search:
    images, strategy, steps = self.images, self.strategy, self.steps
    config, placement = self.config.strategy, self.placement
    batch_size = config.batch_size
    init_key, rows_key, crop_key = keys.named(key, "init", "rows", "crop")
    data = {
      name: placement.put(training.Batch(*getattr(images, name)))
      for name in ("train", "valid")
    }
    state = placement.put(strategy.init(init_key))
    running = training.initial_statistics(
      lambda w, a, x: supernet_cnn.apply(w, a, self.supernet, x, form=self.form),
      state.weights,
      state.alphas,
      data["train"].x[:1],
    )
    step = training.search_step(strategy.step, placement)
    batches = training.search_batches(config.crop, placement)

    @jax.jit
    def follow(running, watched, place, alphas, info):
      running = training.update_statistics(running, info.auxiliary.statistics)
      measured = jnp.stack([info.train_loss, info.auxiliary.metric, info.valid_loss])
      return running, darts.watch(watched, alphas, place), measured

    test = training.supernet_tester(self.supernet, self.task, batch_size, self.form)

    def epoch(number: int, carry: tuple, advance: Callable[[int], None]):
      state, running = carry
      watched, seen, last = darts.watched(state.alphas), [], None
      train, valid = training.search_rows(
        rows_key, number, len(images.train.y), len(images.valid.y), batch_size
      )
      for place in range(steps):
        train_key, valid_key = keys.named(
          jax.random.fold_in(crop_key, number * steps + place), "train", "valid"
        )
        train_rows, valid_rows = train[place], valid[place]
        if config.inner_steps > 1:  # the batches that come next, round the epoch
          train_rows = train[(place + np.arange(config.inner_steps)) % steps]
        state, info = step(
          state,
          batches(train_key, data["train"], train_rows),
          batches(valid_key, data["valid"], valid_rows),
        )
        running, watched, measured = follow(running, watched, place, state.alphas, info)
        seen.append(measured)
        # For the step before: the device has the next one when it is done with one.
        jax.block_until_ready(last)
        last = measured
        if (place + 1) % _CHECKED_STEPS == 0 or place + 1 == steps:
          self._check(number + 1, jax.device_get(watched))
        advance(place + 1)
      tested = test((state.weights, state.alphas, running), *data["valid"])
      names = ("train_loss", "train_accuracy", "outer_loss")
      return (state, running), {
        **dict(zip(names, np.asarray(jax.device_get(seen)).mean(0))),
        "valid_loss": tested.loss,
        "valid_accuracy": tested.metric,
      }

    return Search(
      num_params=cell_cnn.num_params(state.weights),
      steps=steps,
      unit="steps",
      carry=(state, placement.put(running)),
      epoch=epoch,
      place=placement.put,
    )

  def _check(self, epoch: int, watched: darts.Watched) -> None:
    """Ends the search if an alpha is not finite.

    Raises:
      InputError: naming it, and the step that made it so.
    """
    fault = self.space.fault(watched.alphas)
    if fault:
      raise InputError(
        f"{fault}, in step {watched.step + 1} of epoch {epoch}; {self._keep()}; a "
        "lower --config.strategy.alpha_learning_rate or "
        "--config.strategy.learning_rate may help"
      )

  def remember(self, epoch: int, genotype: np.ndarray, carry: tuple) -> None:
    """Keeps the end of an epoch, if nothing is wrong there."""
    state, running = carry
    arrays = jax.device_get(
      {"weights": state.weights, "statistics": running, "alphas": state.alphas}
    )
    if all(np.isfinite(part).all() for part in jax.tree.leaves(arrays)):
      self.good = _Good(epoch, genotype, arrays)

  def train(
    self, key: jax.Array, genotype: np.ndarray, label: str, name: str
  ) -> tuple[dict[str, Any], Any]:
    """See `Job.train`; a model is (weights, statistics)."""
    run, images = self.run, self.images
    cells = self.space.decode(genotype)
    rows = images.learned_from
    start, epochs = time.perf_counter(), self.recipe.epochs
    model: Any = None
    checkpoints = run.checkpoints(name)

    def resume(carry: Any) -> tuple[int, Any]:
      nonlocal start
      saved = checkpoints.restore((carry, 0.0)) if run.resumed else None
      if saved is None:
        return 0, carry
      done, (carry, seconds) = saved
      start -= seconds
      run.log(f"{label}: goes on after epoch {done}")
      return done, carry

    with (
      checkpoints,
      run.progress(epochs, label, "epochs") as progress,
    ):
      for each in training.train_derived(
        key, self.network, cells, rows, self.task, self.recipe, self.placement, resume
      ):
        model = each.weights, each.statistics
        progress.update(
          each.epoch,
          loss=f"{each.train_loss:.4f}",
          accuracy=f"{each.train_metric:.4f}",
        )
        if each.epoch < epochs:  # after the last one there is nothing to go on with
          checkpoints.save(each.epoch, (each.carry, time.perf_counter() - start))
    test = training.derived_tester(
      self.network, cells, self.task, self.recipe.batch_size
    )
    if not np.isfinite(each.train_loss):
      run.warn(f"{label}: its training loss is {each.train_loss} in the last epoch")
    tested = test(model, jnp.asarray(images.test.x), jnp.asarray(images.test.y))
    return {
      "test_accuracy": float(tested.metric),
      "test_loss": float(tested.loss),
      "num_params": cell_cnn.num_params(model[0]["network"]),
      "flops": training.derived_flops(self.network, cells),
      "train_loss": each.train_loss,
      "seconds": time.perf_counter() - start,
    }, model

  def export(self, genotype: np.ndarray, model: Any, result: dict[str, Any]) -> None:
    weights, statistics = model
    portable_images.save(
      self.run.workdir / "best",
      space=self.space,
      genotype=genotype,
      plan=self.network,
      weights=weights,
      statistics=statistics,
      images=self.images,
      metrics={name: result[name] for name in ("test_accuracy", "test_loss")},
      log=self.run.log,
    )

  def _keep(self) -> str:
    """Saves the last epoch in which nothing was wrong, and says where it is."""
    good = self.good
    if good is None:
      return "no epoch before was without fault"
    export.save_best(
      self.run.workdir / _GOOD,
      genotype=good.genotype.tolist(),
      arch=self.space.describe(good.genotype),
      space=portable_images.description(self.space, self.supernet),
      task="multiclass",
      weights=portable_images.named(good.arrays),
      preprocessing=portable_images.preprocessing(self.images),
      metrics={"epoch": good.epoch},
    )
    return (
      f"genotype, alphas and weights of epoch {good.epoch} are kept in "
      f"{self.run.workdir / _GOOD}"
    )

  def num_copies(self, genotype: np.ndarray) -> int:
    return num_skips(genotype, self.space)

  def write_report(self, summary: Mapping[str, Any]) -> Any:
    return common_darts_report.write(self.run, summary, self.space)

  def result_row(self, result: Mapping[str, Any]) -> list[str]:
    return [f"{result['test_accuracy']:.4f}", f"{result['num_params']:,}"]


def num_skips(genotype: np.ndarray, space: ConvCell) -> int:
  """Skips among the edges of the normal cell."""
  cells = space.decode(genotype)
  return sum(edge.op == "skip_connect" for node in cells.normal for edge in node)
