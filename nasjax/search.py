"""The search: a strategy and an estimator, round after round."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from nasjax.core import keys
from nasjax.core.types import Evaluation, InputError, Round
from nasjax.estimators.base import Estimator
from nasjax.strategies.base import Strategy


def run(
  strategy: Strategy, estimator: Estimator, key: jax.Array, *, num_rounds: int
) -> Iterator[Round]:
  """Runs rounds of ask, estimate, tell; yields each as it is done.

  No architecture is estimated twice: an asked genotype that was estimated before gives
  the strategy its recorded score and is left out of the round. A round in which nothing
  is new ends the search: the space, or the strategy's power to find something new in
  it, is exhausted. The caller sees it by the rounds that are missing.

  Args:
    strategy: which children are tried.
    estimator: how good they are.
    key: typed key of the run; round r uses `fold_in(key, r)` only.
    num_rounds: at most.

  Yields:
    One `Round` each.

  Raises:
    InputError: when `num_rounds` is not positive.
  """
  if num_rounds < 1:
    raise InputError(f"a search needs at least one round, got {num_rounds}")
  init_key, rounds_key = keys.named(key, "init", "rounds")
  strategy_key, estimator_key = keys.named(init_key, "strategy", "estimator")
  # Not jitted: what it puts into the state would be constants of a program of its own.
  strategy_state = strategy.init(strategy_key)
  estimator_state = estimator.init(estimator_key)
  ask, tell = jax.jit(strategy.ask), jax.jit(strategy.tell)
  known: dict[bytes, float] = {}
  for number in range(num_rounds):
    round_key = jax.random.fold_in(rounds_key, number)
    ask_key, estimate_key, tell_key = keys.named(round_key, "ask", "estimate", "tell")
    asked, strategy_state = ask(ask_key, strategy_state)
    asked = np.asarray(asked, np.int32)
    names = [genotype.tobytes() for genotype in asked]
    fresh = [
      i for i, name in enumerate(names) if name not in known and names.index(name) == i
    ]
    if not fresh:
      return
    estimator_state, evaluation = estimator.estimate(
      estimate_key, estimator_state, asked[fresh]
    )
    known |= {
      names[i]: float(score) for i, score in zip(fresh, np.asarray(evaluation.score))
    }
    scores = np.asarray([known[name] for name in names], np.float32)
    strategy_state, info = tell(tell_key, strategy_state, asked, scores)
    info = {name: np.asarray(value) for name, value in info.items()}
    yield Round(
      number=number,
      genotypes=asked[fresh],
      evaluation=evaluation,
      info={k: v[fresh] if v.ndim else v.item() for k, v in info.items()},
      skipped=len(names) - len(fresh),
    )


class Best(NamedTuple):
  """The best child of a search: its genotype `[D]`, its score, when it was found."""

  genotype: np.ndarray
  score: float
  evaluations: int


def best(rounds: list[Round]) -> Best:
  """The child with the highest score; the first of equals.

  Raises:
    InputError: when every child failed.
  """
  genotypes = np.concatenate([r.genotypes for r in rounds])
  scores = np.concatenate([np.asarray(r.evaluation.score) for r in rounds])
  if not np.isfinite(scores).any():
    raise InputError(f"all {len(scores)} children failed; nothing to choose from")
  winner = int(np.nanargmax(scores))
  return Best(genotypes[winner], float(scores[winner]), winner + 1)


def evaluations(rounds: list[Round]) -> Evaluation:
  """The evaluations of several rounds as one, in order."""
  parts = [r.evaluation for r in rounds]
  info: dict[str, Any] = {
    name: [value for part in parts for value in part.info[name]]
    for name in parts[0].info
  }
  return Evaluation(
    score=np.concatenate([part.score for part in parts]),
    cost=np.concatenate([part.cost for part in parts]),
    curve=np.concatenate([part.curve for part in parts]),
    info=info,
  )
