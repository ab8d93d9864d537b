"""Pools of images `[C, H, W, N]`, differentiable to any order and fast on a CPU."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from nasjax.networks import convolution


@jax.custom_jvp
def _largest(*parts: jax.Array) -> jax.Array:
  """The largest of some arrays, element by element."""
  return functools.reduce(jnp.maximum, parts)


@_largest.defjvp
def _(parts, tangents):
  # The derivative belongs to the first part that is the largest: one choice each,
  # where `jnp.maximum` spreads it over equals and takes three times as long on a CPU.
  largest = _largest(*parts)
  tangent = tangents[-1]
  for part, its_tangent in list(zip(parts, tangents))[-2::-1]:
    tangent = jnp.where(part == largest, its_tangent, tangent)
  return largest, tangent


def _total(*parts: jax.Array) -> jax.Array:
  return functools.reduce(jnp.add, parts)


def _separable(
  x: jax.Array, combine: Callable, outside: float, size: int, stride: int
) -> jax.Array:
  """`combine` over a window, first down the columns, then along the rows."""
  around = (size - 1) // 2
  for axis in (1, 2):
    length = x.shape[axis]
    widths = [(0, 0)] * 4
    widths[axis] = (around, around)
    padded = jnp.pad(x, widths, constant_values=outside)
    x = combine(
      *(jax.lax.slice_in_dim(padded, i, i + length, stride, axis) for i in range(size))
    )
  return x


def max_pool(x: jax.Array, size: int = 3, stride: int = 1) -> jax.Array:
  """The largest value of each centred window of `x [C, H, W, N]`."""
  return convolution.held(
    _separable(convolution.held_back(x), _largest, -jnp.inf, size, stride)
  )


def average_pool(x: jax.Array, size: int = 3, stride: int = 1) -> jax.Array:
  """The mean of each centred window of `x [C, H, W, N]`; what is outside the image does
  not count."""
  inside = jnp.ones((1, *x.shape[1:3], 1), x.dtype)
  total, count = (
    _separable(v, _total, 0.0, size, stride) for v in (convolution.held_back(x), inside)
  )
  return convolution.held(total / count)
