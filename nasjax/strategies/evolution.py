"""Regularized evolution: the oldest dies, a tournament's winner has a child.

Real, Aggarwal, Huang and Le, "Regularized evolution for image classifier architecture
search", AAAI 2019 (its algorithm 1). Per cycle:

  (1)  draw S members of the population with replacement; the best is the parent
  (2)  child = mutation of the parent
  (3)  the child joins the population, its oldest member leaves it

The best child of the whole history is the answer. A failed child (non-finite score)
ranks below every other: it wins no tournament against one that did not fail. A child
that was tried before is asked again; the search loop gives it the score that is on
record.

Differences from the paper: `children` of them may be asked at once (each has a
tournament of its own; as many of the oldest leave), which fills the programs of a
population trainer; and a child may have two parents (`crossover`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from nasjax.core import keys
from nasjax.core.types import InputError
from nasjax.spaces import base
from nasjax.spaces.base import Space
from nasjax.strategies.base import Strategy


class EvolutionState(NamedTuple):
  """State of evolution.

  Attributes:
    genotypes: `[N, D]` int32, the population; member `num_told % N` is the oldest.
    scores: `[N]`; `-inf` where failed or not yet there.
    num_told: scalar int32, children so far.
  """

  genotypes: jax.Array
  scores: jax.Array
  num_told: jax.Array


def evolution(
  space: Space,
  *,
  population: int = 100,
  sample: int = 25,
  children: int = 1,
  crossover: float = 0.0,
) -> Strategy:
  """Regularized evolution.

  Args:
    space: the space; its `neighbors` are the mutations.
    population: N, members; the first N children are draws from the space's prior.
    sample: S of step (1).
    children: P, asked at once.
    crossover: probability that a child takes each decision from one of two parents,
      before it is mutated; a mixture that is not in the space is given up for the first
      parent.

  Returns:
    A `Strategy`. `info` has `population_best` and `population_mean`, of the members
    that did not fail.

  Raises:
    InputError: a number that is not positive, more children than members, or a
      probability outside [0, 1].
  """
  if population < 1 or sample < 1 or children < 1:
    raise InputError(
      "population, sample and children must be positive, got "
      f"{population}, {sample} and {children}"
    )
  if children > population:
    raise InputError(f"{children} children at once need a population of as many")
  if not 0 <= crossover <= 1:
    raise InputError(f"crossover is a probability, got {crossover}")

  def init(key: jax.Array) -> EvolutionState:
    del key
    return EvolutionState(
      genotypes=jnp.full((population, space.length), -1, jnp.int32),
      scores=jnp.full(population, -jnp.inf),
      num_told=jnp.int32(0),
    )

  def tournament(key, state):
    drawn = jax.random.randint(key, (sample,), 0, population)  # (1)
    return state.genotypes[drawn[jnp.argmax(state.scores[drawn])]]

  def child_of(key, state):
    first, second, mix, mask, change = keys.named(
      key, "first", "second", "mix", "mask", "change"
    )
    parent = tournament(first, state)
    if crossover:
      from_second = jax.random.bernoulli(mask, 0.5, parent.shape)
      mixed = jnp.where(from_second, tournament(second, state), parent)
      use = jax.random.bernoulli(mix, crossover) & space.is_legal(mixed)
      parent = jnp.where(use, mixed, parent)
    return base.mutate(space, change, parent)  # (2)

  def ask(key, state):
    def one(key):
      born, drawn = keys.named(key, "child", "prior")
      starting = state.num_told < population
      # Empty members are no genotypes: what comes of them is not used.
      return jnp.where(starting, base.sample(space, drawn), child_of(born, state))

    return jax.vmap(one)(jax.random.split(key, children)), state

  def tell(key, state, genotypes, scores):
    del key
    places = (state.num_told + jnp.arange(scores.shape[0])) % population  # (3)
    ranked = jnp.where(jnp.isfinite(scores), scores, -jnp.inf)
    after = EvolutionState(
      genotypes=state.genotypes.at[places].set(genotypes),
      scores=state.scores.at[places].set(ranked),
      num_told=state.num_told + scores.shape[0],
    )
    alive = jnp.isfinite(after.scores)
    mean = jnp.where(alive, after.scores, 0.0).sum() / jnp.maximum(alive.sum(), 1)
    best = jnp.where(alive.any(), after.scores.max(), 0.0)
    return after, {"population_best": best, "population_mean": mean}

  return Strategy(init, ask, tell)
