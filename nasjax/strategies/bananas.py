"""Predictor-guided search: an ensemble, Thompson sampling, mutations of the best.

White, Neiswanger and Savani, "BANANAS: Bayesian optimization with neural architectures
for neural architecture search", AAAI 2021. Per round:

  (1)  fit an ensemble to every child so far
  (2)  candidates: mutations of the best children
  (3)  a sample of each candidate's score from N(mean, std) of the ensemble, independent
       of the others' (independent Thompson sampling)
  (4)  ask the P candidates with the highest samples

Nothing that is remembered is asked again; where too few candidates are new, the rest
are new draws from the prior. A failed child (non-finite score) is remembered, so as not
to be asked again, and not learned from.

Differences from the paper: features are one-hot by default (its path encoding is
`encoding="paths"`); the ensemble has three networks instead of five, and those of
`predictors.regressors`; every other candidate is mutated twice.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from nasjax.core import keys
from nasjax.core.types import InputError
from nasjax.predictors import encodings, regressors
from nasjax.predictors.regressors import Ensemble
from nasjax.spaces.base import Space
from nasjax.strategies.base import (
  History,
  Strategy,
  candidates,
  empty_history,
  fill_up,
  is_known,
  remember,
)


class BananasState(NamedTuple):
  """State of BANANAS: every child, and the ensemble that predicts their scores."""

  history: History
  ensemble: Ensemble


def bananas(
  space: Space,
  *,
  population: int = 10,
  max_evaluations: int = 200,
  initial: int = 10,
  encoding: Literal["one_hot", "paths"] = "one_hot",
  num_parents: int = 10,
  num_mutants: int = 100,
  members: int = 3,
  hidden: int = 32,
  steps: int = 30,
) -> Strategy:
  """Predictor-guided search in the manner of BANANAS.

  Args:
    space: the space.
    population: P, children of a round.
    max_evaluations: N, children that are remembered and learned from; the oldest make
      room.
    initial: children drawn from the prior before the ensemble is asked.
    encoding: features of an architecture, see `predictors.encodings`.
    num_parents: best children so far that candidates are mutations of.
    num_mutants: candidates.
    members: of the ensemble, at least 2.
    hidden: units of each of its hidden layers.
    steps: of Adam, every round.

  Returns:
    A `Strategy`. `info` has `predicted [P]`: the scores predicted before anything was
    learned from this round.

  Raises:
    InputError: a number that is too small, or an unknown encoding.
  """
  if min(population, max_evaluations, initial, num_parents, hidden, steps) < 1:
    raise InputError("bananas: every number must be positive")
  if num_mutants < population or members < 2:
    raise InputError("bananas needs two members, and a candidate for each child")
  encode = encodings.encoding_of(encoding, space)
  num_features = jax.eval_shape(
    encode, jax.ShapeDtypeStruct((space.length,), jnp.int32)
  ).shape[0]

  def init(key: jax.Array) -> BananasState:
    return BananasState(
      history=empty_history(max_evaluations, space.length),
      ensemble=regressors.init(key, num_features, members=members, hidden=hidden),
    )

  def ask(key, state):
    near_key, thompson_key, new_key = keys.named(key, "candidates", "thompson", "new")
    history = state.history
    found = candidates(  # (2)
      near_key, space, history, num_parents=num_parents, num_mutants=num_mutants
    )
    mean, std = regressors.predict(state.ensemble, jax.vmap(encode)(found))
    sampled = mean + std * jax.random.normal(thompson_key, mean.shape)  # (3)
    same_CC = jnp.tril((found[:, None] == found[None]).all(-1), -1)
    taken = is_known(history, found) | same_CC.any(-1)
    value, chosen = jax.lax.top_k(
      jnp.where(taken, -jnp.inf, sampled), population
    )  # (4)
    use = jnp.isfinite(value) & (history.num_added >= initial)
    return fill_up(new_key, space, history, found[chosen], use), state

  def tell(key, state, genotypes, scores):
    predicted, _ = regressors.predict(state.ensemble, jax.vmap(encode)(genotypes))
    history = remember(state.history, genotypes, scores)
    ensemble = regressors.fit(  # (1)
      key,
      state.ensemble,
      jax.vmap(encode)(jnp.maximum(history.genotypes, 0)),
      history.scores,
      steps=steps,
    )
    return BananasState(history, ensemble), {"predicted": predicted}

  return Strategy(init, ask, tell)
