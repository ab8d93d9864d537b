"""DARTS for recurrent cells: configuration, checks and the whole job on a text.

Liu, Simonyan and Yang, "DARTS: differentiable architecture search", ICLR 2019, sections
3.1.2 and A.2: alphas and weights of a recurrent supernet descend in turn, the strongest
activations make a cell, and its language model is trained from scratch and tested once.
Random cells of the same space, trained alike, are the control.
"""

import dataclasses
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import common_darts, common_darts_text_report
from nasjax import runtime
from nasjax.core import counter, keys
from nasjax.core.config import field
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


def run_darts(config: DARTSTextConfig, run: Run, text: Text) -> None:
  """Search, derive, retrain, control, report.

  On Ctrl-C what was recorded is kept, and the report of it is written.

  Raises:
    InputError: for a config that does not fit the text (nothing was touched then), or
      alphas that became NaN, saying which and when.
  """
  job = _Job(config, run, text)
  run.begin()
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
      start = time.perf_counter()
      genotype = self._search(search_key, summary)
      summary["search_seconds"] = time.perf_counter() - start
    else:
      genotype = self.given
    arch = space.describe(genotype)
    summary |= {"arch": arch, "identities": num_identities(genotype, space)}
    run.log(f"training from scratch: {arch}")
    result, weights = self._train(retrain_key, genotype, "the derived cell")
    summary |= result
    if weights is not None:
      self._export(genotype, weights, result)
    drawn = jax.vmap(lambda key: base.sample(space, key))(
      jax.random.split(random_key, max(count, 1))
    )
    summary["random_cells"] = []
    with run.records("control_records") as records:
      for number in range(count):
        own = np.asarray(drawn[number])
        label = f"random cell {number + 1} of {count}"
        found, _ = self._train(retrain_key, own, label)
        row = {"arch": space.describe(own), "score": None, **found}
        records.write(row)
        summary["random_cells"].append(row)

  def _search(self, key: jax.Array, summary: dict[str, Any]) -> np.ndarray:
    """The supernet's search; the genotype of its last epoch."""
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
    rng = np.random.default_rng(int(counter.seed(windows_key)))
    state = self.strategy.init(init_key)
    summary["supernet_params"] = cell_rnn.num_params(state.weights)
    # See `strategies.darts`: on a CPU the step is not compiled as a whole.
    whole = jax.default_backend() != "cpu"
    step = self.strategy.step
    step = jax.jit(step, donate_argnums=0) if whole else step
    test = recurrent.supernet_tester(self.supernet, window)
    nothing = jnp.zeros((batch, self.supernet.hidden))
    run.log(f"compiling the supernet's step, {summary['supernet_params']:,} weights")
    genotype = self.strategy.derive(state)
    valid_hidden, done = nothing, 0
    total = config.epochs * (len(streams["train"]) - 1)
    with (
      run.progress(total, "search", "steps of the text") as progress,
      run.records() as out,
    ):
      for epoch in range(config.epochs):
        hidden, seen = nothing, []
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
            f"epoch {epoch + 1} of the search: {error}; the epochs before are in "
            f"{run.workdir / 'records.jsonl'}"
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
        out.write(row)
        run.metrics.write(
          epoch + 1,
          {k: float(v) for k, v in row.items() if k not in ("epoch", "arch", "alphas")},
        )
        summary |= {
          "epochs_searched": epoch + 1,
          "supernet_perplexity": float(np.exp(valid)),
        }
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
    return genotype

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
    self._next = 0

  def step(self) -> tuple[np.int32, np.int32, bool]:
    """Start and length of the next window, and whether the streams begin again."""
    number = self._next
    self._next = (number + 1) % len(self._cuts.starts)
    return self._cuts.starts[number], self._cuts.lengths[number], number == 0


def num_identities(genotype: np.ndarray, space: RecurrentCell) -> int:
  """Nodes that only copy what they read."""
  return sum(edge.op == "identity" for edge in space.decode(genotype))
