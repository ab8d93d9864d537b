"""The DARTS job on texts; see `common_darts_job`.

Liu, Simonyan and Yang, ICLR 2019, sections 3.1.2 and A.2: what is searched is the cell
of a recurrent language model.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import common_darts_text_report
from experiments.common_darts_job import Copies, Job, Search
from experiments.common_darts_text import DARTSTextConfig, check
from nasjax.core import counter, keys, trees
from nasjax.core.types import InputError
from nasjax.data import text as text_lib
from nasjax.data.text import Text
from nasjax.networks import cell_rnn, supernet_rnn
from nasjax.runtime import Run
from nasjax.spaces.recurrent_cell import RecurrentCell
from nasjax.strategies import darts
from nasjax.training import portable_text, recurrent


def run_darts(config: DARTSTextConfig, run: Run, text: Text) -> None:
  """Search, derive, retrain, control, report; see `common_darts_job.Job.execute`.

  Raises:
    InputError: for a config that does not fit the text (nothing was touched then), or
      alphas that became NaN, saying which and when.
  """
  _TextJob(config, run, text).execute()


class _TextJob(Job):
  """A job on a text."""

  validated = ("supernet_perplexity", "valid_perplexity")
  columns = ["validation perplexity", "test perplexity", "parameters"]

  def __init__(self, config: DARTSTextConfig, run: Run, text: Text):
    self.config, self.run, self.text = config, run, text
    self.space, self.given = check(config)
    self.copies = Copies(
      name="identities",
      entry="identities",
      most=config.nodes,
      alarm=common_darts_text_report.collapsed_from(self.space),
      stopped="{} nodes only copy",
      collapsed="the cell has collapsed: {} of its {} nodes only copy",
    )
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

  def describe_data(self) -> tuple[str, dict[str, Any]]:
    text = self.text
    return text_lib.describe(text), {
      "name": text.name,
      "unit": text.unit,
      "tokens": {s: len(getattr(text, s)) for s in ("train", "valid", "test")},
      "vocabulary": len(text.vocabulary),
      "unknown": text.unknown,
    }

  def data_digest(self) -> int:
    text = self.text
    return trees.digest((text.train, text.valid, text.test), text.vocabulary)

  def make_search(self, key: jax.Array) -> Search:
    config, window = self.config.strategy, self.config.window
    init_key, windows_key, masks_key = keys.named(key, "init", "windows", "masks")
    streams = {
      name: text_lib.streams(tokens, config.batch_size)
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
    # See `strategies.darts`: on a CPU the step is not compiled as a whole.
    whole = jax.default_backend() != "cpu"
    step = self.strategy.step
    step = jax.jit(step, donate_argnums=0) if whole else step
    test = recurrent.supernet_tester(self.supernet, window)
    nothing = jnp.zeros((config.batch_size, self.supernet.hidden))

    def epoch(number: int, carry: tuple, advance: Callable[[int], None]):
      state, valid_hidden, walked = carry
      hidden, seen, done, last = nothing, [], 0, None
      rng = np.random.default_rng([windows_seed, number])
      cuts = text_lib.windows(len(streams["train"]), window, rng)
      for place, (start, length) in enumerate(zip(*cuts)):
        own_key = jax.random.fold_in(jax.random.fold_in(masks_key, number), place)
        train_key, valid_key = keys.named(own_key, "train", "valid")
        valid_start, valid_length = walk.window(walked)
        valid_hidden = valid_hidden if walked else nothing
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
        walked = walk.after(walked)
        seen.append([info.auxiliary.cross_entropy, info.valid_loss])
        # For the step before: the device has the next one when it is done with one.
        jax.block_until_ready(last)
        last = info.valid_loss
        done += int(length)
        advance(done)
      valid = float(test((state.weights, state.alphas), streams["valid"]))
      train, outer = np.average(
        np.asarray(jax.device_get(seen)), axis=0, weights=cuts.lengths
      )
      return (state, valid_hidden, walked), {
        "train_loss": train,
        "train_perplexity": np.exp(train),
        "outer_loss": outer,
        "valid_loss": valid,
        "valid_perplexity": np.exp(valid),
      }

    return Search(
      num_params=cell_rnn.num_params(state.weights),
      steps=len(streams["train"]) - 1,
      unit="steps of the text",
      carry=(state, nothing, 0),
      epoch=epoch,
    )

  def derive(self, epoch: int, state: Any) -> np.ndarray:
    try:
      return self.strategy.derive(state)
    except InputError as error:
      raise InputError(
        f"epoch {epoch} of the search: {error}; the epochs before are kept in "
        f"records.jsonl and checkpoints/ of {self.run.workdir}"
      ) from None

  def train(
    self, key: jax.Array, genotype: np.ndarray, label: str, name: str
  ) -> tuple[dict[str, Any], Any]:
    """See `Job.train`; a model is the weights of the best epoch."""
    run, cell, epochs = self.run, self.space.decode(genotype), self.recipe.epochs
    start = time.perf_counter()
    checkpoints = run.checkpoints(name)
    course: recurrent.Course | None = None  # up to the last epoch that did not diverge

    def resume(fresh: recurrent.Course) -> recurrent.Course:
      nonlocal start, course
      saved = checkpoints.restore((fresh, 0.0)) if run.resumed else None
      if saved is None:
        return fresh
      done, (course, seconds) = saved
      start -= seconds
      run.log(f"{label}: goes on after epoch {done}")
      return course

    trained = recurrent.train_derived(
      key,
      self.network,
      cell,
      self.text.train,
      self.test_streams["valid"],
      self.recipe,
      resume,
    )
    with (
      checkpoints,
      run.progress(epochs, label, "epochs") as progress,
    ):
      for each in trained:
        if not np.isfinite([each.train_loss, each.valid_loss]).all():
          run.warn(f"{label} diverged in epoch {each.epoch}; its best epoch is kept")
          break
        course = each.course
        progress.update(each.epoch, perplexity=f"{np.exp(each.valid_loss):.3f}")
        if each.epoch < epochs:  # after the last one there is nothing to go on with
          checkpoints.save(each.epoch, (course, time.perf_counter() - start))
    result: dict[str, Any] = {
      "test_perplexity": None,
      "test_loss": None,
      "valid_perplexity": None,
      "best_epoch": None,
      "averaged_from": None,
      "num_params": cell_rnn.num_params(cell_rnn.init(np.uint32(0), self.network)),
      "flops": recurrent.derived_flops(self.network, cell),
      "train_loss": None,
      "curve": [],
    }
    if course is not None:
      test = recurrent.derived_tester(self.network, cell, self.config.window)
      loss = float(test(course.best, self.test_streams["test"]))
      best = int(course.valid_losses.argmin())
      curve = np.exp(course.valid_losses).tolist()
      began = 0 < course.since < len(curve)
      result |= {
        "test_loss": loss,
        "test_perplexity": float(np.exp(loss)),
        "valid_perplexity": curve[best],
        "best_epoch": best + 1,
        "averaged_from": course.since + 1 if began else None,
        "train_loss": float(course.train_losses[best]),
        "curve": curve,
      }
    result["seconds"] = time.perf_counter() - start
    return result, None if course is None else course.best

  def export(self, genotype: np.ndarray, model: Any, result: dict[str, Any]) -> None:
    portable_text.save(
      self.run.workdir / "best",
      space=self.space,
      genotype=genotype,
      network=self.network._asdict(),
      weights=model,
      text=self.text,
      metrics={
        name: result[name]
        for name in ("valid_perplexity", "test_perplexity", "test_loss")
      },
      log=self.run.log,
    )

  def num_copies(self, genotype: np.ndarray) -> int:
    return num_identities(genotype, self.space)

  def write_report(self, summary: Mapping[str, Any]) -> Any:
    return common_darts_text_report.write(self.run, summary, self.space)

  def result_row(self, result: Mapping[str, Any]) -> list[str]:
    names = ("valid_perplexity", "test_perplexity")
    said = ["diverged" if result[k] is None else f"{result[k]:.3f}" for k in names]
    return [*said, f"{result['num_params']:,}"]


class _Walk:
  """Windows of the alphas' streams, one after the other, over and over."""

  def __init__(self, streams: np.ndarray, window: int):
    self._cuts = text_lib.windows(len(streams), window)

  def window(self, position: int) -> tuple[np.int32, np.int32]:
    """Start and length of a window; at position 0 the streams begin."""
    return self._cuts.starts[position], self._cuts.lengths[position]

  def after(self, position: int) -> int:
    """The position of the next one."""
    return (position + 1) % len(self._cuts.starts)


def num_identities(genotype: np.ndarray, space: RecurrentCell) -> int:
  """Nodes that only copy what they read."""
  return sum(edge.op == "identity" for edge in space.decode(genotype))
