"""Rungs: after which epochs children are compared, and who is trained any further.

Successive halving (Jamieson and Talwalkar, AISTATS 2016) of every round of a search; as
many go on as in Hyperband (Li et al., JMLR 2018, algorithm 1). Hyperband itself, which
hedges against a first rung that misleads, is several such rules side by side: a bracket
is compared for the first time at a later rung than the one before it.

Difference from the paper: a child must be among the best of its own round and among the
best of all so far, too. The former alone would train somebody to the end in every round
of a search that has left those children behind; the latter alone passes most children
of a search that gets better from round to round. (Of Hyperband: of its own bracket in
its round, and of all so far in such brackets.)
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np

from nasjax.core.types import InputError

Kind = Literal["successive", "hyperband"]
KINDS: tuple[Kind, ...] = get_args(Kind)


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


def begin(
  rungs: Sequence[int],
  eta: int,
  epochs: int,
  kind: Kind = "successive",
  name: str = "rungs",
) -> tuple[Halving, ...]:
  """The rules of a first round, one for each bracket.

  Args:
    rungs: ascending; the last is all `epochs`.
    eta: at least 2.
    epochs: T of a child.
    kind: "successive" for one bracket; "hyperband" for R of them, of which bracket b
      has all rungs but the first b: the last compares nobody.
    name: of the rungs, for messages.

  Raises:
    InputError: see `check_rungs`, the last rung is another number than the epochs, or
      there is no such kind.
  """
  check_rungs(rungs, eta, name)
  if rungs[-1] != epochs:
    raise InputError(f"{name} must end with all {epochs} epochs, got {rungs[-1]}")
  if kind not in KINDS:
    raise InputError(f"unknown halving {kind!r}; there are {', '.join(KINDS)}")
  firsts = range(len(rungs) if kind == "hyperband" else 1)
  brackets = [tuple(rungs[first:]) for first in firsts]
  nothing = np.zeros(0, np.float32)
  return tuple(Halving(each, eta, (nothing,) * (len(each) - 1)) for each in brackets)
