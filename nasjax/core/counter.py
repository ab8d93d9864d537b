"""Random numbers by coordinate: entry (row, column) depends on nothing but itself.

A child that is padded into a wider program must draw what it draws alone, so a small
draw has to be a corner of every larger one. JAX's generators number entries along the
flattened array, and spend twenty rounds on each; two rounds of an integer hash
(MurmurHash3's finalizer, Appleby 2011) are plenty for initial weights and dropout, cost
a tenth, and compile in a third of the time. Seeds come from JAX keys.

Every function works on numpy and on JAX arrays alike: the same bits on the host and in
a program.
"""

import zlib
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_GOLDEN = np.uint32(0x9E3779B9)
_ZERO = np.uint32(0)


def seed(key: jax.Array) -> jax.Array:
  """Scalar uint32 seed out of a typed key, which is used up by it."""
  return jax.random.bits(key, dtype=jnp.uint32)


def _mix(x: Any) -> Any:
  x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
  x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
  return x ^ (x >> np.uint32(16))


def fold(seed: Any, number: Any) -> Any:
  """Another seed for every number; uint32 scalars or arrays of one shape."""
  with np.errstate(over="ignore"):  # numpy warns when a scalar wraps around
    return _mix(_mix(seed) ^ (number * _GOLDEN))


def named(seed: Any, *names: str) -> tuple[Any, ...]:
  """A seed for each name; the same name always gives the same one."""
  return tuple(fold(seed, np.uint32(zlib.crc32(name.encode()))) for name in names)


def bits(
  seed: Any,
  shape: tuple[int, int],
  xp: ModuleType = jnp,
  first_column: Any = _ZERO,
) -> Any:
  """uint32 `[R, C]`; the value at (r, c) is the same for every shape that has it.

  Columns are numbered from `first_column`, a uint32.
  """
  rows = _mix(xp.arange(shape[0], dtype=np.uint32) ^ seed)
  columns = (first_column + xp.arange(shape[1], dtype=np.uint32)) * _GOLDEN
  return _mix(rows[:, None] + columns[None])


def uniform(
  seed: Any,
  shape: tuple[int, int],
  xp: ModuleType = jnp,
  first_column: Any = _ZERO,
) -> Any:
  """float32 `[R, C]` in [0, 1), in steps of 2^-24; see `bits`."""
  drawn = bits(seed, shape, xp, first_column) >> np.uint32(8)
  return drawn.astype(np.float32) * np.float32(2**-24)
