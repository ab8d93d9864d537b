"""Rungs: after which epochs children are compared, and who is trained any further.

Successive halving (Jamieson and Talwalkar, AISTATS 2016) of every round of a search; as
many go on as in Hyperband (Li et al., JMLR 2018, algorithm 1).

Difference from the paper: a child must be among the best of its own round and among the
best of all so far, too. The former alone would train somebody to the end in every round
of a search that has left those children behind; the latter alone passes most children
of a search that gets better from round to round.
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
    seen: R - 1 arrays: by rung what every child that reached it had there.
  """

  rungs: tuple[int, ...]
  eta: int
  seen: tuple[np.ndarray, ...]

  def choose(self, rung: int, values: np.ndarray) -> tuple[np.ndarray, "Halving"]:
    """Who of a round goes on after a rung.

    Of n children the first floor(n / eta), but at least one, go on, and whoever equals
    the last of them; asked of the round, and of the round with all that were there
    before.

    Args:
      rung: its index, not the last.
      values: `[Q]` highest metric so far of those of the round that reached it.

    Returns:
      (`[Q]` bool, the rule with these children among those that it has seen).
    """
    values = np.asarray(values, np.float32)
    everyone = np.concatenate([self.seen[rung], values])
    passes = np.ones(len(values), bool)
    for others in (values, everyone):
      better = (others[None] > values[:, None]).sum(-1)
      passes &= better < max(len(others) // self.eta, 1)
    seen = tuple(everyone if r == rung else old for r, old in enumerate(self.seen))
    return passes, self._replace(seen=seen)


def begin(rungs: Sequence[int], eta: int, epochs: int, name: str = "rungs") -> Halving:
  """The rule of a first round.

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
