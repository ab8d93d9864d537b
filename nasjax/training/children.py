"""Children on their way through a population trainer, whatever the layout.

Between calls everything of a child is exact and on the host: its weights, and, where it
may be trained on, Adam's moments. A program has its own form of them.
"""

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from nasjax.core import counter
from nasjax.networks import mlp, tiled
from nasjax.spaces.mlp_chain import Layer
from nasjax.training.packing import TILED, Program
from nasjax.training.step import EarlyStopping, Hyper, Schedule, TrainState, start


class Paused(NamedTuple):
  """What training a child on takes, beside the child itself.

  Attributes:
    state: exact weights and moments after its last epoch.
    best_value: `[2]`, see `EarlyStopping`.
  """

  state: TrainState
  best_value: np.ndarray


class Child(NamedTuple):
  """One trained child, on the host.

  Attributes:
    layers: its hidden layers.
    weights: exact weights of its best epoch; None when it failed.
    curve: `[T]` validation metric by epoch, NaN where none was run.
    valid_loss: `[T]` likewise.
    epochs_run: how many epochs ran.
    best_epoch: which of them was the best, from 1; 0 when none was.
    seconds: run time, compilation apart (a vmapped program's time is shared out
      equally).
    failure: why it failed, in a few words; None when it did not.
    stopped: it stopped by itself, out of patience or because it failed.
    stopped_at_rung: it was not among the best there, see `training.rungs`.
    bracket: of Hyperband's, the one that it was compared in; None without.
    paused: to train it on; None if that was not asked for, or it stopped.
  """

  layers: tuple[Layer, ...]
  weights: mlp.Weights | None
  curve: np.ndarray
  valid_loss: np.ndarray
  epochs_run: int
  best_epoch: int
  seconds: float
  failure: str | None
  stopped: bool = False
  stopped_at_rung: bool = False
  bracket: int | None = None
  paused: Paused | None = None


LoadWeights = Callable[[tuple[Layer, ...], mlp.Weights], mlp.Weights]


class Round(NamedTuple):
  """What all groups of one call share."""

  layers: list[tuple[Layer, ...]]
  init_seeds: np.ndarray  # [P] uint32
  dropout_seeds: np.ndarray  # [P] uint32
  batches: list[jax.Array]  # T of [S, B]
  schedule: Schedule  # [T, S]
  hyper: Hyper
  load: LoadWeights | None
  before: list[Child | None]  # P; who is trained on, from where it is
  keep: bool  # what training on takes
  cancelled: threading.Event

  def inputs(self, epoch: int, seeds: np.ndarray) -> tuple[Any, ...]:
    """The rows, the dropout seeds `[..., S]` and the rates of one epoch."""
    num_steps = self.schedule.first.shape[1]
    now = slice(epoch * num_steps, (epoch + 1) * num_steps)
    schedule = jax.tree.map(lambda sizes: sizes[epoch], self.schedule)
    return seeds[..., now], self.batches[epoch], schedule

  def step_seeds(self, i: int) -> np.ndarray:
    """`[T * S]` uint32: a child's dropout seed of every step."""
    step = np.arange(self.schedule.first.size, dtype=np.uint32)
    return counter.fold(self.dropout_seeds[i], step)

  def state(self, i: int, program: Program, bounds: tiled.Bounds) -> TrainState:
    """A child's state where training it begins or goes on, in the program's form."""
    layers, before = self.layers[i], self.before[i]
    if before is not None and before.paused is not None:
      weights, *moments = before.paused.state
      forms = [_form(moment, layers, program, bounds, 0.0) for moment in moments]
      return TrainState(_form(weights, layers, program, bounds), *forms)
    weights = mlp.init(self.init_seeds[i], layers, bounds.features, bounds.outputs)
    if self.load:
      weights = self.load(layers, weights)
    return start(_form(weights, layers, program, bounds))

  def best(self, i: int) -> mlp.Weights | None:
    """Exact weights of a child's best epoch of those before; None without any."""
    before = self.before[i]
    return before.weights if before is not None and before.paused is not None else None

  def best_form(self, i: int, program: Program, bounds: tiled.Bounds) -> Any:
    """The same in the program's form."""
    before, best = self.before[i], self.best(i)
    if best is None:  # no epoch was better than none, and none is looked at
      assert before is not None and before.paused is not None
      best = before.paused.state.weights
    return _form(best, self.layers[i], program, bounds)

  def book(self, members: list[int]) -> EarlyStopping:
    """The book of some children, with what was entered before."""
    book = EarlyStopping(len(members), len(self.batches), self.hyper)
    for row, i in enumerate(members):
      before = self.before[i]
      if before is not None and before.paused is not None:
        record = before.curve, before.valid_loss, before.epochs_run, before.best_epoch
        book.reopen(row, *record, before.paused.best_value)
    return book

  def child(
    self,
    i: int,
    book: EarlyStopping,
    row: int,
    best: mlp.Weights | None,
    state: TrainState | None,
    seconds: float,
  ) -> Child:
    """What training left of child i, whose row of the book that is.

    Args:
      i: which.
      book: of those trained together.
      row: its own.
      best: exact weights of its best epoch.
      state: exact, of its last epoch, where it is to be kept.
      seconds: that it took.
    """
    failed, epochs_run = bool(book.diverged[row]), int(book.epochs_run[row])
    stopped = failed or bool(book.out_of_patience[row])
    paused = None
    if state is not None and not stopped:
      paused = Paused(state, book.best_value[row].copy())
    return Child(
      layers=self.layers[i],
      weights=None if failed else best,
      curve=book.curve[row],
      valid_loss=book.valid_loss[row],
      epochs_run=epochs_run,
      best_epoch=int(book.best_epoch[row]),
      seconds=seconds,
      failure=f"diverged in epoch {epochs_run}" if failed else None,
      stopped=stopped,
      paused=paused,
    )


def _form(
  exact: mlp.Weights,
  layers: tuple[Layer, ...],
  program: Program,
  bounds: tiled.Bounds,
  identity: float = 1.0,
) -> Any:
  """Exact weights, or moments of them (`identity` 0), as a program has them."""
  if program.frame:
    return mlp.pad(exact, layers, program.frame, bounds.outputs, identity)
  return tiled.pack(exact, bounds) if program == TILED else exact


def exact_of(
  weights: Any, layers: tuple[Layer, ...], program: Program, bounds: tiled.Bounds
) -> mlp.Weights:
  """The inverse, on the host, also of moments; arrays may be views of those given."""
  if program == TILED:
    return tiled.cut(weights, layers, bounds)
  weights = jax.tree.map(np.asarray, weights)
  return mlp.cut(weights, layers) if program.frame else weights
