"""Genotypes as feature vectors for surrogates."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from nasjax.core.types import InputError
from nasjax.spaces.base import Space
from nasjax.spaces.nasbench201 import EDGES, PRIMITIVES, NASBench201

Encoding = Callable[[jax.Array], jax.Array]

_REAL_OPS = len(PRIMITIVES) - 1  # `none`, the first, carries nothing
# The ways from the input to the output of a cell, as edges; in the order of length.
_PATHS = ((3,), (0, 4), (1, 5), (0, 2, 5))


def one_hot(space: Space) -> Encoding:
  """`genotype [D] -> [D * K]`: which choice every decision takes."""

  def encode(genotype):
    return jax.nn.one_hot(genotype, space.num_tokens).ravel()

  return encode


def paths(space: Space) -> Encoding:
  """`genotype [D] -> [E]`: which sequences of operations lead through a cell.

  White, Neiswanger and Savani, "BANANAS", AAAI 2021. A feature is a sequence of
  operations, 1 where some way from the input to the output carries it; ways through
  `none` carry nothing. Of NAS-Bench-201: 4 + 16 + 64 = 84 sequences. Any other space
  has one-hot features: its decisions are no paths.
  """
  if not isinstance(space, NASBench201):
    return one_hot(space)
  assert EDGES == ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))

  def encode(genotype):
    edges_DK = jax.nn.one_hot(genotype - 1, _REAL_OPS)  # all zero for `none`
    by_length: dict[int, jax.Array] = {}
    for path in _PATHS:
      carried = jnp.ones(1)
      for edge in path:
        carried = (carried[:, None] * edges_DK[edge][None]).ravel()
      before = by_length.get(len(path), jnp.zeros_like(carried))
      by_length[len(path)] = jnp.maximum(before, carried)
    return jnp.concatenate([by_length[length] for length in sorted(by_length)])

  return encode


ENCODINGS: dict[str, Callable[[Space], Encoding]] = {"one_hot": one_hot, "paths": paths}


def encoding_of(name: str, space: Space) -> Encoding:
  """The encoding of a name for a space.

  Raises:
    InputError: there is none of this name.
  """
  if name not in ENCODINGS:
    raise InputError(f"unknown encoding {name!r}; there are {', '.join(ENCODINGS)}")
  return ENCODINGS[name](space)
