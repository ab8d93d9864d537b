"""The candidate operations of convolutional cells, on images `[C, H, W, N]`.

Sizes and initial values are those of the authors' program (PyTorch's): every
convolution is without bias and starts uniform within 1 / sqrt(fan-in).
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nasjax.core import counter
from nasjax.networks import convolution, pooling

Weights = dict[str, Any]
Statistics = list[tuple[jax.Array, jax.Array]]
"""Mean and variance `[C]` of each batch normalisation, in the order of application."""

_EPSILON = 1e-5


class Norms:
  """The batch normalisations of one pass through a network (Ioffe and Szegedy 2015).

  Made anew for each pass. Without `given` a normalisation takes mean and variance from
  the batch, which is how a network learns; with `given` it takes those, which is how it
  is tested.

  Attributes:
    seen: what the batch gave, in the order of application.
  """

  def __init__(self, given: Iterable[tuple[jax.Array, jax.Array]] | None = None):
    self._given = None if given is None else iter(given)
    self.seen: Statistics = []

  def __call__(
    self,
    x: jax.Array,
    affine: Weights | None = None,
    times: jax.Array | None = None,
  ) -> jax.Array:
    """`x [C, H, W, N]` normalised by channel, then scaled and shifted if `affine`, and
    `times` a scalar: a part of the scale, it costs no pass over the values."""
    if self._given is None:
      values = x.astype(jnp.float32)
      mean = values.mean((1, 2, 3))
      # Of one pass over the values, as their mean is never far from zero.
      variance = jnp.square(values).mean((1, 2, 3)) - jnp.square(mean)
      variance = jnp.maximum(variance, 0.0)
      self.seen.append((mean, variance))
    else:
      mean, variance = next(self._given)
    scale = jax.lax.rsqrt(variance + _EPSILON)
    if affine is not None:
      scale = scale * affine["scale"]
    shift = -mean * scale
    if affine is not None:
      shift = shift + affine["shift"]
    if times is not None:
      scale, shift = times * scale, times * shift
    return x * _by_channel(scale.astype(x.dtype)) + _by_channel(shift.astype(x.dtype))

  def take(self, count: int) -> Statistics | None:
    """The next `count` that were given, for a part that normalises by itself."""
    if self._given is None:
      return None
    return list(itertools.islice(self._given, count))


def _by_channel(values_C: jax.Array) -> jax.Array:
  return values_C[:, None, None, None]


def init_norm(channels: int, affine: bool) -> Weights | None:
  """Scale and shift, or None where a normalisation has none."""
  if not affine:
    return None
  return {
    "scale": np.ones(channels, np.float32),
    "shift": np.zeros(channels, np.float32),
  }


def init_uniform(seed: np.uint32, shape: tuple[int, ...], fan_in: int) -> np.ndarray:
  """Uniform within 1 / sqrt(fan-in), float32, on the host: nothing is compiled."""
  rows = shape[0]
  draws = counter.uniform(seed, (rows, math.prod(shape) // rows), np)
  return ((2 * draws - 1) * np.float32(fan_in**-0.5)).reshape(shape)


class Op(NamedTuple):
  """An operation on an edge.

  Attributes:
    init: `(seed, channels, stride, affine) -> weights`; `affine` says whether its
      normalisations learn a scale and a shift.
    apply: `(weights, x [C, H, W, N], stride, norms) -> [C, H / stride, W / stride, N]`;
      with `times=`, as a relaxed edge has it, the result is that often as large: the
      last normalisation takes it, and pools have one, too.
  """

  init: Callable[..., Weights]
  apply: Callable[..., jax.Array]


def relu_conv_norm_init(
  seed: np.uint32, inputs: int, channels: int, affine: bool
) -> Weights:
  """Weights of ReLU, 1 x 1 convolution, normalisation."""
  return {
    "pointwise": init_uniform(seed, (channels, inputs), inputs),
    "norm": init_norm(channels, affine),
  }


def relu_conv_norm(weights: Weights, x: jax.Array, norms: Norms) -> jax.Array:
  """ReLU, 1 x 1 convolution, normalisation: makes a cell's inputs alike in channels."""
  x = convolution.pointwise(jax.nn.relu(x), weights["pointwise"])
  return norms(x, weights["norm"])


def factorized_reduce_init(
  seed: np.uint32, inputs: int, channels: int, affine: bool
) -> Weights:
  """Weights of `factorized_reduce`; `channels` must be even."""
  even, odd = counter.named(seed, "even", "odd")
  shape = (channels // 2, inputs)
  return {
    "even": init_uniform(even, shape, inputs),
    "odd": init_uniform(odd, shape, inputs),
    "norm": init_norm(channels, affine),
  }


def factorized_reduce(
  weights: Weights, x: jax.Array, norms: Norms, times: jax.Array | None = None
) -> jax.Array:
  """Halves an image: one half of the channels from its even pixels, one from the odd.

  Where a side is odd, the pixels after its last are zeros.
  """
  x = jax.nn.relu(x)
  height, width = x.shape[1:3]
  padded = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
  halves = (
    convolution.pointwise(x[:, ::2, ::2], weights["even"]),
    convolution.pointwise(padded[:, 1::2, 1::2], weights["odd"]),
  )
  return norms(jnp.concatenate(halves), weights["norm"], times)


def _skip_init(seed, channels, stride, affine):
  return {} if stride == 1 else factorized_reduce_init(seed, channels, channels, affine)


def _skip(weights, x, stride, norms, times=None):
  if stride == 1:
    return x if times is None else times.astype(x.dtype) * x
  return factorized_reduce(weights, x, norms, times)


def _half_init(seed, channels, size, affine):
  depthwise, pointwise = counter.named(seed, "depthwise", "pointwise")
  return {
    "depthwise": init_uniform(depthwise, (channels, size, size), size * size),
    "pointwise": init_uniform(pointwise, (channels, channels), channels),
    "norm": init_norm(channels, affine),
  }


def _half(weights, x, stride, dilation, norms, times=None):
  """ReLU, depthwise convolution, pointwise convolution, normalisation."""
  x = convolution.depthwise(
    jax.nn.relu(x), weights["depthwise"], stride=stride, dilation=dilation
  )
  return norms(convolution.pointwise(x, weights["pointwise"]), weights["norm"], times)


def _separable(size: int) -> Op:
  def init(seed, channels, stride, affine):
    del stride
    first, second = counter.named(seed, "first", "second")
    return {
      "first": _half_init(first, channels, size, affine),
      "second": _half_init(second, channels, size, affine),
    }

  def apply(weights, x, stride, norms, times=None):
    x = _half(weights["first"], x, stride, 1, norms)
    return _half(weights["second"], x, 1, 1, norms, times)

  return Op(init, apply)


def _dilated(size: int) -> Op:
  def init(seed, channels, stride, affine):
    del stride
    return _half_init(seed, channels, size, affine)

  def apply(weights, x, stride, norms, times=None):
    return _half(weights, x, stride, 2, norms, times)

  return Op(init, apply)


def _pool(pool: Callable[..., jax.Array]) -> Op:
  def apply(weights, x, stride, norms, times=None):
    """A pool is normalised in a relaxed edge only, which is where it has `times`."""
    made = pool(x, size=3, stride=stride)
    return made if times is None else norms(made, times=times)

  return Op(lambda *_: {}, apply)


OPS: dict[str, Op] = {
  "max_pool_3x3": _pool(pooling.max_pool),
  "avg_pool_3x3": _pool(pooling.average_pool),
  "skip_connect": Op(_skip_init, _skip),
  "sep_conv_3x3": _separable(3),
  "sep_conv_5x5": _separable(5),
  "dil_conv_3x3": _dilated(3),
  "dil_conv_5x5": _dilated(5),
}


def mixed_init(seed: np.uint32, channels: int, stride: int) -> Weights:
  """Weights of `mixed`: those of every operation that has any."""
  made = {
    name: op.init(counter.named(seed, name)[0], channels, stride, False)
    for name, op in OPS.items()
  }
  return {name: weights for name, weights in made.items() if weights}


def mixed(
  weights: Weights, mix_K: jax.Array, x: jax.Array, stride: int, norms: Norms
) -> jax.Array:
  """The relaxed edge (equation 2 of the paper): all operations, weighed.

  In a relaxed edge pools are normalised too, and no normalisation learns.

  Args:
    weights: of `mixed_init`.
    mix_K: `[K]` weight of each of `spaces.conv_cell.PRIMITIVES`; the first is that of
      `none`, which gives nothing.
    x: `[C, H, W, N]`.
    stride: 1 or 2.
    norms: of this pass.
  """

  weighed = (
    OPS[name].apply(weights.get(name, {}), x, stride, norms, weight)
    for weight, name in zip(mix_K[1:], OPS, strict=True)
  )
  return functools.reduce(jnp.add, weighed)
