"""A chain of the MLP space as a network, in two forms that compute the same function.

*Exact*: the layers are static, one program per architecture, no wasted arithmetic.
*Padded*: the genotype is traced, one program for every architecture, each layer as wide
as the widest; what lies outside a layer's units is held at zero.

The two agree because randomness is laid out so that the exact draw is a prefix of the
padded one: weights are drawn padded and cut to size, and dropout masks are drawn with
the unit axis first (JAX derives every random number from its flat index).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nasjax.spaces.mlp_chain import ACTIVATIONS, Dropout, Layer, MLPChain

Weights = list[dict[str, Any]]
"""Exact weights: one `{"kernel": [I, O], "bias": [O]}` per dense layer, output last."""

PaddedWeights = dict[str, dict[str, jax.Array]]
"""`first`: kernel `[F, W]`; `middle`: kernels `[D-2, W, W]`; `head`: kernel `[W, C]`;
each with its bias. The layer at position i >= 1 has row i - 1 of `middle`."""

_FUNCTIONS = {
  "sigmoid": jax.nn.sigmoid,
  "tanh": jnp.tanh,
  "relu": jax.nn.relu,
  "elu": jax.nn.elu,
}


def dense_widths(layers: tuple[Layer, ...]) -> list[int]:
  """Units of each dense layer, in order."""
  return [layer.width for layer in layers if not isinstance(layer, Dropout)]


def num_params(layers: tuple[Layer, ...], num_features: int, num_outputs: int) -> int:
  """Weights and biases of the network, output layer included."""
  sizes = [num_features, *dense_widths(layers), num_outputs]
  return sum((i + 1) * o for i, o in zip(sizes[:-1], sizes[1:]))


def flops(layers: tuple[Layer, ...], num_features: int, num_outputs: int) -> int:
  """Floating-point operations of one example's forward pass.

  A multiply-add counts as two, a bias as one; activations are left out.
  """
  sizes = [num_features, *dense_widths(layers), num_outputs]
  return sum((2 * i + 1) * o for i, o in zip(sizes[:-1], sizes[1:]))


def init(
  key: jax.Array,
  space: MLPChain,
  genotype: jax.Array,
  num_features: int,
  num_outputs: int,
) -> PaddedWeights:
  """Glorot-uniform kernels and zero biases (Keras's dense layer), padded.

  Args:
    key: typed key of this child.
    space: the space of the genotype.
    genotype: `[D]` int32, traced or not.
    num_features: F.
    num_outputs: C.

  Returns:
    Padded weights; the limit of each kernel is that of its true fan-in and fan-out.
    Entries outside a layer's units are drawn too: `apply_padded` never reads them and
    `extract` cuts them off.
  """
  widths_D = jnp.asarray(space.token_widths())[genotype]
  fan_in_D = _widths_before(widths_D)
  units = space.max_width
  first_key, middle_key, head_key = (jax.random.fold_in(key, i) for i in range(3))

  def kernel(key, shape, fan_in, fan_out):
    limit = jnp.sqrt(6.0 / (fan_in + fan_out))
    return jax.random.uniform(key, shape, minval=-1.0, maxval=1.0) * limit

  num_middle = space.length - 2
  middle = [
    kernel(
      jax.random.fold_in(middle_key, i),
      (units, units),
      fan_in_D[i + 1],
      widths_D[i + 1],
    )
    for i in range(num_middle)
  ]
  last_width = fan_in_D[-1]
  return {
    "first": {
      "kernel": kernel(first_key, (num_features, units), num_features, widths_D[0]),
      "bias": jnp.zeros(units),
    },
    "middle": {
      "kernel": jnp.stack(middle) if middle else jnp.zeros((0, units, units)),
      "bias": jnp.zeros((num_middle, units)),
    },
    "head": {
      "kernel": kernel(head_key, (units, num_outputs), last_width, num_outputs),
      "bias": jnp.zeros(num_outputs),
    },
  }


def _widths_before(widths_D: jax.Array) -> jax.Array:
  """`[D]` units that enter each position: the width of the last dense layer before."""

  def carry_width(before, width):
    return jnp.where(width > 0, width, before), before

  return jax.lax.scan(carry_width, jnp.zeros_like(widths_D[0]), widths_D)[1]


def extract(padded: PaddedWeights, layers: tuple[Layer, ...]) -> Weights:
  """Cuts padded weights to the exact sizes of `layers`."""
  exact: Weights = []
  units = None
  for position, layer in enumerate(layers):
    if isinstance(layer, Dropout):
      continue
    if units is None:
      kernel, bias = padded["first"]["kernel"], padded["first"]["bias"]
    else:
      kernel = padded["middle"]["kernel"][position - 1, :units]
      bias = padded["middle"]["bias"][position - 1]
    exact.append({"kernel": kernel[:, : layer.width], "bias": bias[: layer.width]})
    units = layer.width
  head = padded["head"]
  exact.append({"kernel": head["kernel"][:units], "bias": head["bias"]})
  return exact


def embed(
  exact: Weights, layers: tuple[Layer, ...], padded: PaddedWeights
) -> PaddedWeights:
  """Writes exact weights into a copy of padded ones; the inverse of `extract`."""
  padded = jax.tree.map(np.array, padded)
  remaining = iter(exact)
  units = None
  for position, layer in enumerate(layers):
    if isinstance(layer, Dropout):
      continue
    weights = next(remaining)
    if units is None:
      kernel, bias = padded["first"]["kernel"], padded["first"]["bias"]
    else:
      kernel = padded["middle"]["kernel"][position - 1, :units]
      bias = padded["middle"]["bias"][position - 1]
    kernel[:, : layer.width] = weights["kernel"]
    bias[: layer.width] = weights["bias"]
    units = layer.width
  head = next(remaining)
  padded["head"]["kernel"][:units] = head["kernel"]
  padded["head"]["bias"][:] = head["bias"]
  return padded


def _drop(key: jax.Array, position, rate: float, x_BW: jax.Array) -> jax.Array:
  # Units first, so that the mask of w units is the first w rows of any wider one.
  keep = jax.random.bernoulli(
    jax.random.fold_in(key, position), 1.0 - rate, x_BW.shape[::-1]
  ).T
  return jnp.where(keep, x_BW / (1.0 - rate), 0.0)


def apply(
  weights: Weights,
  layers: tuple[Layer, ...],
  x: jax.Array,
  dropout_key: jax.Array | None = None,
) -> jax.Array:
  """The exact network.

  Args:
    weights: exact weights.
    layers: the hidden layers, static.
    x: `[B, F]`.
    dropout_key: typed key for training; without one nothing is dropped.

  Returns:
    `[B, C]` outputs before the loss's own non-linearity.
  """
  remaining = iter(weights)
  for position, layer in enumerate(layers):
    if isinstance(layer, Dropout):
      if dropout_key is not None:
        x = _drop(dropout_key, position, layer.rate, x)
    else:
      dense = next(remaining)
      x = _FUNCTIONS[layer.activation](x @ dense["kernel"] + dense["bias"][None])
  head = next(remaining)
  return x @ head["kernel"] + head["bias"][None]


def apply_padded(
  weights: PaddedWeights,
  space: MLPChain,
  genotype: jax.Array,
  x: jax.Array,
  dropout_key: jax.Array | None = None,
) -> jax.Array:
  """The padded network: one program for every genotype, made to be vmapped.

  Args:
    weights: padded weights.
    space: the space of the genotype, static.
    genotype: `[D]` int32, traced.
    x: `[B, F]`.
    dropout_key: typed key for training; without one nothing is dropped.

  Returns:
    `[B, C]` outputs, equal to those of `apply` up to rounding.
  """
  unit = jnp.arange(space.max_width)
  widths_D = jnp.asarray(space.token_widths())[genotype]
  activation_D = jnp.asarray(space.token_activations())[genotype]

  def dense(kernel, bias, width, activation, x):
    pre = x @ kernel + bias[None]
    post = jnp.stack([_FUNCTIONS[name](pre) for name in ACTIVATIONS])[activation]
    # sigmoid(0) is not 0: what is outside the layer must not reach the next one.
    return jnp.where((unit < width)[None], post, 0.0)

  first = weights["first"]
  hidden = dense(first["kernel"], first["bias"], widths_D[0], activation_D[0], x)

  def layer(hidden_BW, inputs):
    token, width, activation, position, kernel, bias = inputs
    out = jnp.where(
      width > 0, dense(kernel, bias, width, activation, hidden_BW), hidden_BW
    )
    if dropout_key is not None and space.has_dropout:
      dropped = _drop(dropout_key, position, space.dropout_rate, hidden_BW)
      out = jnp.where(token == space.dropout, dropped, out)
    return out, None

  middle = weights["middle"]
  inside = slice(1, space.length - 1)
  hidden, _ = jax.lax.scan(
    layer,
    hidden,
    (
      genotype[inside],
      widths_D[inside],
      activation_D[inside],
      jnp.arange(space.length)[inside],
      middle["kernel"],
      middle["bias"],
    ),
  )
  head = weights["head"]
  return hidden @ head["kernel"] + head["bias"][None]
