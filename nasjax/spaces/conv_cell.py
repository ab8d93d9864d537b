"""The convolutional cells of DARTS: a normal and a reduction cell, wired freely.

Liu, Simonyan and Yang, "DARTS: differentiable architecture search", ICLR 2019. A cell
has two inputs (the outputs of the two cells before it) and some nodes; every node adds
up two operations, each on one of the states before it, and the cell's output is all its
nodes, one beside another. States 0 and 1 are the inputs, state i + 2 is node i.

Discrete: a genotype says which two states each node reads, and through what. Relaxed:
`alphas [E, K]` for each cell weigh all operations on all edges, edges in the order in
which nodes read them: (0, 1) into node 0, (0, 1, 2) into node 1, and so on; `derive`
makes a genotype of them.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nasjax.core.types import InputError
from nasjax.spaces import notation
from nasjax.spaces.base import Neighbors, legal_neighbors

PRIMITIVES = (
  "none",
  "max_pool_3x3",
  "avg_pool_3x3",
  "skip_connect",
  "sep_conv_3x3",
  "sep_conv_5x5",
  "dil_conv_3x3",
  "dil_conv_5x5",
)
NONE = PRIMITIVES.index("none")
CELLS = ("normal", "reduce")  # as the notation names them
_INPUTS = 2  # states that a cell starts from
_READ = 2  # states that a node reads in a derived cell

_EXAMPLE = (
  "Genotype(normal=[('sep_conv_3x3', 0), ...], normal_concat=range(2, 6), "
  "reduce=[...], reduce_concat=range(2, 6))"
)
# What the authors published, in their notation.
PUBLISHED = {
  "DARTS_V1": (
    "Genotype(normal=[('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('skip_connect', 0), "
    "('sep_conv_3x3', 1), ('skip_connect', 0), ('sep_conv_3x3', 1), "
    "('sep_conv_3x3', 0), ('skip_connect', 2)], normal_concat=range(2, 6), "
    "reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), "
    "('max_pool_3x3', 0), ('max_pool_3x3', 0), ('skip_connect', 2), "
    "('skip_connect', 2), ('avg_pool_3x3', 0)], reduce_concat=range(2, 6))"
  ),
  "DARTS_V2": (
    "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), "
    "('sep_conv_3x3', 1), ('sep_conv_3x3', 1), ('skip_connect', 0), "
    "('skip_connect', 0), ('dil_conv_3x3', 2)], normal_concat=range(2, 6), "
    "reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), "
    "('max_pool_3x3', 1), ('max_pool_3x3', 0), ('skip_connect', 2), "
    "('skip_connect', 2), ('max_pool_3x3', 1)], reduce_concat=range(2, 6))"
  ),
}


class Edge(NamedTuple):
  """An operation on a state: its name, and which state it reads."""

  op: str
  source: int


class Cells(NamedTuple):
  """The two cells of a genotype, decoded: for each node the edges that it adds up."""

  normal: tuple[tuple[Edge, ...], ...]
  reduce: tuple[tuple[Edge, ...], ...]


def edges(nodes: int) -> tuple[tuple[int, int], ...]:
  """`[E]` (source state, target state) of the relaxed cell, in the order of alphas."""
  return tuple(
    (source, _INPUTS + node)
    for node in range(nodes)
    for source in range(_INPUTS + node)
  )


@dataclasses.dataclass(frozen=True)
class ConvCell:
  """Pairs of cells; implements `spaces.base.Space`.

  A genotype `[D]` holds for each cell, each node and each of its two edges the source
  state and the operation, in that order. A node's two sources differ; they may stand
  either way round, because the notation lists the stronger edge first, so most cells
  have several genotypes.

  Attributes:
    nodes: of a cell.

  Raises:
    InputError: when a cell has no node.
  """

  nodes: int = 4

  def __post_init__(self):
    if self.nodes < 1:
      raise InputError(f"a cell needs at least one node, got {self.nodes}")

  @property
  def length(self) -> int:
    """D: cells times nodes times edges times (source, operation)."""
    return len(CELLS) * self.nodes * _READ * 2

  @property
  def num_tokens(self) -> int:
    """K: as many as there are operations, or states to read."""
    return max(len(PRIMITIVES), self.nodes + _INPUTS - 1)

  @property
  def num_edges(self) -> int:
    """E, edges of a relaxed cell."""
    return len(edges(self.nodes))

  @property
  def size(self) -> int:
    """How many genotypes there are; a node's edges swapped count apart."""
    wirings = math.prod(
      (node + _INPUTS) * (node + _INPUTS - 1) for node in range(self.nodes)
    )
    operations = (len(PRIMITIVES) - 1) ** (_READ * self.nodes)
    return (wirings * operations) ** len(CELLS)

  def log_prior(self, genotype: jax.Array, position: jax.Array | int) -> jax.Array:
    """`[K]` log-probabilities: legal states alike, operations (without none) alike."""
    position = jnp.asarray(position)
    token = jnp.arange(self.num_tokens)
    is_op = position % 2 == 1
    is_second = position % (2 * _READ) >= 2
    states = position // (2 * _READ) % self.nodes + _INPUTS
    first = genotype[jnp.maximum(position - 2, 0)]
    source_legal = (token < states) & ~(is_second & (token == first))
    op_legal = (token != NONE) & (token < len(PRIMITIVES))
    legal = jnp.where(is_op, op_legal, source_legal)
    return jnp.where(legal, -jnp.log(legal.sum().astype(jnp.float32)), -jnp.inf)

  def is_legal(self, genotype: jax.Array | np.ndarray) -> jax.Array:
    """Whether a genotype `[D]` is in the space (scalar bool)."""
    shape = (len(CELLS), self.nodes, _READ, 2)
    source, op = jnp.moveaxis(jnp.asarray(genotype).reshape(shape), -1, 0)
    states = jnp.arange(self.nodes)[:, None] + _INPUTS
    inside = (source >= 0) & (source < states[None])
    known = (op >= 0) & (op < len(PRIMITIVES)) & (op != NONE)
    apart = source[..., 0] != source[..., 1]
    return inside.all() & known.all() & apart.all()

  def neighbors(self, genotype: jax.Array) -> Neighbors:
    """One source or one operation otherwise, all alike; see `spaces.base.Space`."""
    return legal_neighbors(self, genotype)

  def decode(self, genotype: np.ndarray) -> Cells:
    """The cells of a genotype `[D]`, host side.

    Raises:
      InputError: when it is not in the space.
    """
    genotype = np.asarray(genotype)
    if genotype.shape != (self.length,) or not bool(self.is_legal(genotype)):
      raise InputError(
        f"not a genotype of {self.nodes}-node cells: {genotype.tolist()}"
      )
    shaped = genotype.reshape(len(CELLS), self.nodes, _READ, 2).tolist()
    return Cells(
      *(
        tuple(
          tuple(Edge(PRIMITIVES[op], source) for source, op in node) for node in cell
        )
        for cell in shaped
      )
    )

  def describe(self, genotype: np.ndarray) -> str:
    """The cells in the authors' notation, `Genotype(normal=[('sep_conv_3x3', 1), ...`.

    Raises:
      InputError: when the genotype is not in the space.
    """
    joined = f"range({_INPUTS}, {_INPUTS + self.nodes})"
    parts = []
    for name, cell in zip(CELLS, self.decode(genotype)):
      read = ", ".join(
        f"({edge.op!r}, {edge.source})" for node in cell for edge in node
      )
      parts += [f"{name}=[{read}]", f"{name}_concat={joined}"]
    return f"Genotype({', '.join(parts)})"

  def parse(self, text: str) -> np.ndarray:
    """The genotype `[D]` of cells in that notation, or of a name out of `PUBLISHED`.

    Nothing in the text is run.

    Raises:
      InputError: saying which cell, which edge, and what is wrong with it.
    """
    wanted = [field for name in CELLS for field in (name, f"{name}_concat")]
    fields = notation.fields(text, wanted, _EXAMPLE, PUBLISHED)
    decisions: list[int] = []
    for name in CELLS:
      joined = range(_INPUTS, _INPUTS + self.nodes)
      notation.check_joined(f"{name}_concat", fields[f"{name}_concat"], joined)
      decisions += self._decisions(name, fields[name])
    return np.array(decisions, np.int32)

  def _decisions(self, name: str, read: Sequence[Any]) -> list[int]:
    """The decisions of one cell, out of its list of (operation, source)."""
    if len(read) != _READ * self.nodes:
      raise InputError(
        f"the {name} cell has {len(read)} edges; {self.nodes} nodes read "
        f"{_READ * self.nodes}"
      )
    decisions: list[int] = []
    for number, edge in enumerate(read):
      where, node = f"edge {number + 1} of the {name} cell", number // _READ
      op, source = notation.edge(edge, where, node, node + _INPUTS, PRIMITIVES[1:])
      if number % _READ and source == decisions[-2]:
        raise InputError(f"{where} reads state {source} again")
      decisions += [source, PRIMITIVES.index(op)]
    return decisions

  def fault(self, alphas: dict[str, np.ndarray]) -> str | None:
    """Which of the logits `[E, K]` of each of `CELLS` is not finite, in words."""
    for name in CELLS:
      wrong = np.argwhere(~np.isfinite(alphas[name]))
      if len(wrong):
        edge, op = wrong[0].tolist()
        source, target = edges(self.nodes)[edge]
        return (
          f"an alpha of the {name} cell is {alphas[name][edge, op]}: {PRIMITIVES[op]} "
          f"on edge {edge}, from state {source} into node {target - _INPUTS}"
        )
    return None

  def derive(self, alphas: dict[str, np.ndarray]) -> np.ndarray:
    """The genotype `[D]` of a relaxed pair of cells (section 2.4 of the paper).

    Every node keeps the two edges on which one operation, `none` left out, has the
    largest weight, and on each that operation; the stronger edge comes first, and among
    equals the one that comes first.

    Args:
      alphas: for each of `CELLS` `[E, K]` logits.

    Raises:
      InputError: a logit is not finite, saying which.
    """
    fault = self.fault(alphas)
    if fault:
      raise InputError(fault)
    decisions: list[int] = []
    for name in CELLS:
      logits_EK = np.asarray(alphas[name], np.float64)
      weights_EK = np.exp(logits_EK - logits_EK.max(-1, keepdims=True))
      weights_EK /= weights_EK.sum(-1, keepdims=True)
      weights_EK[:, NONE] = -1.0
      first = 0
      for node in range(self.nodes):
        rows = weights_EK[first : first + node + _INPUTS]
        for source in np.argsort(-rows.max(-1), kind="stable")[:_READ]:
          decisions += [int(source), int(rows[source].argmax())]
        first += len(rows)
    return np.array(decisions, np.int32)

  def to_dict(self) -> dict:
    """The space as plain JSON values: its fields, and `kind`."""
    return {"kind": "conv_cell", "nodes": self.nodes}
