"""Rungs: after which epochs a child is compared with others and may be stopped.

The stopping rule of asynchronous successive halving (Li et al., "A system for massively
parallel hyperparameter tuning", MLSys 2020, section 3.1: the variant that stops
children instead of promoting paused ones, so nothing has to be kept for later; the idea
is Jamieson and Talwalkar's, AISTATS 2016).

Differences from the paper: a child is compared with those of earlier rounds and itself,
not with those of its own round. Which of these is the first at a rung depends on cores
and compile times; without them a child's result depends, as everywhere in `training`,
on no neighbour, order or layout. The price is that the first round is trained in full.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from nasjax.core.types import InputError


def check_rungs(rungs: Sequence[int], eta: int, name: str = "rungs") -> None:
  """Refuses what cannot be halved.

  Args:
    rungs: fidelities, as a user gave them.
    eta: one of so many children goes on.
    name: of the rungs, for the message; `eta` is named by the same prefix.

  Raises:
    InputError: the rungs are none, not positive or do not rise, or eta is below 2.
  """
  rising = all(low < high for low, high in zip(rungs, rungs[1:]))
  if not rungs or rungs[0] < 1 or not rising:
    shown = ",".join(map(str, rungs)) or "none"
    raise InputError(f"{name} must be positive and rise, got {shown}")
  if eta < 2:
    raise InputError(f"{name.removesuffix('rungs')}eta must be at least 2, got {eta}")


class Halving(NamedTuple):
  """The rule, and what it compares with.

  Attributes:
    rungs: R epoch numbers, ascending; the last is the end and is not decided on.
    eta: the best 1 / eta of those who reached a rung go on.
    seen: R - 1 arrays, ascending: by rung the best metric until then of every child of
      earlier rounds that reached it and did not fail.
  """

  rungs: tuple[int, ...]
  eta: int
  seen: tuple[np.ndarray, ...]

  def goes_on(self, epoch: np.ndarray, best: np.ndarray) -> np.ndarray:
    """Which of Q children go on.

    Among n children, this one included, the first floor(n / eta) go on, and whoever
    equals the last of them; where n is below eta there is nothing to compare with yet,
    and a child passes.

    Args:
      epoch: `[Q]` that each has just done.
      best: `[Q]` highest metric of each until then, -inf for none.

    Returns:
      `[Q]` bool; true after an epoch that is no rung.
    """
    passes = np.ones(len(best), bool)
    for rung, seen in zip(self.rungs, self.seen):
      here = np.asarray(epoch) == rung
      better = len(seen) - np.searchsorted(seen, best[here], side="right")
      places = (len(seen) + 1) // self.eta
      passes[here] = (better < places) if places else True
    return passes

  def after(self, curves: np.ndarray, failed: Sequence[bool]) -> "Halving":
    """The rule for the next round.

    Args:
      curves: `[P, T]` metrics of a round, NaN where no epoch was run.
      failed: `[P]`; what failed is compared with nobody.

    Returns:
      A new one.
    """
    sound = np.asarray(curves)[~np.asarray(failed, bool)]
    ran = (~np.isnan(sound)).sum(-1)
    best = np.where(np.isnan(sound), -np.inf, sound)
    seen = [
      np.sort(np.concatenate([before, best[ran >= rung, :rung].max(-1)]))
      for rung, before in zip(self.rungs, self.seen)
    ]
    return self._replace(seen=tuple(seen))


def begin(rungs: Sequence[int], eta: int, epochs: int, name: str = "rungs") -> Halving:
  """The rule of a first round, which stops nobody.

  Args:
    rungs: ascending; the last is all `epochs`.
    eta: at least 2.
    epochs: T of a child.
    name: of the rungs, for messages.

  Raises:
    InputError: see `check_rungs`, or the last rung is another number than the epochs.
  """
  check_rungs(rungs, eta, name)
  if rungs[-1] != epochs:
    raise InputError(f"{name} must end with all {epochs} epochs, got {rungs[-1]}")
  nothing = tuple(np.zeros(0, np.float32) for _ in rungs[:-1])
  return Halving(tuple(rungs), eta, nothing)
