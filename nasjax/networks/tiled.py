"""The third form of a chain: weights in square tiles, one program for every chain.

Exact and framed programs know the shapes of a network; here the shapes are data. Every
kernel is cut into tiles of 64 x 64, and a program walks over those that the chain has:
how many there are, and which activations each one reads, are numbers in a map that the
host makes. Nothing is compiled for an architecture, and nothing is padded but the rim
of the last tile. The price is the walking, two to three times the time of the exact
program on a CPU, eight times for tiny chains: the form for tables on which compiling
takes longer than training.
(Grouping products of unequal shapes into equal tiles is what MegaBlocks does for
experts; Gale et al. 2023.)

The draws are those of the other forms: weights come in from `mlp.init`, and a dropout
mask is drawn by coordinate.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nasjax.core import counter
from nasjax.networks import mlp
from nasjax.spaces.mlp_chain import Layer

TILE = 64


class Bounds(NamedTuple):
  """What the chains of a space have at most.

  Attributes:
    features: F.
    units: of a layer.
    layers: dense ones.
    outputs: C.
  """

  features: int
  units: int
  layers: int
  outputs: int

  @property
  def bytes(self) -> int:
    """Of the state of one child: weights and two moments, whatever its chain."""
    return 3 * 4 * TILE**2 * self.kernel_tiles

  @property
  def in_tiles(self) -> int:
    """Tiles of the features."""
    return num_tiles(self.features)

  @property
  def layer_tiles(self) -> int:
    """Tiles of the widest layer."""
    return num_tiles(self.units)

  @property
  def out_tiles(self) -> int:
    """Tiles of units in all layers."""
    return self.layers * self.layer_tiles

  @property
  def kernel_tiles(self) -> int:
    """Tiles of weights in all layers."""
    later = (self.layers - 1) * self.layer_tiles**2
    return self.in_tiles * self.layer_tiles + later


class TiledWeights(NamedTuple):
  """The weights of a chain.

  Attributes:
    kernels: `[K T, T]`, tile under tile: by layer, in it by column of tiles.
    biases: `[P, T]`.
    head: `[U, C]`.
    head_bias: `[C]`.
  """

  kernels: Any
  biases: Any
  head: Any
  head_bias: Any


class Places(NamedTuple):
  """Where activations lie in a buffer of tiles.

  Attributes:
    source: `[P]`, the first tile that an out tile reads.
    target: `[P]`, where it is written.
    last: where the last layer begins.
  """

  source: Any
  target: Any
  last: Any


class TileMap(NamedTuple):
  """A chain as a tiled program reads it; `[P]` is by out tile, in order.

  Attributes:
    count: of out tiles.
    num_inputs: `[P]`, tiles of the layer before.
    first_kernel: `[P]`, the first of its tiles of weights.
    adds: `[P]` float32, 0 for the last of its layer: going backwards, it is the first
      to say what the layer before contributes, and the others add to it.
    first_column: `[P]` uint32, its first unit's number in the layer.
    inside: `[P, T]`, 1 for the units that there are.
    activation: seven of `[P]`, `mlp.ACTIVATION_TERMS`.
    salt: `[P]` uint32, see `mlp.Slot`.
    kept: `[P]`, likewise.
    last_units: `[U]`, 1 for the units of the last layer.
    training: every layer's activations at a place of their own.
    passing: a layer's activations where those of the layer before the last were.
  """

  count: Any
  num_inputs: Any
  first_kernel: Any
  adds: Any
  first_column: Any
  inside: Any
  activation: tuple[Any, ...]
  salt: Any
  kept: Any
  last_units: Any
  training: Places
  passing: Places


def num_tiles(units: int) -> int:
  """Tiles for so many units."""
  return -(-units // TILE)


def count_tiles(widths: Sequence[int], num_features: int) -> tuple[int, int]:
  """(out tiles, tiles of weights) of a chain with those widths."""
  tiles = [num_tiles(num_features), *map(num_tiles, widths)]
  return sum(tiles[1:]), sum(i * o for i, o in zip(tiles[:-1], tiles[1:]))


def map_of(layers: tuple[Layer, ...], bounds: Bounds) -> TileMap:
  """The map of a chain; host side."""
  most, half = bounds.out_tiles, max(bounds.in_tiles, bounds.layer_tiles)
  rows: list[dict[str, Any]] = []
  before, kernel = bounds.in_tiles, 0
  source = 0  # of a layer, in the training buffer
  dense = mlp.with_dropout(layers)
  for number, (position, layer, kept) in enumerate(dense):
    tiles = num_tiles(layer.width)
    for tile in range(tiles):
      units = tile * TILE + np.arange(TILE)
      rows.append(
        dict(
          num_inputs=before,
          first_kernel=kernel,
          adds=tile < tiles - 1,
          first_column=tile * TILE,
          inside=units < layer.width,
          activation=mlp.ACTIVATION_TERMS[layer.activation],
          salt=mlp.salt_of(position),
          kept=kept,
          source=source,
          target=bounds.in_tiles + len(rows),
          passing_source=number % 2 * half,
          passing_target=(number + 1) % 2 * half + tile,
        )
      )
      kernel += before
    source, before = source + before, tiles
  last_width = dense[-1][1].width

  def column(name, dtype):
    values = np.array([row[name] for row in rows], dtype)
    filled = np.zeros((most, *values.shape[1:]), dtype)
    filled[: len(rows)] = values
    return filled

  int32, uint32, float32 = np.int32, np.uint32, np.float32
  return TileMap(
    count=int32(len(rows)),
    num_inputs=column("num_inputs", int32),
    first_kernel=column("first_kernel", int32),
    adds=column("adds", float32),
    first_column=column("first_column", uint32),
    inside=column("inside", float32),
    activation=tuple(column("activation", float32).T.copy()),
    salt=column("salt", uint32),
    kept=column("kept", float32),
    last_units=(np.arange(bounds.layer_tiles * TILE) < last_width).astype(float32),
    training=Places(column("source", int32), column("target", int32), np.int32(source)),
    passing=Places(
      column("passing_source", int32),
      column("passing_target", int32),
      np.int32(len(dense) % 2 * half),
    ),
  )


def pack(exact: mlp.Weights, bounds: Bounds) -> TiledWeights:
  """Exact weights in tiles; host side."""
  units, outputs = bounds.layer_tiles * TILE, bounds.outputs
  weights = TiledWeights(
    np.zeros((bounds.kernel_tiles * TILE, TILE), np.float32),
    np.zeros((bounds.out_tiles, TILE), np.float32),
    np.zeros((units, outputs), np.float32),
    np.zeros(outputs, np.float32),
  )
  for layer, tiles in zip(exact[:-1], _layers(weights, _sizes(exact))):
    for part, (kernel, bias) in tiles:
      whole = layer["kernel"][part]
      kernel[: whole.shape[0], : whole.shape[1]] = whole
      bias[: whole.shape[1]] = layer["bias"][part[1]]
  head = exact[-1]
  weights.head[: len(head["kernel"])] = head["kernel"]
  weights.head_bias[:] = head["bias"]
  return weights


def cut(
  weights: TiledWeights, layers: tuple[Layer, ...], bounds: Bounds
) -> mlp.Weights:
  """Exact weights on the host, copied out of tiles; the inverse of `pack`."""
  # Views that are gone when this returns: the weights are donated to the next epoch.
  weights = jax.tree.map(np.from_dlpack, weights)
  sizes = [bounds.features, *mlp.dense_widths(layers), bounds.outputs]
  exact: mlp.Weights = [
    {"kernel": np.empty((i, o), np.float32), "bias": np.empty(o, np.float32)}
    for i, o in zip(sizes[:-1], sizes[1:])
  ]
  for layer, tiles in zip(exact[:-1], _layers(weights, sizes)):
    for part, (kernel, bias) in tiles:
      whole = layer["kernel"][part]
      whole[:] = kernel[: whole.shape[0], : whole.shape[1]]
      layer["bias"][part[1]] = bias[: whole.shape[1]]
  exact[-1]["kernel"][:] = weights.head[: sizes[-2]]
  exact[-1]["bias"][:] = weights.head_bias
  return exact


def _sizes(exact: mlp.Weights) -> list[int]:
  return [len(layer["kernel"]) for layer in exact] + [len(exact[-1]["bias"])]


def _layers(weights: TiledWeights, sizes: Sequence[int]):
  """By hidden layer: `((rows, columns) of the kernel, (its tile, its bias tile))`."""
  kernel = out = 0
  for inputs, units in zip(sizes[:-2], sizes[1:-1]):
    tiles = []
    for column in range(num_tiles(units)):
      for row in range(num_tiles(inputs)):
        part = tuple(slice(n * TILE, (n + 1) * TILE) for n in (row, column))
        tile = weights.kernels[kernel * TILE : (kernel + 1) * TILE]
        tiles.append((part, (tile, weights.biases[out])))
        kernel += 1
      out += 1
    yield tiles


def at(array: jax.Array, place: Any, rows: int) -> jax.Array:
  """The block of so many rows of `[N rows, T]` at a place.

  (XLA reads a block of rows at the speed of memory, one of `[N, rows, T]` at a third.)
  """
  return lax.dynamic_slice(
    array, (place * rows, 0), (rows, array.shape[1]), allow_negative_indices=False
  )


def put(array: jax.Array, block: jax.Array, place: Any) -> jax.Array:
  """`array` with that block at a place."""
  return lax.dynamic_update_slice(
    array, block, (place * len(block), 0), allow_negative_indices=False
  )


def as_tiles(x: jax.Array) -> jax.Array:
  """`[B, N]` as `[N B / T, T]`, tile under tile, filled up with zeros."""
  batch, units = x.shape
  tiles = num_tiles(units)
  x = jnp.pad(x, ((0, 0), (0, tiles * TILE - units)))
  return x.reshape(batch, tiles, TILE).swapaxes(0, 1).reshape(-1, TILE)


def dropout(chain: TileMap, p: Any, rows: int, seed: Any) -> jax.Array:
  """`[B, T]`: what dropout multiplies out tile p with."""

  def drawn():
    draws = counter.uniform(
      seed ^ chain.salt[p], (rows, TILE), first_column=chain.first_column[p]
    )
    return jnp.where(draws < chain.kept[p], 1.0 / chain.kept[p], 0.0)

  return lax.cond(chain.kept[p] < 1, drawn, lambda: jnp.ones((rows, TILE), jnp.float32))


def terms_of(chain: TileMap, p: Any) -> tuple[jax.Array, ...]:
  """The `mlp.ACTIVATION_TERMS` of out tile p."""
  return tuple(term[p] for term in chain.activation)


def walk(
  weights: TiledWeights,
  chain: TileMap,
  places: Places,
  buffer: jax.Array,
  rows: int,
  seed: Any = None,
) -> jax.Array:
  """Fills a buffer with the activations of every layer.

  Args:
    weights: in tiles.
    chain: the map.
    places: of `chain`, those that belong to the buffer.
    buffer: `[N B, T]` with the features (`as_tiles`) in front.
    rows: B.
    seed: uint32 for dropout; without one nothing is dropped.
  """

  def out_tile(p, buffer):
    def add(i, z):
      kernel = at(weights.kernels, chain.first_kernel[p] + i, TILE)
      return z + at(buffer, places.source[p] + i, rows) @ kernel

    bias = jnp.broadcast_to(at(weights.biases, p, 1), (rows, TILE))
    z = lax.fori_loop(0, chain.num_inputs[p], add, bias)
    y = mlp.activate(z, terms_of(chain, p)) * at(chain.inside, p, 1)
    if seed is not None:
      y = y * dropout(chain, p, rows, seed)
    return put(buffer, y, places.target[p])

  return lax.fori_loop(0, chain.count, out_tile, buffer)


def last_layer(
  chain: TileMap, places: Places, buffer: jax.Array, rows: int
) -> jax.Array:
  """`[B, U]`: the last layer's activations out of a filled buffer, zero beyond it."""
  units = len(chain.last_units)
  tiles = lax.dynamic_slice_in_dim(buffer, places.last * rows, units // TILE * rows)
  y = tiles.reshape(-1, rows, TILE).swapaxes(0, 1).reshape(rows, units)
  # What lies there from before may be anything.
  return jnp.where(chain.last_units[None] > 0, y, 0.0)


def apply(
  weights: TiledWeights, chain: TileMap, x: jax.Array, bounds: Bounds
) -> jax.Array:
  """Outputs `[B, C]` on `x [B, F]`, nothing dropped; equal to `mlp.apply` up to
  rounding."""
  rows, half = x.shape[0], max(bounds.in_tiles, bounds.layer_tiles)
  buffer = jnp.zeros((2 * half * rows, TILE), jnp.float32)
  buffer = lax.dynamic_update_slice(buffer, as_tiles(x), (0, 0))
  buffer = walk(weights, chain, chain.passing, buffer, rows)
  y = last_layer(chain, chain.passing, buffer, rows)
  return y @ weights.head + weights.head_bias[None]
