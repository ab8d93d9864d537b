"""The recurrent cell of DARTS: a tree of activations under highway gates.

Liu, Simonyan and Yang, "DARTS: differentiable architecture search", ICLR 2019, sections
2.1 and A.2. State 0 is made of the step's input and the hidden state; node i makes
state i + 1 of one state before it, through one activation; the cell's output is the
mean of all nodes.

Discrete: a genotype says which state each node reads, and through what. Relaxed:
`alphas [E, K]` weigh all activations on all edges, edges in the order in which nodes
read them: (0) into state 1, (0, 1) into state 2, and so on; `derive` makes a genotype
of them.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nasjax.core.types import InputError
from nasjax.spaces import notation
from nasjax.spaces.base import Neighbors, legal_neighbors

PRIMITIVES = ("none", "tanh", "relu", "sigmoid", "identity")
NONE = PRIMITIVES.index("none")

_EXAMPLE = "Genotype(recurrent=[('tanh', 0), ...], concat=range(1, 9))"
# What the authors published, in their notation.
PUBLISHED = {
  "DARTS_V1": (
    "Genotype(recurrent=[('relu', 0), ('relu', 1), ('tanh', 2), ('relu', 3), "
    "('relu', 4), ('identity', 1), ('relu', 5), ('relu', 1)], concat=range(1, 9))"
  ),
  "DARTS_V2": (
    "Genotype(recurrent=[('sigmoid', 0), ('relu', 1), ('relu', 1), ('identity', 1), "
    "('tanh', 2), ('sigmoid', 5), ('tanh', 3), ('relu', 5)], concat=range(1, 9))"
  ),
}


class Edge(NamedTuple):
  """An activation on a state: its name, and which state it reads."""

  op: str
  source: int


def edges(nodes: int) -> tuple[tuple[int, int], ...]:
  """`[E]` (source state, target state) of the relaxed cell, in the order of alphas."""
  return tuple(
    (source, node + 1) for node in range(nodes) for source in range(node + 1)
  )


@dataclasses.dataclass(frozen=True)
class RecurrentCell:
  """Recurrent cells; implements `spaces.base.Space`.

  A genotype `[D]` holds for each node its source state and its activation, in that
  order.

  Attributes:
    nodes: of a cell.

  Raises:
    InputError: when a cell has no node.
  """

  nodes: int = 8

  def __post_init__(self):
    if self.nodes < 1:
      raise InputError(f"a cell needs at least one node, got {self.nodes}")

  @property
  def length(self) -> int:
    """D: nodes times (source, activation)."""
    return 2 * self.nodes

  @property
  def num_tokens(self) -> int:
    """K: as many as there are activations, or states to read."""
    return max(len(PRIMITIVES), self.nodes)

  @property
  def num_edges(self) -> int:
    """E, edges of a relaxed cell."""
    return len(edges(self.nodes))

  @property
  def size(self) -> int:
    """How many genotypes there are; isomorphic cells count apart."""
    return math.factorial(self.nodes) * (len(PRIMITIVES) - 1) ** self.nodes

  def log_prior(self, genotype: jax.Array, position: jax.Array | int) -> jax.Array:
    """`[K]` log-probabilities: legal states alike, activations (without none) alike."""
    del genotype
    position, token = jnp.asarray(position), jnp.arange(self.num_tokens)
    op_legal = (token != NONE) & (token < len(PRIMITIVES))
    legal = jnp.where(position % 2 == 1, op_legal, token <= position // 2)
    return jnp.where(legal, -jnp.log(legal.sum().astype(jnp.float32)), -jnp.inf)

  def is_legal(self, genotype: jax.Array | np.ndarray) -> jax.Array:
    """Whether a genotype `[D]` is in the space (scalar bool)."""
    source, op = jnp.asarray(genotype).reshape(self.nodes, 2).T
    inside = (source >= 0) & (source <= jnp.arange(self.nodes))
    known = (op >= 0) & (op < len(PRIMITIVES)) & (op != NONE)
    return inside.all() & known.all()

  def neighbors(self, genotype: jax.Array) -> Neighbors:
    """One source or one activation otherwise, all alike; see `spaces.base.Space`."""
    return legal_neighbors(self, genotype)

  def decode(self, genotype: np.ndarray) -> tuple[Edge, ...]:
    """For each node what it reads, host side.

    Raises:
      InputError: when the genotype `[D]` is not in the space.
    """
    genotype = np.asarray(genotype)
    if genotype.shape != (self.length,) or not bool(self.is_legal(genotype)):
      raise InputError(
        f"not a genotype of {self.nodes}-node recurrent cells: {genotype.tolist()}"
      )
    pairs = genotype.reshape(self.nodes, 2).tolist()
    return tuple(Edge(PRIMITIVES[op], source) for source, op in pairs)

  def describe(self, genotype: np.ndarray) -> str:
    """The cell in the authors' notation, `Genotype(recurrent=[('tanh', 0), ...`.

    Raises:
      InputError: when the genotype is not in the space.
    """
    read = ", ".join(f"({op!r}, {source})" for op, source in self.decode(genotype))
    return f"Genotype(recurrent=[{read}], concat=range(1, {self.nodes + 1}))"

  def parse(self, text: str) -> np.ndarray:
    """The genotype `[D]` of a cell in that notation, or of a name out of `PUBLISHED`.

    Nothing in the text is run.

    Raises:
      InputError: saying which edge, and what is wrong with it.
    """
    fields = notation.fields(text, ("recurrent", "concat"), _EXAMPLE, PUBLISHED)
    notation.check_joined("concat", fields["concat"], range(1, self.nodes + 1))
    read = fields["recurrent"]
    if len(read) != self.nodes:
      raise InputError(
        f"the recurrent cell has {len(read)} edges; {self.nodes} nodes read one each"
      )
    decisions: list[int] = []
    for node, value in enumerate(read):
      where = f"edge {node + 1} of the recurrent cell"
      op, source = notation.edge(value, where, node + 1, node + 1, PRIMITIVES[1:])
      decisions += [source, PRIMITIVES.index(op)]
    return np.array(decisions, np.int32)

  def derive(self, alphas: np.ndarray) -> np.ndarray:
    """The genotype `[D]` of a relaxed cell (section 2.4 of the paper).

    Every node keeps the edge on which one activation, `none` left out, has the largest
    weight, and on it that activation; among equals the one that comes first.

    Args:
      alphas: `[E, K]` logits.

    Raises:
      InputError: a logit is not finite, saying which.
    """
    logits_EK = np.asarray(alphas, np.float64)
    wrong = np.argwhere(~np.isfinite(logits_EK))
    if len(wrong):
      edge, op = wrong[0]
      source, target = edges(self.nodes)[edge]
      raise InputError(
        f"alphas of the recurrent cell: edge {edge} (state {source} into {target}), "
        f"{PRIMITIVES[op]} is {logits_EK[edge, op]}"
      )
    weights_EK = np.exp(logits_EK - logits_EK.max(-1, keepdims=True))
    weights_EK /= weights_EK.sum(-1, keepdims=True)
    weights_EK[:, NONE] = -1.0
    decisions: list[int] = []
    for node in range(self.nodes):
      first = node * (node + 1) // 2
      rows = weights_EK[first : first + node + 1]
      source = int(rows.max(-1).argmax())
      decisions += [source, int(rows[source].argmax())]
    return np.array(decisions, np.int32)

  def to_dict(self) -> dict:
    """The space as plain JSON values: its fields, and `kind`."""
    return {"kind": "recurrent_cell", "nodes": self.nodes}
