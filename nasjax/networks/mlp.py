"""A chain of the MLP space as a network, in two forms that compute the same function.

*Exact*: the layers are static, one program per architecture, no wasted arithmetic.
*Framed*: a frame is a sequence of dense slots of fixed widths; the layers are traced,
so one program serves every chain that fits into the frame. A slot is as wide as the
layer in it or wider (what lies outside is held at zero), or stays empty and passes on
what came: its kernel is the identity, its activation too, and it is not trained.

The two agree because every random number is drawn by coordinate (`core.counter`): the
weights and dropout masks of a layer are a corner of those of any wider slot.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nasjax.core import counter
from nasjax.spaces.mlp_chain import Dense, Dropout, Layer

Weights = list[dict[str, Any]]
"""One `{"kernel": [I, O], "bias": [O]}` per dense layer or slot, output last."""

Frame = tuple[int, ...]
"""Widths of the dense slots of a framed program, in order."""

_FUNCTIONS = {
  "sigmoid": jax.nn.sigmoid,
  "tanh": jnp.tanh,
  "relu": jax.nn.relu,
  "elu": jax.nn.elu,
}
_OUTPUT = np.uint32(2**31)  # where a dense layer's number would stand


class Slot(NamedTuple):
  """The layer in one slot, as a framed program reads it.

  All values are arrays of the host's making, in the form in which the program uses
  them: whatever it would have to derive from a genotype would be compiled once a slot.

  Attributes:
    inside: `[W]` float32, 1 for the units in use; all of them in an empty slot.
    used: float32, 0 for an empty slot, else 1.
    activation: the row of `ACTIVATION_TERMS`, as seven float32 scalars.
    salt: uint32, what sets the draws of this layer's dropout apart.
    kept: float32, the probability with which the dropout after it keeps a unit.
  """

  inside: Any
  used: Any
  activation: tuple[Any, ...]
  salt: Any
  kept: Any


# Each activation is
#   a + b tanh(c x) + d max(x, 0) + e expm1(min(x, 0)) + g min(x, 0),
# and its slope at the value y is
#   f (b^2 - (y - a)^2) + (d if y > 0 else e (y + 1) + g).
ACTIVATION_TERMS = {
  "sigmoid": (0.5, 0.5, 0.5, 0.0, 0.0, 1.0, 0.0),
  "tanh": (0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0),
  "relu": (0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0),
  "elu": (0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0),
}
_IDENTITY = (0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0)


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
  seed: Any, layers: tuple[Layer, ...], num_features: int, num_outputs: int
) -> Weights:
  """Exact weights on the host: Glorot-uniform kernels, zero biases (as Keras's).

  Args:
    seed: uint32 of this child.
    layers: the hidden layers.
    num_features: F.
    num_outputs: C.
  """
  sizes = [num_features, *dense_widths(layers), num_outputs]
  numbers = [*range(len(sizes) - 2), _OUTPUT]
  weights: Weights = []
  for fan_in, fan_out, number in zip(sizes[:-1], sizes[1:], numbers):
    limit = np.float32(np.sqrt(6.0 / (fan_in + fan_out)))
    draws = counter.uniform(
      counter.fold(np.uint32(seed), np.uint32(number)), (fan_in, fan_out), np
    )
    weights.append(
      {"kernel": (2 * draws - 1) * limit, "bias": np.zeros(fan_out, np.float32)}
    )
  return weights


def place(widths: Sequence[int], frame: Frame) -> tuple[int, ...] | None:
  """Which slot each dense layer takes, or None when the chain does not fit.

  The first layer takes the first slot. Layers keep their order, each in a slot at least
  as wide; a slot that stays empty passes on what comes from the layer before, so it is
  at least as wide as that. Each layer takes the first slot that will have it.
  """
  if not frame or widths[0] > frame[0]:
    return None
  taken = [0]
  for slot, room in enumerate(frame[1:], 1):
    if len(taken) < len(widths) and widths[len(taken)] <= room:
      taken.append(slot)
    elif room < widths[len(taken) - 1]:
      return None
  return tuple(taken) if len(taken) == len(widths) else None


def slots_of(layers: tuple[Layer, ...], frame: Frame) -> tuple[Slot, ...]:
  """The layers as a framed program reads them.

  Raises:
    ValueError: when the chain does not fit into the frame.
  """
  taken = place(dense_widths(layers), frame)
  if taken is None:
    raise ValueError(f"{layers} does not fit into {frame}")
  dense = {slot: found for slot, found in zip(taken, with_dropout(layers))}
  return tuple(
    Slot(
      inside=(np.arange(room) < dense[slot][1].width).astype(np.float32),
      used=np.float32(1.0),
      activation=tuple(map(np.float32, ACTIVATION_TERMS[dense[slot][1].activation])),
      salt=salt_of(dense[slot][0]),
      kept=np.float32(dense[slot][2]),
    )
    if slot in dense
    else Slot(
      inside=np.ones(room, np.float32),
      used=np.float32(0.0),
      activation=tuple(map(np.float32, _IDENTITY)),
      salt=np.uint32(0),
      kept=np.float32(1.0),
    )
    for slot, room in enumerate(frame)
  )


def with_dropout(layers: tuple[Layer, ...]) -> list[tuple[int, Dense, float]]:
  """Each dense layer with its position and what the dropout after it keeps.

  n dropout layers in a row keep a unit when all of them do, with probability
  (1 - rate)^n: that is one draw.
  """
  found: list[tuple[int, Dense, float]] = []
  for position, layer in enumerate(layers):
    if isinstance(layer, Dense):
      found.append((position, layer, 1.0))
    else:
      before, dense, kept = found[-1]
      found[-1] = before, dense, kept * (1.0 - layer.rate)
  return found


def salt_of(position: int) -> np.uint32:
  """What sets the dropout after the layer at this position apart."""
  return counter.fold(np.uint32(0), np.uint32(position + 1))


def pad(
  exact: Weights,
  layers: tuple[Layer, ...],
  frame: Frame,
  num_outputs: int,
  identity: float = 1.0,
) -> Weights:
  """Exact weights as framed ones, host side: zero outside the layers, the identity in
  empty slots. Moments of weights have `identity` 0: empty slots have no gradient."""
  rows = [exact[0]["kernel"].shape[0], *frame]
  framed: Weights = [
    {
      "kernel": identity * np.eye(i, o, dtype=np.float32),
      "bias": np.zeros(o, np.float32),
    }
    for i, o in zip(rows, [*frame, num_outputs])
  ]
  for slot, layer in zip([*(place(dense_widths(layers), frame) or ()), -1], exact):
    inputs, units = layer["kernel"].shape
    framed[slot]["kernel"][:] = 0.0
    framed[slot]["kernel"][:inputs, :units] = layer["kernel"]
    framed[slot]["bias"][:units] = layer["bias"]
  return framed


def cut(framed: Weights, layers: tuple[Layer, ...]) -> Weights:
  """Exact weights out of framed ones; the inverse of `pad`."""
  frame = tuple(layer["bias"].shape[0] for layer in framed[:-1])
  widths = dense_widths(layers)
  inputs = [framed[0]["kernel"].shape[0], *widths]
  outputs = [*widths, framed[-1]["bias"].shape[0]]
  return [
    {
      "kernel": framed[slot]["kernel"][:fan_in, :fan_out],
      "bias": framed[slot]["bias"][:fan_out],
    }
    for slot, fan_in, fan_out in zip(
      [*(place(widths, frame) or ()), -1], inputs, outputs
    )
  ]


def _drop(x_BW: jax.Array, seed: Any, kept: Any) -> jax.Array:
  batch, units = x_BW.shape
  keep = counter.uniform(seed, (batch, units)) < kept
  return jnp.where(keep, x_BW * jnp.asarray(1.0 / kept, x_BW.dtype), 0.0)


def apply(
  weights: Weights,
  layers: tuple[Layer, ...],
  x: jax.Array,
  dropout_seed: jax.Array | None = None,
) -> jax.Array:
  """The exact network.

  Args:
    weights: exact weights.
    layers: the hidden layers, static.
    x: `[B, F]`.
    dropout_seed: uint32 of this step for training; without one nothing is dropped.

  Returns:
    `[B, C]` outputs before the loss's own non-linearity.
  """
  for dense, (position, layer, kept) in zip(weights, with_dropout(layers)):
    x = _FUNCTIONS[layer.activation](x @ dense["kernel"] + dense["bias"][None])
    if dropout_seed is not None and kept < 1:
      x = _drop(x, dropout_seed ^ salt_of(position), np.float32(kept))
  head = weights[-1]
  return x @ head["kernel"] + head["bias"][None]


def apply_framed(
  weights: Weights,
  slots: Sequence[Slot],
  x: jax.Array,
  dropout_seed: jax.Array | None = None,
) -> jax.Array:
  """The framed network: one program for every chain that fits.

  Args:
    weights: framed weights; their shapes are the frame.
    slots: of the chain, traced.
    x: `[B, F]`.
    dropout_seed: uint32 of this step for training; without one nothing is dropped.

  Returns:
    `[B, C]` outputs, equal to those of `apply` up to rounding.
  """
  for i, (layer, slot) in enumerate(zip(weights, slots)):
    terms = tuple(jnp.asarray(term, x.dtype) for term in slot.activation)
    if i == 0:  # never empty
      z = x @ layer["kernel"] + layer["bias"][None]
    else:
      used = jnp.asarray(slot.used, x.dtype)
      z = _dense(x, layer["kernel"], layer["bias"], used)
    # sigmoid(0) is not 0: what is outside the layer must not reach the next one.
    x = activate(z, terms) * jnp.asarray(slot.inside, x.dtype)[None]
    if dropout_seed is not None:
      x = _drop(x, dropout_seed ^ slot.salt, slot.kept)
  head = weights[-1]
  return x @ head["kernel"] + head["bias"][None]


@jax.custom_vjp
def _dense(x: jax.Array, kernel: jax.Array, bias: jax.Array, used: Any) -> jax.Array:
  """A dense layer whose weights have no gradient where `used` is 0: Adam leaves them as
  they are, and what the layer passes on and back is exact."""
  return x @ kernel + bias[None]


def _dense_forward(x, kernel, bias, used):
  return _dense(x, kernel, bias, used), (x, kernel, used)


def _dense_backward(residuals, gradient):
  x, kernel, used = residuals
  own = gradient * used
  return gradient @ kernel.T, x.T @ own, own.sum(0), None


_dense.defvjp(_dense_forward, _dense_backward)


@jax.custom_vjp
def activate(x: jax.Array, terms: tuple[jax.Array, ...]) -> jax.Array:
  """The activation with those `ACTIVATION_TERMS`, traced."""
  a, b, c, d, e, _, g = terms
  below = jnp.minimum(x, 0.0)
  line = d * jnp.maximum(x, 0.0) + e * jnp.expm1(below) + g * below
  return a + b * jnp.tanh(c * x) + line


def slope(y: jax.Array, terms: tuple[jax.Array, ...]) -> jax.Array:
  """The slope of `activate` where its value is `y`."""
  a, b, _, d, e, f, g = terms
  return f * (b * b - jnp.square(y - a)) + jnp.where(y > 0, d, e * (y + 1.0) + g)


def _activate_forward(x, terms):
  y = activate(x, terms)
  return y, (y, terms)


def _activate_backward(residuals, gradient):
  return gradient * slope(*residuals), None


activate.defvjp(_activate_forward, _activate_backward)
