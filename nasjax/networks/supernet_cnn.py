"""The supernet of DARTS: every operation on every edge, weighed by alphas.

Liu, Simonyan and Yang, ICLR 2019, section 2.2. The two cells of a genotype have one
table of alphas each, shared by all cells of their kind.

The weights of all edges of one shape are stacked, and a cell's edges are evaluated in
one of two ways (`Form.stacked`), equal up to rounding:

* one after another, in a loop (`lax.scan`): a network of 8 cells has 112 mixed edges
  but 10 loops, and what is compiled is one edge a loop. A CPU is busy with one edge.
* all edges that leave one state together, along the channels: 4 stages a cell, and what
  has no weights (ReLU, pools) once a state. One edge leaves an accelerator idle.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nasjax.core import counter, keys
from nasjax.networks import cell_cnn
from nasjax.networks.cell_cnn import CellPlan, Plan
from nasjax.networks.ops import Norms, Weights, mixed, mixed_init
from nasjax.spaces.conv_cell import CELLS, PRIMITIVES, edges

Alphas = dict[str, Any]
"""For each of `spaces.conv_cell.CELLS` `[E, K]` logits."""


class Form(NamedTuple):
  """How a supernet is evaluated, static.

  Attributes:
    stacked: edges that leave one state together, instead of one after another.
    remat: a cell's activations are computed again on the way back, instead of kept.
    dtype: of activations, such as "bfloat16"; None for that of the images. Weights and
      statistics stay as they are.
  """

  stacked: bool = False
  remat: bool = False
  dtype: Any = None


LOOPS = Form()


def init_alphas(key: jax.Array, nodes: int = 4) -> Alphas:
  """Almost equal weights: 1e-3 times a standard normal."""
  shape = (len(edges(nodes)), len(PRIMITIVES))
  return {
    name: 1e-3 * jax.random.normal(own, shape)
    for name, own in zip(CELLS, keys.named(key, *CELLS))
  }


def _loops(cell: CellPlan, nodes: int) -> dict[str, np.ndarray]:
  """Which edges are one loop: those that halve the image, and the others."""
  halving = np.array([cell.reduction and source < 2 for source, _ in edges(nodes)])
  loops = {"halving": np.flatnonzero(halving), "same": np.flatnonzero(~halving)}
  return {name: members for name, members in loops.items() if len(members)}


def init(seed: np.uint32, plan: Plan) -> Weights:
  """Initial weights, on the host; a loop's edges are stacked, `[edges, ...]`."""

  def init_edges(seed, cell):
    stacked = {}
    for name, members in _loops(cell, plan.nodes).items():
      made = [
        mixed_init(
          counter.fold(seed, np.uint32(edge)),
          cell.channels,
          2 if name == "halving" else 1,
        )
        for edge in members
      ]
      stacked[name] = jax.tree.map(lambda *parts: np.stack(parts), *made)
    return stacked

  return cell_cnn.init(seed, plan, init_edges, affine=False)


def apply(
  weights: Weights,
  alphas: Alphas,
  plan: Plan,
  x: jax.Array,
  statistics: Any = None,
  form: Form = LOOPS,
) -> cell_cnn.Output:
  """The supernet on `x [N, H, W, C]`; see `cell_cnn.apply`.

  In a loop an edge's activations are computed again on the way back (Chen et al.,
  "Training deep nets with sublinear memory cost", 2016). Kept, they take 13 times the
  memory, and on a CPU twice the time: a loop writes what it keeps for every edge into
  one large array.
  """
  mix = {name: jax.nn.softmax(table, -1) for name, table in alphas.items()}

  def apply_edges(weights, number, s0, s1, norms):
    cell = plan.cells[number]
    run = stacked_edges if form.stacked else cell_edges
    return run(weights, mix[cell.kind], cell, plan.nodes, s0, s1, norms)

  return cell_cnn.apply(
    weights, plan, x, apply_edges, statistics, form.remat, form.dtype
  )


def cell_edges(
  weights: Weights,
  mix_EK: jax.Array,
  cell: CellPlan,
  num_nodes: int,
  s0: jax.Array,
  s1: jax.Array,
  norms: Norms,
) -> jax.Array:
  """All mixed edges of one cell, one after another.

  Args:
    weights: of its loops.
    mix_EK: `[E, K]` weight of each operation on each edge.
    cell: its place.
    num_nodes: of it.
    s0: `[C, H, W, N]` its first input.
    s1: its second.
    norms: of this pass.

  Returns:
    `[num_nodes * C, H, W, N]`, half as large in a reduction cell.
  """
  wiring = np.array(edges(num_nodes))
  inputs = jnp.stack([s0, s1])
  channels, *sides, examples = s0.shape
  height, width = (-(-side // (1 + cell.reduction)) for side in sides)
  # The states of the cell, filled from the left; a reduction's inputs are larger than
  # its nodes and stay apart.
  states = jnp.zeros((num_nodes, channels, height, width, examples), s0.dtype)
  offset = 2
  if not cell.reduction:
    states, offset = jnp.concatenate([inputs, states]), 0
  for name, members in _loops(cell, num_nodes).items():
    source, target = wiring[members].T
    halves = name == "halving"
    states = _loop(
      weights[name],
      mix_EK[members],
      inputs if halves else None,
      states,
      source if halves else source - offset,
      target - offset,
      norms,
    )
  return states[-num_nodes:].reshape(-1, height, width, examples)


def _loop(weights, mix_EK, inputs, states, source, target, norms: Norms):
  """Adds each edge's output to its target, in order: a source is complete when read.

  Args:
    weights: stacked, `[E, ...]`.
    mix_EK: weight of each operation on each edge.
    inputs: `[2, C, H, W, N]` that the edges read and halve, or None to read states.
    states: `[S, C, H, W, N]`.
    source: `[E]` which input or state each edge reads.
    target: `[E]` which state it adds to.
    norms: of this pass.
  """
  stride = 1 if inputs is None else 2
  edge = functools.partial(_edge, stride)

  def body(states, inputs_of_edge):
    weights, mix_K, source, target, given = inputs_of_edge
    read = states if inputs is None else inputs
    # The loop already keeps the compiler from merging the second computation with the
    # first.
    made, seen = jax.checkpoint(edge, prevent_cse=False)(
      weights, mix_K, jax.lax.dynamic_index_in_dim(read, source, keepdims=False), given
    )
    return states.at[target].add(made), seen

  given = norms.take(_num_norms(stride))
  over = (weights, mix_EK, jnp.asarray(source), jnp.asarray(target), given)
  states, seen = jax.lax.scan(body, states, over)
  norms.seen += seen
  return states


def stacked_edges(
  weights: Weights,
  mix_EK: jax.Array,
  cell: CellPlan,
  num_nodes: int,
  s0: jax.Array,
  s1: jax.Array,
  norms: Norms,
) -> jax.Array:
  """All mixed edges of one cell, those that leave one state together.

  The cell's two inputs are one stage, as both are there at the start. Arguments, result
  and what `norms` has seen are those of `cell_edges`.
  """
  wiring = np.array(edges(num_nodes))
  loops = _loops(cell, num_nodes)
  given = {
    name: norms.take(_num_norms(2 if name == "halving" else 1)) for name in loops
  }
  places: dict[str, list[np.ndarray]] = {name: [] for name in loops}
  seen: dict[str, list[Any]] = {name: [] for name in loops}
  states: list[Any] = [s0, s1, *[None] * num_nodes]
  for sources in ((0, 1), *((source,) for source in range(2, num_nodes + 1))):
    name = "halving" if cell.reduction and sources == (0, 1) else "same"
    leaving = np.array([np.flatnonzero(wiring[:, 0] == s) for s in sources])
    place = np.searchsorted(loops[name], leaving)
    edge = functools.partial(_edge, 2 if name == "halving" else 1)
    # Over the stage's states outside, over the edges that read the same state inside.
    run = jax.vmap(jax.vmap(edge, (0, 0, None, 0)))
    made, found = run(
      jax.tree.map(lambda part, place=place: part[place], weights[name]),
      mix_EK[leaving],
      jnp.stack([states[source] for source in sources]),
      jax.tree.map(lambda part, place=place: part[place], given[name]),
    )
    for out, edge_numbers in zip(made, leaving):
      for number, target in enumerate(wiring[edge_numbers, 1]):
        before = states[target]
        states[target] = out[number] if before is None else before + out[number]
    places[name].append(place.ravel())
    seen[name].append(found)
  for name in loops:
    order = np.argsort(np.concatenate(places[name]))
    norms.seen += jax.tree.map(
      lambda *parts, order=order: jnp.concatenate(
        [part.reshape(-1, part.shape[-1]) for part in parts]
      )[order],
      *seen[name],
    )
  return jnp.concatenate(states[2:])


def _edge(stride: int, weights, mix_K, x, given):
  """One mixed edge, and what its normalisations have seen."""
  own = Norms(given)
  return mixed(weights, mix_K, x, stride, own), own.seen


def _num_norms(stride: int) -> int:
  """Normalisations of a mixed edge: two pools, two by two, two, and halving's own."""
  return 2 + 2 * 2 + 2 + (stride == 2)
