"""An epoch of a chain in tiles: `step.make_epoch`, whatever the architecture.

Reverse mode cannot go through a loop whose length is data, and need not: the backward
pass of a chain is a walk over the same tiles from the end. A tile of weights is moved
as soon as its gradient is known, so no gradient is ever stored.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from nasjax.networks import mlp
from nasjax.networks.tiled import (
  TILE,
  Bounds,
  TiledWeights,
  TileMap,
  apply,
  as_tiles,
  at,
  dropout,
  last_layer,
  put,
  terms_of,
  walk,
)
from nasjax.training.losses import Task
from nasjax.training.step import DeviceData, Schedule, TrainState, adam, predict


def make_tiled_epoch(task: Task, bounds: Bounds) -> Callable:
  """Builds the program.

  Args:
    task: loss and metric.
    bounds: of the space.

  Returns:
    `epoch(state, chain, seeds [S], rows [S, B], schedule of [S], data) -> (state,
    losses [S], outputs [M, C])`; see `step.make_epoch`.
  """

  def epoch(
    state: TrainState, chain: TileMap, seeds, rows, schedule: Schedule, data: DeviceData
  ):
    batch = rows.shape[1]

    def step(carry, inputs):
      state, values, slopes = carry
      rows, seed, sizes = inputs
      x = data.x_train.at[rows].get(mode="promise_in_bounds")
      y = data.y_train.at[rows].get(mode="promise_in_bounds")
      values = lax.dynamic_update_slice(values, as_tiles(x), (0, 0))
      values = walk(state.weights, chain, chain.training, values, batch, seed)
      last = last_layer(chain, chain.training, values, batch)
      weights = state.weights
      loss, (head, head_bias, last_slopes) = jax.value_and_grad(
        lambda head, bias, last: task.train_loss(last @ head + bias[None], y).mean(),
        (0, 1, 2),
      )(weights.head, weights.head_bias, last)
      slopes = lax.dynamic_update_slice(
        slopes, as_tiles(last_slopes), (chain.training.last * batch, 0)
      )
      moved, slopes = _walk_back(state, chain, values, slopes, batch, seed, sizes)
      outer = zip(
        _move(sizes, [part.head for part in state], head),
        _move(sizes, [part.head_bias for part in state], head_bias),
      )
      state = TrainState(*(TiledWeights(*a, *b) for a, b in zip(moved, outer)))
      return (state, values, slopes), loss

    # Beyond the last layer's place there is room to read as much as the widest has.
    places = bounds.in_tiles + bounds.out_tiles + bounds.layer_tiles
    buffer = jnp.zeros((places * batch, TILE), jnp.float32)
    carry: Any = (state, buffer, buffer)
    (state, *_), losses = lax.scan(step, carry, (rows, seeds, schedule))
    outputs = predict(lambda x: apply(state.weights, chain, x, bounds), data.x_valid)
    return state, losses, outputs

  return epoch


def _move(sizes: Schedule, parts: Sequence[jax.Array], gradient: jax.Array):
  """`(weight, first, second)` after Adam's step."""
  weight, first, second = parts
  return adam(sizes, weight, first, second, gradient)


def _walk_back(
  state: TrainState,
  chain: TileMap,
  values: jax.Array,
  slopes: jax.Array,
  batch: int,
  seed: Any,
  sizes: Schedule,
) -> tuple[list[tuple[jax.Array, jax.Array]], jax.Array]:
  """Moves the weights of all hidden layers by one step.

  Args:
    state: before the step.
    chain: the map.
    values: `[N B, T]`, the activations of the forward walk.
    slopes: `[N B, T]`, of the loss by those of the last layer; elsewhere any numbers.
    batch: B.
    seed: of dropout.
    sizes: Adam's, of this step.

  Returns:
    `(kernels, biases)` of the weights and of both moments, and the slopes' buffer.
  """
  source, target = chain.training.source, chain.training.target

  def tiles_at(kernels, number):
    return tuple(at(array, number, TILE) for array in kernels)

  def out_tile(number, carry):
    kernels, of_biases, slopes = carry
    p = chain.count - 1 - number
    # What dropout divided by `kept` is multiplied with it again: the slope is that
    # of the activation's own value. Where it was dropped, nothing passes anyway.
    y = at(values, target[p], batch) * chain.kept[p]
    passed = at(slopes, target[p], batch) * dropout(chain, p, batch, seed)
    inside = at(chain.inside, p, 1)
    gradient = passed * inside * mlp.slope(y, terms_of(chain, p))
    of_biases = put(of_biases, gradient.sum(0, keepdims=True), p)

    def in_tile(i, carry):
      # The tiles come with the carry: a loop that both slices and updates an array
      # which it carries would copy all of it.
      kernels, slopes, tiles = carry
      place, number = source[p] + i, chain.first_kernel[p] + i
      back = at(slopes, place, batch) * chain.adds[p] + gradient @ tiles[0].T
      moved = _move(sizes, tiles, at(values, place, batch).T @ gradient)
      kernels = tuple(put(array, new, number) for array, new in zip(kernels, moved))
      return kernels, put(slopes, back, place), tiles_at(kernels, number + 1)

    first = tiles_at(kernels, chain.first_kernel[p])
    kernels, slopes, _ = lax.fori_loop(
      0, chain.num_inputs[p], in_tile, (kernels, slopes, first)
    )
    return kernels, of_biases, slopes

  biases = [part.biases for part in state]
  kernels, of_biases, slopes = lax.fori_loop(
    0,
    chain.count,
    out_tile,
    (
      tuple(part.kernels for part in state),
      jnp.zeros_like(biases[0]),
      slopes,
    ),
  )
  return list(zip(kernels, _move(sizes, biases, of_biases))), slopes
