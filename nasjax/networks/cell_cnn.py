"""Convolutional networks made of cells: the skeleton, and a derived cell in it.

Liu, Simonyan and Yang, "DARTS: differentiable architecture search", ICLR 2019: a stem,
normal cells with two reduction cells among them, the mean over the image, a linear
classifier. What happens on the edges of a cell is a parameter: the mixed edges of a
supernet (`supernet_cnn`), or the operations of a genotype (here).

Images are `[C, H, W, N]` inside, see `convolution`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nasjax.core import counter
from nasjax.core.types import InputError
from nasjax.networks import convolution
from nasjax.networks.ops import (
  OPS,
  Norms,
  Weights,
  factorized_reduce,
  factorized_reduce_init,
  init_norm,
  init_uniform,
  relu_conv_norm,
  relu_conv_norm_init,
)
from nasjax.spaces.conv_cell import Cells

STEM_MULTIPLIER = 3
_AUXILIARY_CHANNELS = (128, 768)
_AUXILIARY_POOL = (5, 3)  # size, stride


class CellPlan(NamedTuple):
  """The place of one cell in a network.

  Attributes:
    channels: C of each of its nodes.
    reduction: whether it halves the image.
    after_reduction: whether the cell before it does, so that its first input, from one
      cell earlier, is twice as large.
    inputs: channels of its two inputs.
  """

  channels: int
  reduction: bool
  after_reduction: bool
  inputs: tuple[int, int]

  @property
  def kind(self) -> str:
    """Which of the two cells: one of `spaces.conv_cell.CELLS`."""
    return "reduce" if self.reduction else "normal"


class Plan(NamedTuple):
  """A network of cells, static.

  Attributes:
    image: (H, W, C) of what it sees.
    classes: that it tells apart.
    cells: in order.
    nodes: of each cell.
  """

  image: tuple[int, int, int]
  classes: int
  cells: tuple[CellPlan, ...]
  nodes: int

  @property
  def reductions(self) -> tuple[int, int]:
    """Which cells halve the image."""
    return _reductions(len(self.cells))

  @property
  def outputs(self) -> int:
    """Channels before the classifier."""
    return self.cells[-1].channels * self.nodes


def _reductions(layers: int) -> tuple[int, int]:
  return layers // 3, 2 * layers // 3


def check_image(image: tuple[int, int, int]) -> None:
  """Refuses images (H, W, C) too small to be halved twice.

  Raises:
    InputError: with their size.
  """
  if min(image[:2]) < 4:
    raise InputError(
      f"images of {image[0]} x {image[1]} pixels are too small for two reductions: at "
      "least 4 x 4 are needed"
    )


def make_plan(
  image: tuple[int, int, int],
  classes: int,
  channels: int = 16,
  layers: int = 8,
  nodes: int = 4,
) -> Plan:
  """The authors' skeleton: reductions at a third and two thirds, each doubles C.

  Raises:
    InputError: too few layers or channels, or an image too small to be halved twice.
  """
  if layers < 3:
    raise InputError(
      f"{layers} cells are too few for two reductions: at least 3 are needed"
    )
  if channels < 1 or nodes < 1:
    raise InputError(f"channels and nodes must be positive, got {channels} and {nodes}")
  check_image(image)
  cells = []
  before, last, after_reduction = (STEM_MULTIPLIER * channels,) * 2 + (False,)
  for layer in range(layers):
    reduction = layer in _reductions(layers)
    channels *= 1 + reduction
    cells.append(CellPlan(channels, reduction, after_reduction, (before, last)))
    before, last, after_reduction = last, nodes * channels, reduction
  return Plan(image, classes, tuple(cells), nodes)


def init(
  seed: np.uint32,
  plan: Plan,
  init_edges: Callable[[np.uint32, CellPlan], Any],
  affine: bool,
) -> Weights:
  """Initial weights.

  Args:
    seed: uint32 of this network.
    plan: the network.
    init_edges: `(seed, cell) -> weights` of the edges of one cell.
    affine: whether the normalisations of cells learn a scale and a shift.
  """
  stem_seed, cells_seed, classifier_seed = counter.named(
    seed, "stem", "cells", "classifier"
  )
  channels, seen = plan.cells[0].inputs[0], plan.image[2]
  cells = []
  for number, cell in enumerate(plan.cells):
    first, second, edges = counter.named(
      counter.fold(cells_seed, np.uint32(number)), "first", "second", "edges"
    )
    make = factorized_reduce_init if cell.after_reduction else relu_conv_norm_init
    cells.append(
      {
        "first": make(first, cell.inputs[0], cell.channels, affine),
        "second": relu_conv_norm_init(second, cell.inputs[1], cell.channels, affine),
        "edges": init_edges(edges, cell),
      }
    )
  kernel_seed, bias_seed = counter.named(classifier_seed, "kernel", "bias")
  return {
    "stem": {
      "kernel": init_uniform(stem_seed, (channels, seen, 3, 3), 9 * seen),
      "norm": init_norm(channels, True),
    },
    "cells": cells,
    "classifier": {
      "kernel": init_uniform(kernel_seed, (plan.outputs, plan.classes), plan.outputs),
      "bias": init_uniform(bias_seed, (plan.classes,), plan.outputs),
    },
  }


class Output(NamedTuple):
  """What a network gives.

  Attributes:
    logits: `[N, classes]`.
    auxiliary: `[C, H, W, N]`, the output of the second reduction cell, for the
      auxiliary head.
    statistics: mean and variance of every normalisation in this batch; empty when they
      were given.
  """

  logits: jax.Array
  auxiliary: jax.Array
  statistics: Any


def apply(
  weights: Weights,
  plan: Plan,
  x: jax.Array,
  apply_edges: Callable[..., jax.Array],
  statistics: Any = None,
  remat: bool = False,
  dtype: Any = None,
) -> Output:
  """Runs a network.

  Args:
    weights: of `init`.
    plan: the network.
    x: `[N, H, W, C]`.
    apply_edges: `(weights, number of the cell, s0, s1, norms) -> [nodes * C, H, W, N]`
      with `s0` and `s1 [C, H, W, N]` what the cell's two inputs became.
    statistics: as an `Output` has them, to normalise with; None for the batch's own.
    remat: a cell's activations are computed again on the way back, instead of kept.
    dtype: of activations; None for that of x. Statistics and logits are float32.
  """
  x = x if dtype is None else x.astype(dtype)
  given = statistics or [None] * (len(plan.cells) + 1)
  stem_norms = Norms(given[0])
  x = convolution.dense(x.transpose(3, 1, 2, 0), weights["stem"]["kernel"])
  before = last = stem_norms(x, weights["stem"]["norm"])
  seen = [stem_norms.seen]
  auxiliary = last
  for number, cell in enumerate(plan.cells):

    def run(weights, before, last, given, number=number, cell=cell):
      norms = Norms(given)
      first = factorized_reduce if cell.after_reduction else relu_conv_norm
      s0 = first(weights["first"], before, norms)
      s1 = relu_conv_norm(weights["second"], last, norms)
      return apply_edges(weights["edges"], number, s0, s1, norms), norms.seen

    run = jax.checkpoint(run) if remat else run
    out, found = run(weights["cells"][number], before, last, given[number + 1])
    before, last = last, out
    seen.append(found)
    if number == plan.reductions[1]:
      auxiliary = last
  head = weights["classifier"]
  logits = _features(last) @ head["kernel"] + head["bias"][None]
  return Output(logits.astype(jnp.float32), auxiliary, seen)


def _features(x: jax.Array) -> jax.Array:
  """`[N, C]` means over the image of `x [C, H, W, N]`, at least float32."""
  return x.astype(jnp.promote_types(x.dtype, jnp.float32)).mean((1, 2)).T


class DropPath(NamedTuple):
  """Paths dropped by example (Larsson et al. 2017).

  Attributes:
    key: typed, of this step.
    rate: traced; the part of (edge, example) that gives nothing.
  """

  key: jax.Array
  rate: jax.Array

  def __call__(self, x: jax.Array, edge: int) -> jax.Array:
    """`x [C, H, W, N]` with some examples zero and the others larger for it."""
    kept = 1.0 - self.rate
    keep = jax.random.bernoulli(jax.random.fold_in(self.key, edge), kept, x.shape[3:])
    return x * (keep / kept).astype(x.dtype)[None, None, None]


def derived_init(seed: np.uint32, plan: Plan, cells: Cells) -> Weights:
  """Initial weights of the network of a genotype."""

  def init_edges(seed, cell):
    return [
      [
        OPS[edge.op].init(
          counter.fold(seed, np.uint32(2 * node + place)),
          cell.channels,
          _stride(cell, edge),
          True,
        )
        for place, edge in enumerate(read)
      ]
      for node, read in enumerate(getattr(cells, cell.kind))
    ]

  return init(seed, plan, init_edges, affine=True)


def _stride(cell: CellPlan, edge) -> int:
  return 2 if cell.reduction and edge.source < 2 else 1


def derived(
  weights: Weights,
  plan: Plan,
  cells: Cells,
  x: jax.Array,
  statistics: Any = None,
  drop_path: DropPath | None = None,
  remat: bool = False,
  dtype: Any = None,
) -> Output:
  """The network of a genotype; see `apply`. `drop_path` is for training."""

  def apply_edges(weights, number, s0, s1, norms):
    cell = plan.cells[number]
    states, count = [s0, s1], 0
    for node, read in zip(weights, getattr(cells, cell.kind)):
      total = None
      for edge_weights, edge in zip(node, read):
        stride = _stride(cell, edge)
        made = OPS[edge.op].apply(edge_weights, states[edge.source], stride, norms)
        if drop_path is not None and (edge.op, stride) != ("skip_connect", 1):
          made = drop_path(made, number * 2 * plan.nodes + count)
        count += 1
        total = made if total is None else total + made
      states.append(total)
    return jnp.concatenate(states[2:])

  return apply(weights, plan, x, apply_edges, statistics, remat, dtype)


def auxiliary_init(seed: np.uint32, plan: Plan) -> Weights:
  """Weights of the auxiliary head, a second classifier after the second reduction.

  Raises:
    InputError: the image is too small there.
  """
  height, width = (-(-side // 4) for side in plan.image[:2])
  size, stride = _AUXILIARY_POOL
  if min(height, width) < size + stride:
    raise InputError(
      f"the auxiliary head needs {size + stride} x {size + stride} pixels after the "
      f"reductions; {plan.image[0]} x {plan.image[1]} leave {height} x {width}"
    )
  first, second, kernel, bias = counter.named(seed, "first", "second", "kernel", "bias")
  inputs = plan.cells[plan.reductions[1]].channels * plan.nodes
  narrow, wide = _AUXILIARY_CHANNELS
  return {
    "first": init_uniform(first, (narrow, inputs), inputs),
    "first_norm": init_norm(narrow, True),
    "second": init_uniform(second, (wide, 4 * narrow), 4 * narrow),
    "second_norm": init_norm(wide, True),
    "kernel": init_uniform(kernel, (wide, plan.classes), wide),
    "bias": init_uniform(bias, (plan.classes,), wide),
  }


def auxiliary_logits(weights: Weights, x: jax.Array) -> jax.Array:
  """`[N, classes]` of the auxiliary head on `x [C, H, W, N]`; only for training."""
  norms = Norms()
  size, stride = _AUXILIARY_POOL
  x = jax.lax.reduce_window(
    jax.nn.relu(x),
    np.zeros((), x.dtype),
    jax.lax.add,
    (1, size, size, 1),
    (1, stride, stride, 1),
    "VALID",
  ) / (size * size)
  x = convolution.pointwise(x, weights["first"])
  x = jax.nn.relu(norms(x, weights["first_norm"]))
  height, width = (side - 1 for side in x.shape[1:3])
  shifted = [x[:, i : i + height, j : j + width] for i in (0, 1) for j in (0, 1)]
  x = convolution.pointwise(jnp.concatenate(shifted), weights["second"])
  x = jax.nn.relu(norms(x, weights["second_norm"]))
  return _features(x) @ weights["kernel"] + weights["bias"][None]


def num_params(weights: Any) -> int:
  """Weights in a pytree of them."""
  return sum(part.size for part in jax.tree.leaves(weights))
