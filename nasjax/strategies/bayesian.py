"""Bayesian optimisation: a Gaussian process, expected improvement, mutated candidates.

Jones, Schonlau and Welch, "Efficient global optimization of expensive black-box
functions", 1998; for architectures Kandasamy et al., NeurIPS 2018 (NASBOT), whose
acquisition is maximised by mutation too. Per round:

  (1)  candidates: mutations of the best children so far, and draws from the prior
  (2)  ask the one with the largest E[max(score - best, 0)] under the process
  (3)  of several at once, each is supposed to score its mean before the next is chosen
       (Ginsbourger et al. 2010, the "kriging believer")

Nothing that is remembered is asked again; where no candidate is new, a new draw from
the prior is asked.
A failed child (non-finite score) is remembered, so as not to be asked again, and left
out of the process.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from nasjax.core import keys
from nasjax.core.types import InputError
from nasjax.predictors import encodings
from nasjax.predictors import gaussian_process as gp_lib
from nasjax.predictors.gaussian_process import GaussianProcess
from nasjax.spaces import base
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


class BayesianState(NamedTuple):
  """State of Bayesian optimisation: every child, and the process of their scores."""

  history: History
  process: GaussianProcess


def bayesian(
  space: Space,
  *,
  population: int = 1,
  max_evaluations: int = 200,
  initial: int = 10,
  encoding: Literal["one_hot", "paths"] = "one_hot",
  num_parents: int = 10,
  num_mutants: int = 80,
  num_draws: int = 20,
) -> Strategy:
  """Bayesian optimisation with a Gaussian process.

  Args:
    space: the space.
    population: P, children of a round.
    max_evaluations: N. The process learns from the first N children that did not fail;
      the last N of all are remembered, so as not to be asked again.
    initial: children drawn from the prior before the process is asked.
    encoding: features of an architecture, see `predictors.encodings`.
    num_parents: best children so far that candidates are mutations of.
    num_mutants: candidates that are mutations; each comes of one or two changes.
    num_draws: candidates that are drawn from the prior.

  Returns:
    A `Strategy`. `info` has `evidence`, of the process's best hyper-parameters.

  Raises:
    InputError: a number that is not positive, or an unknown encoding.
  """
  if min(population, max_evaluations, initial, num_parents, num_mutants, num_draws) < 1:
    raise InputError("bayesian: every number must be positive")
  encode = encodings.encoding_of(encoding, space)

  def init(key: jax.Array) -> BayesianState:
    draw = jax.vmap(lambda k: encode(base.sample(space, k)))
    x_BE = draw(jax.random.split(key, 64))
    # Lengths are in units of the distance between two draws.
    square = jnp.square(x_BE[:32] - x_BE[32:]).sum(-1).mean()
    scale = jnp.sqrt(jnp.maximum(square, 1e-6))
    return BayesianState(
      history=empty_history(max_evaluations, space.length),
      process=gp_lib.empty(max_evaluations, x_BE.shape[1], 1.0)._replace(scale=scale),
    )

  def ask(key, state):
    near_key, new_key = keys.named(key, "candidates", "new")
    history, process = state
    found = candidates(  # (1)
      near_key,
      space,
      history,
      num_parents=num_parents,
      num_mutants=num_mutants,
      num_draws=num_draws,
    )
    x_CE = jax.vmap(encode)(found)
    known = is_known(history, found)
    best = jnp.nanmax(jnp.where(jnp.isfinite(history.scores), history.scores, jnp.nan))

    def choose(carry, _):
      process, taken = carry
      mean, std = gp_lib.predict(process, x_CE)
      gain = gp_lib.expected_improvement(mean, std, best)  # (2)
      gain = jnp.where(taken, -jnp.inf, gain)
      chosen = jnp.argmax(gain)
      taken |= (found == found[chosen][None]).all(-1)
      process = gp_lib.append(process, x_CE[chosen], mean[chosen])  # (3)
      return (process, taken), (found[chosen], jnp.isfinite(gain[chosen]))

    chosen_PD, is_new = jax.lax.scan(choose, (process, known), length=population)[1]
    use = is_new & (history.num_added >= initial)
    return fill_up(new_key, space, history, chosen_PD, use), state

  def tell(key, state, genotypes, scores):
    del key

    def learn(process, observed):
      return gp_lib.append(process, *observed), None

    x_PE = jax.vmap(encode)(genotypes)
    process, _ = jax.lax.scan(learn, state.process, (x_PE, scores))
    history = remember(state.history, genotypes, scores)
    info = {"evidence": gp_lib.evidence(process).max()}
    return BayesianState(history, process), info

  return Strategy(init, ask, tell)
