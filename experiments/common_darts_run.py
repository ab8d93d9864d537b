"""The DARTS job on images: search, derive, retrain, control, report.

Liu, Simonyan and Yang, "DARTS: differentiable architecture search", ICLR 2019: alphas
and weights of a supernet descend in turn, the strongest operations make a genotype, and
its network is trained from scratch and tested once. Random cells of the same space,
trained alike, are the control.
"""

import dataclasses
import functools
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import common_darts_report
from experiments.common_darts import NO_SCALARS, DARTSConfig, check, naming, result_of
from nasjax import runtime
from nasjax.core import counter, interrupts, keys
from nasjax.core.types import InputError
from nasjax.data.images import Images, describe
from nasjax.networks import cell_cnn, supernet_cnn
from nasjax.results import export
from nasjax.runtime import Run
from nasjax.spaces import base
from nasjax.spaces.conv_cell import ConvCell
from nasjax.strategies import darts
from nasjax.training import cells as training
from nasjax.training import data_parallel
from nasjax.training.losses import get_task

_GOOD = "last_good"  # folder of what a search that failed had before


class _Good(NamedTuple):
  """A search at the end of an epoch in which nothing was wrong, on the host."""

  epoch: int
  genotype: np.ndarray
  arrays: dict[str, Any]


def run_darts(config: DARTSConfig, run: Run, images: Images) -> None:
  """Search, derive, retrain, control, report.

  On Ctrl-C what was recorded is kept, and the report of it is written. An unfinished
  run goes on after its last whole epoch, and ends as if it had not stopped.

  Raises:
    InputError: for a config that does not fit the images (nothing was touched then), or
      alphas that became NaN, saying which.
  """
  job = _Job(config, run, images)
  run.begin(resumes=True)
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
  except InputError as error:
    summary |= {"status": "failed", "failure": str(error)}
    raise
  finally:
    summary |= run.compile_stats()
    run.write_summary(summary)
    run.log(f"report: {common_darts_report.write(run, summary, job.space)}")
    if summary["status"] == "interrupted":
      run.log("the same command goes on from the last whole epoch")
  job.print_result(summary)


class _Job:
  """The parts of a job, made before anything is written, and the work."""

  def __init__(self, config: DARTSConfig, run: Run, images: Images):
    self.config, self.run, self.images = config, run, images
    self.space, self.given = check(config)
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

  def work(self, summary: dict[str, Any]) -> None:
    """Enters what each step gave."""
    run, space = self.run, self.space
    search_key, retrain_key, random_key = keys.named(
      run.key, "search", "retrain", "random"
    )
    if self.given is None:
      # In the summary as the search goes on: an interrupted one is reported, too.
      found = run.once("search", lambda: self._search(search_key, summary))
      warnings = found.pop("warnings")
      summary |= {**found, "warnings": warnings}
      genotype = np.array(summary.pop("genotype"), np.int32)
    else:
      genotype = self.given
    arch = space.describe(genotype)
    summary |= {"arch": arch, "normal_skips": num_skips(genotype, space)}

    def derived() -> dict[str, Any]:
      run.log(f"training from scratch: {arch}")
      result, model = self._train(retrain_key, genotype, "the derived cell", "derived")
      metrics = {name: result[name] for name in ("test_accuracy", "test_loss")}
      arrays = {"weights": model[0], "statistics": model[1]}
      self._export("best", genotype, self.network, arrays, metrics)
      return result

    summary |= run.once("derived", derived)
    drawn = jax.vmap(lambda key: base.sample(space, key))(
      jax.random.split(random_key, max(self.config.random_cells, 1))
    )
    summary["random_cells"] = []
    run.rewind("control_records", 0, "control")  # written again from what stages gave
    with run.records("control_records") as records:
      for number in range(self.config.random_cells):
        cell = np.asarray(drawn[number])
        label = f"random cell {number + 1} of {self.config.random_cells}"
        name = f"random_{number + 1}"
        train = functools.partial(self._train, retrain_key, cell, label, name)
        found = run.once(name, functools.partial(result_of, train))
        row = {"arch": space.describe(cell), "score": None, **found}
        records.write(row)
        summary["random_cells"].append(row)

  def _search(self, key: jax.Array, summary: dict[str, Any]) -> dict[str, Any]:
    """The supernet's search; entries of the summary, and the last epoch's genotype."""
    run, images, space = self.run, self.images, self.space
    config, strategy, steps = self.config.strategy, self.strategy, self.steps
    epochs, batch_size = config.epochs, config.batch_size
    init_key, rows_key, crop_key = keys.named(key, "init", "rows", "crop")
    data = {
      name: self.placement.put(training.Batch(*getattr(images, name)))
      for name in ("train", "valid")
    }
    state = self.placement.put(strategy.init(init_key))
    running = training.initial_statistics(
      lambda w, a, x: supernet_cnn.apply(w, a, self.supernet, x, form=self.form),
      state.weights,
      state.alphas,
      data["train"].x[:1],
    )
    running = self.placement.put(running)
    summary["supernet_params"] = cell_cnn.num_params(state.weights)

    step = training.search_step(strategy.step, self.placement)
    batches = training.search_batches(config.crop, self.placement)
    update = jax.jit(training.update_statistics)
    test = training.supernet_tester(self.supernet, self.task, batch_size, self.form)
    run.log(f"compiling the supernet's step, {summary['supernet_params']:,} weights")
    checkpoints = run.checkpoints("search")
    before: list[dict[str, Any]] = []
    first, seconds = 0, 0.0
    if run.resumed:
      saved = checkpoints.restore((state, running, seconds))
      first = saved[0] if saved else 0
      if saved:
        *arrays, seconds = saved[1]
        state, running = map(self.placement.put, arrays)
        run.log(f"search: goes on after epoch {first}")
      before = run.rewind("records", first, "search")
    start = time.perf_counter() - seconds
    genotype, good = strategy.derive(state), None
    if before:
      good = self._good(first, genotype, state, running)
      valid = before[-1]["valid_accuracy"]
      summary |= {"epochs_searched": first, "supernet_valid": valid}
    with (
      checkpoints,
      run.progress(epochs * steps, "search", "steps") as progress,
      run.records() as out,
    ):
      for epoch in range(first, epochs):
        if before and 0 < config.stop_at_skips <= before[-1]["skips"]:
          break
        seen = []
        train, valid = training.search_rows(
          rows_key, epoch, len(images.train.y), len(images.valid.y), batch_size
        )
        for number in range(steps):
          done = epoch * steps + number
          train_key, valid_key = keys.named(
            jax.random.fold_in(crop_key, done), "train", "valid"
          )
          train_rows, valid_rows = train[number], valid[number]
          if config.inner_steps > 1:  # the batches that come next, round the epoch
            ahead = (number + np.arange(config.inner_steps)) % steps
            train_rows = train[ahead]
          state, info = step(
            state,
            batches(train_key, data["train"], train_rows),
            batches(valid_key, data["valid"], valid_rows),
          )
          fault = space.fault(jax.device_get(state.alphas))
          if fault:
            kept = self._keep(good)
            raise InputError(
              f"{fault}, in step {number + 1} of epoch {epoch + 1}; {kept}; a lower "
              "--config.strategy.alpha_learning_rate or "
              "--config.strategy.learning_rate may help"
            )
          running = update(running, info.auxiliary.statistics)
          seen.append([info.train_loss, info.auxiliary.metric, info.valid_loss])
          jax.block_until_ready(running)
          progress.update(done + 1, epoch=epoch + 1)
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
        with interrupts.held():
          out.write(row)
          run.metrics.write(
            epoch + 1,
            {f"search/{k}": float(v) for k, v in row.items() if k not in NO_SCALARS},
          )
          summary |= {
            "epochs_searched": epoch + 1,
            "supernet_valid": float(tested.metric),
          }
          good = self._good(epoch + 1, genotype, state, running) or good
          checkpoints.save(epoch + 1, (state, running, time.perf_counter() - start))
        if 0 < config.stop_at_skips <= row["skips"]:
          run.log(
            f"stopped after epoch {epoch + 1}: the normal cell has {row['skips']} skips"
          )
          break
    skips = num_skips(genotype, space)
    if skips >= common_darts_report.collapsed_from(space):
      warning = (
        f"the normal cell has collapsed: {skips} of its {2 * self.config.nodes} edges "
        "are skips; --config.strategy.stop_at_skips ends a search before"
      )
      run.warn(warning)
      summary["warnings"].append(warning)
    names = ("supernet_params", "epochs_searched", "supernet_valid", "warnings")
    return {name: summary[name] for name in names if name in summary} | {
      "search_seconds": time.perf_counter() - start,
      "genotype": genotype.tolist(),
    }

  def _good(self, epoch: int, genotype: np.ndarray, state, running) -> _Good | None:
    """The end of an epoch, if nothing is wrong there."""
    arrays = {"weights": state.weights, "statistics": running, "alphas": state.alphas}
    arrays = jax.device_get(arrays)
    fine = all(np.isfinite(part).all() for part in jax.tree.leaves(arrays))
    return _Good(epoch, genotype, arrays) if fine else None

  def _train(
    self, key: jax.Array, genotype: np.ndarray, label: str, name: str
  ) -> tuple[dict[str, Any], Any]:
    """One network from scratch; what it gave, and (weights, statistics).

    Its checkpoints, called `name`, are gone when it is done.
    """
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
    checkpoints.clear()
    return {
      "test_accuracy": float(tested.metric),
      "test_loss": float(tested.loss),
      "num_params": cell_cnn.num_params(model[0]["network"]),
      "flops": training.derived_flops(self.network, cells),
      "train_loss": each.train_loss,
      "seconds": time.perf_counter() - start,
    }, model

  def _keep(self, good: _Good | None) -> str:
    """Saves the last epoch in which nothing was wrong, and says where it is."""
    if good is None:
      return "no epoch before was without fault"
    self._export(
      _GOOD, good.genotype, self.supernet, good.arrays, {"epoch": good.epoch}
    )
    return (
      f"genotype, alphas and weights of epoch {good.epoch} are kept in "
      f"{self.run.workdir / _GOOD}"
    )

  def _export(
    self, folder: str, genotype, plan: cell_cnn.Plan, arrays, metrics
  ) -> None:
    """A network as files, in a folder of the run."""
    images = self.images
    export.save_best(
      self.run.workdir / folder,
      genotype=np.asarray(genotype).tolist(),
      arch=self.space.describe(genotype),
      space=self.space.to_dict() | {"network": plan._asdict()},
      task="multiclass",
      weights={
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(arrays)
      },
      preprocessing={
        "mean": images.mean.tolist(),
        "std": images.std.tolist(),
        "classes": list(images.class_names),
      },
      metrics=metrics,
    )

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
