"""The strategies that are compared on a table, with their settings."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from nasjax.estimators.base import Estimator
from nasjax.estimators.successive_halving import (
  brackets,
  hyperband,
  successive_halving,
)
from nasjax.spaces.base import Enumerable
from nasjax.strategies.bananas import bananas
from nasjax.strategies.base import Strategy
from nasjax.strategies.bayesian import bayesian
from nasjax.strategies.evolution import evolution
from nasjax.strategies.local_search import local_search
from nasjax.strategies.random_search import random_search
from nasjax.strategies.reinforce import reinforce

_STEP = 3  # rungs of a table are at least this factor apart


class Setting(NamedTuple):
  """What a strategy is made for.

  Attributes:
    space: the space.
    capacity: evaluations that a search has room for.
    rungs: of halving, epochs.
    eta: of halving.
    policy_learning_rate: of `reinforce_independent`.
  """

  space: Enumerable
  capacity: int
  rungs: tuple[int, ...]
  eta: int
  policy_learning_rate: float


class Competitor(NamedTuple):
  """A strategy, and the wrapper of the estimator that it is used with.

  Attributes:
    strategy: `(setting) -> Strategy`.
    wrapper: out of `estimators.successive_halving`; None to measure at the protocol's
      fidelity.
  """

  strategy: Callable[[Setting], Strategy]
  wrapper: Callable[..., Estimator] | None = None


def _reinforce_independent(to: Setting) -> Strategy:
  """Dong and Yang's: one child an update, the plain score, nothing but its policy."""
  return reinforce(
    to.space,
    policy="independent",
    population=1,
    max_evaluations=to.capacity,
    learning_rate=to.policy_learning_rate,
    learning_rate_decay=0.0,
    clip_norm=math.inf,
    updates=1,
    corrected=True,
    utility="score",
    predictor=0.0,
    distinct=False,
  )


# Papers' values, but for what a table and its budget call for. Evolution's P and S
# are NATS-Bench's; rounds of halving start with as many children as leave one at the
# last rung. So that ten strategies take minutes, the LSTM has 32 units, five updates a
# round and no predictor, and surrogates judge fewer candidates than by default.
STRATEGIES: dict[str, Competitor] = {
  "random_search": Competitor(
    lambda to: random_search(
      to.space, population=1, max_evaluations=to.capacity, distinct=False
    )
  ),
  "local_search": Competitor(lambda to: local_search(to.space)),
  "local_search_steepest": Competitor(
    lambda to: local_search(to.space, rule="steepest")
  ),
  "evolution": Competitor(lambda to: evolution(to.space, population=10, sample=3)),
  "reinforce_independent": Competitor(_reinforce_independent),
  "reinforce_lstm": Competitor(
    lambda to: reinforce(
      to.space, max_evaluations=to.capacity, hidden=32, updates=5, predictor=0.0
    )
  ),
  "bayesian": Competitor(
    lambda to: bayesian(
      to.space, max_evaluations=to.capacity, num_mutants=40, num_draws=10
    )
  ),
  "bananas": Competitor(
    lambda to: bananas(to.space, max_evaluations=to.capacity, num_mutants=60, steps=20)
  ),
  "successive_halving": Competitor(
    lambda to: random_search(
      to.space,
      population=to.eta ** (len(to.rungs) - 1),
      max_evaluations=to.capacity,
    ),
    successive_halving,
  ),
  "hyperband": Competitor(
    lambda to: random_search(
      to.space,
      population=sum(brackets(len(to.rungs), to.eta)),
      max_evaluations=to.capacity,
    ),
    hyperband,
  ),
}
CONTROL = "random_search"


def rungs_of(epochs: np.ndarray) -> tuple[int, ...]:
  """Fidelities for halving: from the full one down, each at most a third of the last.

  Args:
    epochs: `[R]` that the table has, ascending.
  """
  rungs = [int(epochs[-1])]
  while (epochs * _STEP <= rungs[0]).any():
    rungs.insert(0, int(epochs[epochs * _STEP <= rungs[0]][-1]))
  return tuple(rungs)


def eta_of(rungs: tuple[int, ...]) -> int:
  """The ratio of successive rungs, rounded, at least 2: what halving divides by.

  Hyperband's brackets spend about the same when rungs are a factor eta apart (Li et al.
  2018, algorithm 1). Of ratios that differ it is the geometric mean: rungs of 12 and
  200 epochs have 17, of 1, 4 and 12 have 3. Of a single rung, where nothing is divided,
  it is 2.
  """
  steps = max(len(rungs) - 1, 1)
  return max(2, round((rungs[-1] / rungs[0]) ** (1 / steps)))
