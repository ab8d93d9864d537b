"""The protocol of discrete strategies, and what several of them do alike."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from nasjax.core import keys
from nasjax.spaces import base
from nasjax.spaces.base import Space


class Strategy(NamedTuple):
  """A search strategy as three pure, jittable functions.

  Attributes:
    init: `(key) -> state`.
    ask: `(key, state) -> (genotypes [P, D] int32, state)`.
    tell: `(key, state, genotypes [P, D], scores [P]) -> (state, info)`; a higher score
      is better and a non-finite one is a failed child. `info` is a dict of scalars and
      `[P]` arrays for the log.
  """

  init: Callable[[jax.Array], Any]
  ask: Callable[[jax.Array, Any], tuple[jax.Array, Any]]
  tell: Callable[[jax.Array, Any, jax.Array, jax.Array], tuple[Any, dict[str, Any]]]


class GradientStrategy(NamedTuple):
  """A search by gradients as pure functions; `step` is jittable.

  Attributes:
    init: `(key) -> state`: weights, alphas and the state of their optimizers.
    step: `(state, train_batch, valid_batch, part) -> (state, info)`; the training step
      is that part, by default 1, of a full one.
    derive: `(state) -> genotype [D]`, host side.
  """

  init: Callable[[jax.Array], Any]
  step: Callable[..., tuple[Any, Any]]
  derive: Callable[[Any], Any]


class History(NamedTuple):
  """What was tried so far, in a fixed number of rows; the oldest make room.

  Attributes:
    genotypes: `[N, D]` int32; rows never filled are -1, no genotype.
    scores: `[N]`; NaN where failed or empty.
    num_added: scalar int32, how many were ever added.
  """

  genotypes: jax.Array
  scores: jax.Array
  num_added: jax.Array


def empty_history(capacity: int, length: int) -> History:
  """A history of `capacity` rows for genotypes of `length` decisions."""
  return History(
    genotypes=jnp.full((capacity, length), -1, jnp.int32),
    scores=jnp.full(capacity, jnp.nan),
    num_added=jnp.int32(0),
  )


def remember(history: History, genotypes: jax.Array, scores: jax.Array) -> History:
  """The history with `genotypes [P, D]` and `scores [P]` added."""
  chex.assert_shape(genotypes, (len(scores), history.genotypes.shape[1]))
  capacity = history.scores.shape[0]
  rows = (history.num_added + jnp.arange(genotypes.shape[0])) % capacity
  return History(
    genotypes=history.genotypes.at[rows].set(genotypes),
    scores=history.scores.at[rows].set(scores),
    num_added=history.num_added + genotypes.shape[0],
  )


def is_known(history: History, genotypes: jax.Array) -> jax.Array:
  """`[P]` bool: which of `genotypes [P, D]` were tried before."""
  return (genotypes[:, None] == history.genotypes[None]).all(-1).any(-1)


def candidates(
  key: jax.Array,
  space: Space,
  history: History,
  *,
  num_parents: int,
  num_mutants: int,
  num_draws: int = 0,
) -> jax.Array:
  """What a surrogate is asked about: mutations of the best so far, and draws.

  Every other mutant is mutated a second time: around a few good parents there are
  soon no new neighbors.

  Args:
    key: typed key.
    space: for its mutations and its prior.
    history: whose best `num_parents` children that did not fail are the parents, in
      turn. While there are fewer, draws stand in for them.
    num_parents: see `history`.
    num_mutants: how many mutations.
    num_draws: how many draws from the prior.

  Returns:
    `[num_mutants + num_draws, D]` int32; some may be known, or the same.
  """
  draw_key, once_key, twice_key = keys.named(key, "draws", "once", "twice")
  draws = jax.vmap(lambda k: base.sample(space, k))(
    jax.random.split(draw_key, num_mutants + num_draws)
  )
  ranked = jnp.where(jnp.isfinite(history.scores), history.scores, -jnp.inf)
  score, best = jax.lax.top_k(ranked, min(num_parents, len(ranked)))
  turn = jnp.arange(num_mutants) % len(best)
  there = jnp.isfinite(score)[turn][:, None]
  parents = jnp.where(there, history.genotypes[best[turn]], draws[:num_mutants])

  def mutated(key, genotypes):
    split = jax.random.split(key, num_mutants)
    return jax.vmap(lambda k, g: base.mutate(space, k, g))(split, genotypes)

  once = mutated(once_key, parents)
  again = (jnp.arange(num_mutants) // len(best) % 2 == 1)[:, None]
  mutants = jnp.where(again, mutated(twice_key, once), once)
  return jnp.concatenate([mutants, draws[num_mutants:]])


def sample_new(
  key: jax.Array,
  sampler: Callable[[jax.Array], jax.Array],
  space: Space,
  history: History,
  population: int,
  *,
  oversample: int = 8,
  max_tries: int = 16,
) -> jax.Array:
  """Draws a population without repeats, among itself and against the history.

  Takes the first `population` new genotypes out of `oversample * population` draws of
  the sampler. Places that are left (a policy that has collapsed repeats itself) are
  filled with new draws from the space's prior. After `max_tries` times as many of those
  what is still empty holds repeats: the space is as good as exhausted, and the search
  loop, which sees them, decides.

  Args:
    key: typed key.
    sampler: `(key) -> genotype [D]`, the policy's own draw.
    space: for its prior.
    history: what not to repeat.
    population: P.
    oversample: draws per place and try.
    max_tries: when to give up.

  Returns:
    `[P, D]` int32.
  """
  num_draws = oversample * population

  def draw(one, index):
    keys = jax.random.split(jax.random.fold_in(key, index), num_draws)
    return jax.vmap(one)(keys).astype(jnp.int32)

  def prior(key):
    return base.sample(space, key)

  def take(found, num_found, drawn):
    """Puts what is new of `drawn` into the places after `num_found`."""
    taken = jnp.concatenate([history.genotypes, found, drawn])
    same = (drawn[:, None] == taken[None]).all(-1)
    # A draw is new if nothing before it in `taken` equals it.
    own_row = taken.shape[0] - num_draws + jnp.arange(num_draws)
    before = jnp.arange(taken.shape[0])[None] < own_row[:, None]
    new = ~(same & before).any(-1)
    place = jnp.where(new, num_found + jnp.cumsum(new) - 1, population)
    found = found.at[place].set(drawn, mode="drop")
    return found, jnp.minimum(num_found + new.sum(), population)

  def unfinished(state):
    _, num_found, tries = state
    return (num_found < population) & (tries <= max_tries)

  def fill(state):
    found, num_found, tries = state
    return *take(found, num_found, draw(prior, tries)), tries + 1

  nothing = jnp.full((population, space.length), -1, jnp.int32)
  first = take(nothing, jnp.int32(0), draw(sampler, 0))
  found, num_found, _ = jax.lax.while_loop(unfinished, fill, (*first, jnp.int32(1)))
  # Repeats, but legal ones, where nothing new was left.
  repeats = draw(prior, max_tries + 1)[:population]
  is_new = (jnp.arange(population) < num_found)[:, None]
  return jnp.where(is_new, found, repeats)


def fill_up(
  key: jax.Array, space: Space, history: History, chosen: jax.Array, use: jax.Array
) -> jax.Array:
  """A population of what was chosen and, where that is too little, of new draws.

  Args:
    key: typed key.
    space: for its prior.
    history: what not to repeat.
    chosen: `[P, D]` int32.
    use: `[P]` bool, which of them are new. Draws take the places of the others, and
      repeat neither the history nor what is used; see `sample_new`.

  Returns:
    `[P, D]` int32.
  """
  asked = jnp.where(use[:, None], chosen, -1)
  known = history._replace(genotypes=jnp.concatenate([history.genotypes, asked]))
  drawn = sample_new(key, lambda k: base.sample(space, k), space, known, len(use))
  # In the order of `sample_new`: what is new comes first, and may be less than P.
  turn = jnp.cumsum(~use) - 1
  return jnp.where(use[:, None], chosen, drawn[turn])
