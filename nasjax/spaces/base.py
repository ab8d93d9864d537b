"""What a search space of sequential decisions offers, and how to sample from it."""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp


class Neighbors(NamedTuple):
  """The genotypes that are one change away from another.

  Attributes:
    genotypes: `[M, D]` int32; M is the same for every genotype of a space, so some rows
      are empty (they repeat the genotype itself).
    weights: `[M]` the probability with which a mutation picks each; 0 for empty rows,
      so what is a neighbor is what has weight. They sum to 1, or to 0 when the space
      has nothing else.
  """

  genotypes: jax.Array
  weights: jax.Array


class Space(Protocol):
  """A space of genotypes `[D]` int32 whose decisions are made from left to right.

  Attributes:
    length: D, the number of decisions.
    num_tokens: K, the number of choices of a decision (illegal ones are masked).
    size: how many different legal genotypes there are.
  """

  @property
  def length(self) -> int: ...  # noqa: D102

  @property
  def num_tokens(self) -> int: ...  # noqa: D102

  @property
  def size(self) -> int: ...  # noqa: D102

  def log_prior(self, genotype: jax.Array, position: jax.Array | int) -> jax.Array:
    """Log-probability of each choice at `position` before anything is learned.

    Args:
      genotype: `[D]` int32 of which the decisions before `position` are made.
      position: scalar, which decision is next.

    Returns:
      `[K]` normalised log-probabilities; `-inf` marks an illegal choice, which is the
      only way a space says what is legal.
    """

  def is_legal(self, genotype: jax.Array) -> jax.Array:
    """Whether a genotype `[D]` is in the space (scalar bool)."""

  def neighbors(self, genotype: jax.Array) -> Neighbors:
    """What is one change away from a genotype `[D]`, without repeats."""

  def describe(self, genotype: Any) -> str:
    """The architecture in words."""

  def parse(self, text: str) -> Any:
    """The genotype `[D]` of an architecture in words; the inverse of `describe`."""


class Enumerable(Space, Protocol):
  """A space whose genotypes are numbered from 0 to `size - 1`, so a table can hold it.

  Both functions are each other's inverse, and jittable.
  """

  def index(self, genotype: jax.Array) -> jax.Array:
    """The number (scalar int32) of a legal genotype `[D]`."""

  def at(self, index: jax.Array | int) -> jax.Array:
    """The genotype `[D]` int32 of a number."""


def sample(space: Space, key: jax.Array) -> jax.Array:
  """Draws one genotype from the space's prior; legal by construction, no rejection.

  Args:
    space: the space.
    key: typed key.

  Returns:
    `[D]` int32.
  """

  def decide(genotype, position):
    token = jax.random.categorical(
      jax.random.fold_in(key, position), space.log_prior(genotype, position)
    )
    return genotype.at[position].set(token.astype(jnp.int32)), None

  start = jnp.zeros(space.length, jnp.int32)
  return jax.lax.scan(decide, start, jnp.arange(space.length))[0]


def log_prob(space: Space, genotype: jax.Array) -> jax.Array:
  """Log-probability (scalar) of a genotype `[D]` under the space's prior."""

  def one(position):
    return space.log_prior(genotype, position)[genotype[position]]

  return jax.vmap(one)(jnp.arange(space.length)).sum()


def mutate(space: Space, key: jax.Array, genotype: jax.Array) -> jax.Array:
  """One random change of a genotype `[D]`; itself where the space has nothing else."""
  around = space.neighbors(genotype)
  pick = jax.random.categorical(key, jnp.log(around.weights))
  return jnp.where((around.weights > 0).any(), around.genotypes[pick], genotype)


def one_change(genotype: jax.Array, num_tokens: int) -> jax.Array:
  """`[D * K, D]` int32: a genotype `[D]` with each decision made in each way."""
  length = genotype.shape[0]
  place, choice = jnp.arange(length), jnp.arange(num_tokens)
  changed = jnp.where(
    place[:, None, None] == place[None, None],
    choice[None, :, None],
    genotype[None, None],
  )
  return changed.reshape(-1, length).astype(jnp.int32)


def legal_neighbors(space: Space, genotype: jax.Array) -> Neighbors:
  """The legal ones of a genotype's single changes, all alike."""
  changed = one_change(genotype, space.num_tokens)
  is_other = jax.vmap(space.is_legal)(changed) & (changed != genotype[None]).any(-1)
  return Neighbors(
    jnp.where(is_other[:, None], changed, genotype[None]),
    is_other / jnp.maximum(is_other.sum(), 1),
  )
