"""The DARTS job, whatever it searches: search, derive, retrain, control, report.

Liu, Simonyan and Yang, "DARTS: differentiable architecture search", ICLR 2019: alphas
and weights of a supernet descend in turn, the strongest operations make a genotype, and
its network is trained from scratch and tested once. Random cells of the same space,
trained alike, are the control. `common_darts_run` has it for images,
`common_darts_text_run` for texts.
"""

import abc
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.common_darts import NO_SCALARS
from nasjax import runtime
from nasjax.core import interrupts, keys
from nasjax.core.types import InputError
from nasjax.runtime import Run
from nasjax.spaces import base
from nasjax.strategies.base import GradientStrategy


class Copies(NamedTuple):
  """The operations of a cell that only copy: a search that collapses ends in them.

  Attributes:
    name: of the count of them, in records; `strategy.stop_at_<name>` ends a search.
    entry: of the count in the summary.
    most: how many a cell can have.
    alarm: so many are a collapse.
    stopped: what an early end says, with a place for the count.
    collapsed: what the alarm says, with places for the count and for `most`.
  """

  name: str
  entry: str
  most: int
  alarm: int
  stopped: str
  collapsed: str


class Search(NamedTuple):
  """A search that is ready to begin.

  Attributes:
    num_params: of the supernet.
    steps: of an epoch, as progress counts them.
    unit: of these.
    carry: all that the epochs to come depend on, beside the key; the strategy's state
      comes first.
    epoch: `(number, carry, advance) -> (carry, row)`, where `advance(done)` is told how
      many steps of the epoch are done and `row` is what was measured, by name.
    place: puts a carry that was restored where `epoch` wants it.
  """

  num_params: int
  steps: int
  unit: str
  carry: tuple
  epoch: Callable[[int, tuple, Callable[[int], None]], tuple[tuple, dict[str, Any]]]
  place: Callable[[tuple], tuple] = lambda carry: carry


class Job(abc.ABC):
  """The parts of a job, made before anything is written, and the work.

  Attributes:
    config: with the sections `strategy` and `retrain`, and `random_cells`.
    run: its directory.
    space: of the cells.
    given: a genotype `[D]` to train without a search, if any.
    strategy: of the search.
    copies: of a cell.
    validated: names of the supernet's validation, in the summary and in a record.
    columns: of the table of the result.
  """

  config: Any
  run: Run
  space: Any
  given: np.ndarray | None
  strategy: GradientStrategy
  copies: Copies
  validated: tuple[str, str]
  columns: list[str]

  @abc.abstractmethod
  def describe_data(self) -> tuple[str, dict[str, Any]]:
    """What was read: in a line, and as the summary has it."""

  @abc.abstractmethod
  def data_digest(self) -> int:
    """Tells whether the data are still those that they were (`core.trees.digest`)."""

  @abc.abstractmethod
  def make_search(self, key: jax.Array) -> Search:
    """The supernet's search."""

  @abc.abstractmethod
  def train(
    self, key: jax.Array, genotype: np.ndarray, label: str, name: str
  ) -> tuple[dict[str, Any], Any]:
    """One network from scratch: what it gave, and the model, None if there is none.

    Its checkpoints are called `name`; whoever keeps the result clears them.
    """

  @abc.abstractmethod
  def export(self, genotype: np.ndarray, model: Any, result: dict[str, Any]) -> None:
    """The derived network as files: `best/`."""

  @abc.abstractmethod
  def num_copies(self, genotype: np.ndarray) -> int:
    """How many operations of the cell only copy."""

  @abc.abstractmethod
  def write_report(self, summary: Mapping[str, Any]) -> Any:
    """Writes the report and gives its path."""

  @abc.abstractmethod
  def result_row(self, result: Mapping[str, Any]) -> list[str]:
    """What the table of the result says of a network, its name left out."""

  def derive(self, epoch: int, state: Any) -> np.ndarray:
    """The genotype `[D]` after an epoch, counted from 1.

    Raises:
      InputError: an alpha is not finite.
    """
    del epoch
    return self.strategy.derive(state)

  def remember(self, epoch: int, genotype: np.ndarray, carry: tuple) -> None:
    """Called with the end of every epoch, and of the one that a run goes on after."""
    del epoch, genotype, carry

  def execute(self) -> None:
    """Search, derive, retrain, control, report.

    On Ctrl-C what was recorded is kept, and the report of it is written. An unfinished
    run goes on after its last whole epoch, and ends as if it had not stopped.

    Raises:
      InputError: alphas that became NaN, saying which.
    """
    run = self.run
    run.begin(resumes=True, data=self.data_digest())
    line, data = self.describe_data()
    summary: dict[str, Any] = {
      "experiment": run.experiment,
      "seed": run.seed,
      "status": "interrupted",
      "data": data,
      "environment": runtime.environment(),
      "command": run.command,
      "warnings": [],
    }
    run.log(line)
    try:
      self._work(summary)
      summary["status"] = "finished"
    except InputError as error:
      summary |= {"status": "failed", "failure": str(error)}
      raise
    finally:
      summary |= run.compile_stats()
      run.write_summary(summary)
      run.log(f"report: {self.write_report(summary)}")
      if summary["status"] == "interrupted":
        run.log("the same command goes on from the last whole epoch")
    self._print_result(summary)

  def _work(self, summary: dict[str, Any]) -> None:
    """Enters what each step gave."""
    run, space, count = self.run, self.space, self.config.random_cells
    search_key, retrain_key, random_key = keys.named(
      run.key, "search", "retrain", "random"
    )
    if self.given is None:
      # In the summary as the search goes on: an interrupted one is reported, too.
      summary |= run.once("search", lambda: self._search(search_key, summary))
      genotype = np.array(summary.pop("genotype"), np.int32)
    else:
      genotype = self.given
    arch = space.describe(genotype)
    summary |= {"arch": arch, self.copies.entry: self.num_copies(genotype)}

    def derived() -> dict[str, Any]:
      run.log(f"training from scratch: {arch}")
      result, model = self.train(retrain_key, genotype, "the derived cell", "derived")
      if model is not None:
        self.export(genotype, model, result)
      return result

    summary |= run.once("derived", derived)
    run.checkpoints("derived").clear()  # not before: an export may be interrupted
    drawn = jax.vmap(lambda key: base.sample(space, key))(
      jax.random.split(random_key, max(count, 1))
    )
    summary["random_cells"] = []
    run.rewind("control_records", 0, "control")  # written again from what stages gave
    with run.records("control_records") as records:
      for number in range(1, count + 1):
        cell, label = np.asarray(drawn[number - 1]), f"random cell {number} of {count}"
        name = f"random_{number}"
        train = functools.partial(self.train, retrain_key, cell, label, name)
        found = run.once(name, functools.partial(_result_of, train))
        run.checkpoints(name).clear()
        row = {"arch": space.describe(cell), "score": None, **found}
        records.write(row)
        summary["random_cells"].append(row)

  def _search(self, key: jax.Array, summary: dict[str, Any]) -> dict[str, Any]:
    """The supernet's search; entries of the summary, and the last epoch's genotype."""
    run, space, copies = self.run, self.space, self.copies
    epochs = self.config.strategy.epochs
    stop_at = getattr(self.config.strategy, f"stop_at_{copies.name}")
    search = self.make_search(key)
    summary["supernet_params"] = search.num_params
    run.log(f"compiling the supernet's step, {search.num_params:,} weights")
    checkpoints, carry = run.checkpoints("search"), search.carry
    before: list[dict[str, Any]] = []
    first, seconds = 0, 0.0
    if run.resumed:
      saved = checkpoints.restore((*carry, seconds))
      if saved:
        first, (*parts, seconds) = saved
        carry = search.place(tuple(parts))
        run.log(f"search: goes on after epoch {first}")
      before = run.rewind("records", first, "search")
    start = time.perf_counter() - seconds
    genotype = self.strategy.derive(carry[0])
    if before:
      self._enter(summary, before[-1])
      self.remember(first, genotype, carry)
    with (
      checkpoints,
      run.progress(epochs * search.steps, "search", search.unit) as progress,
      run.records() as out,
    ):
      for number in range(first, epochs):
        if before and 0 < stop_at <= before[-1][copies.name]:
          break

        def advance(done: int, number=number) -> None:
          progress.update(number * search.steps + done, epoch=number + 1)

        carry, measured = search.epoch(number, carry, advance)
        genotype = self.derive(number + 1, carry[0])
        row = {
          "epoch": number + 1,
          **measured,
          copies.name: self.num_copies(genotype),
          "arch": space.describe(genotype),
          "alphas": carry[0].alphas,
        }
        with interrupts.held():
          out.write(row)
          run.metrics.write(
            number + 1,
            {f"search/{k}": float(v) for k, v in row.items() if k not in NO_SCALARS},
          )
          self._enter(summary, row)
          self.remember(number + 1, genotype, carry)
          checkpoints.save(number + 1, (*carry, time.perf_counter() - start))
        if 0 < stop_at <= row[copies.name]:
          said = copies.stopped.format(row[copies.name])
          run.log(f"stopped after epoch {number + 1}: {said}")
          break
    copied = self.num_copies(genotype)
    if copied >= copies.alarm:
      warning = (
        f"{copies.collapsed.format(copied, copies.most)}; --config.strategy."
        f"stop_at_{copies.name} ends a search before"
      )
      run.warn(warning)
      summary["warnings"].append(warning)
    names = ("supernet_params", "epochs_searched", self.validated[0], "warnings")
    return {name: summary[name] for name in names if name in summary} | {
      "search_seconds": time.perf_counter() - start,
      "genotype": genotype.tolist(),
    }

  def _enter(self, summary: dict[str, Any], row: Mapping[str, Any]) -> None:
    """How far the search is, into the summary."""
    entry, name = self.validated
    summary |= {"epochs_searched": row["epoch"], entry: float(row[name])}

  def _print_result(self, summary: dict[str, Any]) -> None:
    """The result as a table for the user."""
    named = [("derived cell", summary)]
    named += [
      (f"random cell {number}", row)
      for number, row in enumerate(summary["random_cells"], 1)
    ]
    rows = [[name, *self.result_row(result)] for name, result in named]
    self.run.table("Result", ["", *self.columns], rows)


def _result_of(train: Callable[[], tuple[dict[str, Any], Any]]) -> dict[str, Any]:
  """What a training gave, without its network."""
  return train()[0]
