"""The DARTS job on texts: search, derive, retrain, control, report.

Liu, Simonyan and Yang, "DARTS: differentiable architecture search", ICLR 2019, sections
3.1.2 and A.2: alphas and weights of a recurrent supernet descend in turn, the strongest
activations make a cell, and its language model is trained from scratch and tested once.
Random cells of the same space, trained alike, are the control.
"""

import dataclasses
import functools
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import common_darts_text_report
from experiments.common_darts import NO_SCALARS, result_of
from experiments.common_darts_text import DARTSTextConfig, check
from nasjax import runtime
from nasjax.core import counter, interrupts, keys
from nasjax.core.types import InputError
from nasjax.data import text as text_lib
from nasjax.data.text import Text
from nasjax.networks import cell_rnn, supernet_rnn
from nasjax.results import export
from nasjax.runtime import Run
from nasjax.spaces import base
from nasjax.spaces.recurrent_cell import RecurrentCell
from nasjax.strategies import darts
from nasjax.training import recurrent


def run_darts(config: DARTSTextConfig, run: Run, text: Text) -> None:
  """Search, derive, retrain, control, report.

  On Ctrl-C what was recorded is kept, and the report of it is written.

  Raises:
    InputError: for a config that does not fit the text (nothing was touched then), or
      alphas that became NaN, saying which and when.
  """
  job = _Job(config, run, text)
  run.begin(resumes=True)
  summary: dict[str, Any] = {
    "experiment": run.experiment,
    "seed": run.seed,
    "status": "interrupted",
    "data": {
      "name": text.name,
      "unit": text.unit,
      "tokens": {s: len(getattr(text, s)) for s in ("train", "valid", "test")},
      "vocabulary": len(text.vocabulary),
      "unknown": text.unknown,
    },
    "environment": runtime.environment(),
    "command": run.command,
    "warnings": [],
  }
  run.log(text_lib.describe(text))
  try:
    job.work(summary)
    summary["status"] = "finished"
  finally:
    summary |= run.compile_stats()
    run.write_summary(summary)
    page = common_darts_text_report.write(run, summary, job.space)
    run.log(f"report: {page}")
  job.print_result(summary)


class _Job:
  """The parts of a job, made before anything is written, and the work."""

  def __init__(self, config: DARTSTextConfig, run: Run, text: Text):
    self.config, self.run, self.text = config, run, text
    self.space, self.given = check(config)
    read = math.ceil(config.strategy.part * len(text.train))
    self.searched_tokens = {"train": text.train[:read], "valid": text.valid}
    measured = {"valid": text.valid, "test": text.test}
    for parts, flag, batch in (
      (self.searched_tokens, "strategy.batch_size", config.strategy.batch_size),
      ({"train": text.train}, "retrain.batch_size", config.retrain.batch_size),
      (measured, "test_streams", config.test_streams),
    ):
      for name, tokens in parts.items():
        text_lib.check_length(
          f"the {name} part of {text.name}",
          len(tokens),
          batch,
          config.window,
          f"--config.{flag}",
        )
    words = len(text.vocabulary)
    self.supernet = cell_rnn.make_plan(words, config.strategy.hidden, config.nodes)
    self.network = cell_rnn.make_plan(words, config.retrain.hidden, config.nodes)
    options = dataclasses.asdict(config.retrain)
    del options["hidden"]
    dropout = cell_rnn.Dropout(**options.pop("dropout"))
    self.recipe = recurrent.Recipe(window=config.window, dropout=dropout, **options)
    self.test_streams = {
      name: text_lib.streams(tokens, config.test_streams)
      for name, tokens in measured.items()
    }
    strategy = config.strategy
    self.strategy = darts.darts(
      lambda key: cell_rnn.init(np.uint32(counter.seed(key)), self.supernet),
      lambda key: supernet_rnn.init_alphas(key, config.nodes),
      recurrent.supernet_loss,
      recurrent.supernet_loss,
      self.space.derive,
      order=strategy.order,
      num_steps=1,  # the rate is the same throughout
      learning_rate=strategy.learning_rate,
      final_learning_rate=strategy.learning_rate,
      momentum=0.0,
      weight_decay=strategy.weight_decay,
      clip_norm=strategy.clip_norm,
      inner_clip=strategy.inner_clip,
      alpha_learning_rate=strategy.alpha_learning_rate,
      alpha_decays=(strategy.alpha_decays[0], strategy.alpha_decays[1]),
      alpha_weight_decay=strategy.alpha_weight_decay,
    )

  def work(self, summary: dict[str, Any]) -> None:
    """Enters what each step gave."""
    run, space, count = self.run, self.space, self.config.random_cells
    search_key, retrain_key, random_key = keys.named(
      run.key, "search", "retrain", "random"
    )
    if self.given is None:
      summary |= run.once("search", lambda: self._search(search_key, summary))
      genotype = np.array(summary.pop("genotype"), np.int32)
    else:
      genotype = self.given
    arch = space.describe(genotype)
    summary |= {"arch": arch, "identities": num_identities(genotype, space)}

    def derived() -> dict[str, Any]:
      run.log(f"training from scratch: {arch}")
      result, weights = self._train(retrain_key, genotype, "the derived cell")
      if weights is not None:
        self._export(genotype, weights, result)
      return result

    summary |= run.once("derived", derived)
    drawn = jax.vmap(lambda key: base.sample(space, key))(
      jax.random.split(random_key, max(count, 1))
    )
    summary["random_cells"] = []
    run.rewind("control_records", 0, "control")  # written again from what stages gave
    with run.records("control_records") as records:
      for number in range(1, count + 1):
        own = np.asarray(drawn[number - 1])
        label = f"random cell {number} of {count}"
        train = functools.partial(self._train, retrain_key, own, label)
        found = run.once(f"random_{number}", functools.partial(result_of, train))
        row = {"arch": space.describe(own), "score": None, **found}
        records.write(row)
        summary["random_cells"].append(row)

  def _search(self, key: jax.Array, summary: dict[str, Any]) -> dict[str, Any]:
    """The supernet's search; entries of the summary, and the last epoch's genotype."""
    run, space, config = self.run, self.space, self.config.strategy
    window, batch = self.config.window, config.batch_size
    init_key, windows_key, masks_key = keys.named(key, "init", "windows", "masks")
    streams = {
      name: text_lib.streams(tokens, batch)
      for name, tokens in self.searched_tokens.items()
    }
    filled = {k: recurrent.on_device(v, window) for k, v in streams.items()}
    dropout = cell_rnn.Dropout(**dataclasses.asdict(config.dropout))
    make, make_valid = (
      recurrent.window_maker(self.supernet, window, dropout, slowness)
      for slowness in (config.slowness, 0.0)
    )
    walk = _Walk(streams["valid"], window)
    windows_seed = int(counter.seed(windows_key))
    state = self.strategy.init(init_key)
    summary["supernet_params"] = cell_rnn.num_params(state.weights)
    # See `strategies.darts`: on a CPU the step is not compiled as a whole.
    whole = jax.default_backend() != "cpu"
    step = self.strategy.step
    step = jax.jit(step, donate_argnums=0) if whole else step
    test = recurrent.supernet_tester(self.supernet, window)
    nothing = jnp.zeros((batch, self.supernet.hidden))
    run.log(f"compiling the supernet's step, {summary['supernet_params']:,} weights")
    checkpoints, valid_hidden = run.checkpoints("search"), nothing
    before: list[dict[str, Any]] = []
    first, seconds = 0, 0.0
    if run.resumed:
      saved = checkpoints.restore((state, valid_hidden, walk.position, seconds))
      if saved:
        first, (state, valid_hidden, walk.position, seconds) = saved
        run.log(f"search: goes on after epoch {first}")
      before = run.rewind("records", first, "search")
    if before:
      perplexity = before[-1]["valid_perplexity"]
      summary |= {"epochs_searched": first, "supernet_perplexity": perplexity}
    begun = time.perf_counter() - seconds
    genotype = self.strategy.derive(state)
    done = first * (len(streams["train"]) - 1)
    total = config.epochs * (len(streams["train"]) - 1)
    with (
      checkpoints,
      run.progress(total, "search", "steps of the text") as progress,
      run.records() as out,
    ):
      for epoch in range(first, config.epochs):
        if before and 0 < config.stop_at_identities <= before[-1]["identities"]:
          break
        hidden, seen = nothing, []
        rng = np.random.default_rng([windows_seed, epoch])
        cuts = text_lib.windows(len(streams["train"]), window, rng)
        for number, (start, length) in enumerate(zip(*cuts)):
          own_key = jax.random.fold_in(jax.random.fold_in(masks_key, epoch), number)
          train_key, valid_key = keys.named(own_key, "train", "valid")
          valid_start, valid_length, wrapped = walk.step()
          valid_hidden = nothing if wrapped else valid_hidden
          state, info = step(
            state,
            make(train_key, filled["train"], start, length, hidden),
            make_valid(
              valid_key, filled["valid"], valid_start, valid_length, valid_hidden
            ),
            np.float32(length / window),
          )
          hidden = info.auxiliary.hidden
          valid_hidden = info.valid_auxiliary.hidden
          seen.append([info.auxiliary.cross_entropy, info.valid_loss])
          jax.block_until_ready(hidden)
          done += int(length)
          progress.update(done, epoch=epoch + 1)
        try:
          genotype = self.strategy.derive(state)
        except InputError as error:
          raise InputError(
            f"epoch {epoch + 1} of the search: {error}; the epochs before are kept in "
            f"records.jsonl and checkpoints/ of {run.workdir}"
          ) from None
        valid = float(test((state.weights, state.alphas), streams["valid"]))
        train, outer = np.average(np.asarray(seen), axis=0, weights=cuts.lengths)
        row = {
          "epoch": epoch + 1,
          "train_loss": train,
          "train_perplexity": np.exp(train),
          "outer_loss": outer,
          "valid_loss": valid,
          "valid_perplexity": np.exp(valid),
          "identities": num_identities(genotype, space),
          "arch": space.describe(genotype),
          "alphas": state.alphas,
        }
        with interrupts.held():
          out.write(row)
          run.metrics.write(
            epoch + 1,
            {f"search/{k}": float(v) for k, v in row.items() if k not in NO_SCALARS},
          )
          summary |= {
            "epochs_searched": epoch + 1,
            "supernet_perplexity": float(np.exp(valid)),
          }
          spent = time.perf_counter() - begun
          checkpoints.save(epoch + 1, (state, valid_hidden, walk.position, spent))
        if 0 < config.stop_at_identities <= row["identities"]:
          run.log(
            f"stopped after epoch {epoch + 1}: {row['identities']} nodes only copy"
          )
          break
    copies = num_identities(genotype, space)
    if copies >= common_darts_text_report.collapsed_from(space):
      warning = (
        f"the cell has collapsed: {copies} of its {self.config.nodes} nodes only copy; "
        "--config.strategy.stop_at_identities ends a search before"
      )
      run.warn(warning)
      summary["warnings"].append(warning)
    names = ("supernet_params", "epochs_searched", "supernet_perplexity", "warnings")
    return {name: summary[name] for name in names if name in summary} | {
      "search_seconds": time.perf_counter() - begun,
      "genotype": genotype.tolist(),
    }

  def _train(
    self, key: jax.Array, genotype: np.ndarray, label: str
  ) -> tuple[dict[str, Any], Any]:
    """One cell from scratch: what it gave, and the weights of its best epoch."""
    run, cell = self.run, self.space.decode(genotype)
    start = time.perf_counter()
    best: recurrent.Trained | None = None
    curve: list[float] = []
    averaged_from = None
    trained = recurrent.train_derived(
      key, self.network, cell, self.text.train, self.test_streams["valid"], self.recipe
    )
    with run.progress(self.recipe.epochs, label, "epochs") as progress:
      for each in trained:
        if not np.isfinite([each.train_loss, each.valid_loss]).all():
          run.warn(f"{label} diverged in epoch {each.epoch}; its best epoch is kept")
          break
        curve.append(float(np.exp(each.valid_loss)))
        if each.averaging and averaged_from is None:
          averaged_from = each.epoch
        if best is None or each.valid_loss < best.valid_loss:
          best = each
        progress.update(each.epoch, perplexity=f"{curve[-1]:.3f}")
    result = {
      "test_perplexity": None,
      "test_loss": None,
      "valid_perplexity": None if best is None else min(curve),
      "best_epoch": None if best is None else best.epoch,
      "averaged_from": averaged_from,
      "num_params": cell_rnn.num_params(cell_rnn.init(np.uint32(0), self.network)),
      "flops": recurrent.derived_flops(self.network, cell),
      "train_loss": None if best is None else best.train_loss,
      "curve": curve,
    }
    if best is not None:
      test = recurrent.derived_tester(self.network, cell, self.config.window)
      loss = float(test(best.weights, self.test_streams["test"]))
      result |= {"test_loss": loss, "test_perplexity": float(np.exp(loss))}
    result["seconds"] = time.perf_counter() - start
    return result, None if best is None else best.weights

  def _export(self, genotype: np.ndarray, weights, result: dict[str, Any]) -> None:
    """The cell and its weights as files: `best/`."""
    export.save_best(
      self.run.workdir / "best",
      genotype=np.asarray(genotype).tolist(),
      arch=self.space.describe(genotype),
      space=self.space.to_dict() | {"network": self.network._asdict()},
      task="language_model",
      weights={name: np.asarray(value) for name, value in weights.items()},
      preprocessing={
        "unit": self.text.unit,
        "vocabulary": list(self.text.vocabulary),
      },
      metrics={
        name: result[name]
        for name in ("valid_perplexity", "test_perplexity", "test_loss")
      },
    )

  def print_result(self, summary: dict[str, Any]) -> None:
    """The result as a table for the user."""
    named = [("derived cell", summary)]
    named += [
      (f"random cell {number}", row)
      for number, row in enumerate(summary["random_cells"], 1)
    ]
    rows = [
      [
        name,
        *(
          "diverged" if row[k] is None else f"{row[k]:.3f}"
          for k in ("valid_perplexity", "test_perplexity")
        ),
        f"{row['num_params']:,}",
      ]
      for name, row in named
    ]
    columns = ["", "validation perplexity", "test perplexity", "parameters"]
    self.run.table("Result", columns, rows)


class _Walk:
  """Windows of the alphas' streams, one after the other, over and over."""

  def __init__(self, streams: np.ndarray, window: int):
    self._cuts = text_lib.windows(len(streams), window)
    self.position = 0

  def step(self) -> tuple[np.int32, np.int32, bool]:
    """Start and length of the next window, and whether the streams begin again."""
    number = self.position
    self.position = (number + 1) % len(self._cuts.starts)
    return self._cuts.starts[number], self._cuts.lengths[number], number == 0


def num_identities(genotype: np.ndarray, space: RecurrentCell) -> int:
  """Nodes that only copy what they read."""
  return sum(edge.op == "identity" for edge in space.decode(genotype))
