"""The cell space of NAS-Bench-201: four nodes, six edges, five operations on each.

Dong and Yang, "NAS-Bench-201: extending the scope of reproducible neural architecture
search", ICLR 2020. A genotype holds the operation of each edge, edges in the order in
which NATS-Bench writes them: into node 1, then into node 2, then into node 3. (The
authors' files number the cells in a shuffled order; a table says which row is whose.)
"""

import dataclasses

import jax
import numpy as np

from nasjax.core.types import InputError
from nasjax.spaces.base import Neighbors
from nasjax.spaces.categorical import Categorical

PRIMITIVES = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))  # source, target
_NONE, _SKIP = PRIMITIVES.index("none"), PRIMITIVES.index("skip_connect")
_NODES = 4
_DECISIONS = Categorical((len(PRIMITIVES),) * len(EDGES))


@dataclasses.dataclass(frozen=True)
class NASBench201:
  """The 15,625 cells; implements `spaces.base.Enumerable`."""

  @property
  def length(self) -> int:
    """D, one decision an edge."""
    return len(EDGES)

  @property
  def num_tokens(self) -> int:
    """K, operations."""
    return len(PRIMITIVES)

  @property
  def size(self) -> int:
    """How many cells there are, isomorphic ones counted apart."""
    return _DECISIONS.size

  def log_prior(self, genotype: jax.Array, position: jax.Array | int) -> jax.Array:
    """`[K]` log-probabilities: every operation alike, everywhere."""
    return _DECISIONS.log_prior(genotype, position)

  def is_legal(self, genotype: jax.Array | np.ndarray) -> jax.Array:
    """Whether a genotype `[D]` is in the space (scalar bool)."""
    return _DECISIONS.is_legal(genotype)

  def neighbors(self, genotype: jax.Array) -> Neighbors:
    """One edge with another operation; see `spaces.base.Space`."""
    return _DECISIONS.neighbors(genotype)

  def index(self, genotype: jax.Array) -> jax.Array:
    """Its number, the first edge's operation the slowest; see `Enumerable`."""
    return _DECISIONS.index(genotype)

  def at(self, index: jax.Array | int) -> jax.Array:
    """The cell of a number; the inverse of `index`."""
    return _DECISIONS.at(index)

  def describe(self, genotype: np.ndarray) -> str:
    """The cell as NATS-Bench writes it: `|nor_conv_3x3~0|+|none~0|...|+|...|`.

    Raises:
      InputError: when the genotype is not in the space.
    """
    genotype = np.asarray(genotype)
    inside = (genotype >= 0) & (genotype < self.num_tokens)
    if genotype.shape != (self.length,) or not inside.all():
      raise InputError(f"not a genotype of NAS-Bench-201: {genotype.tolist()}")
    nodes = []
    for node in range(1, _NODES):
      entering = [
        f"{PRIMITIVES[op]}~{source}"
        for (source, target), op in zip(EDGES, genotype)
        if target == node
      ]
      nodes.append(f"|{'|'.join(entering)}|")
    return "+".join(nodes)

  def parse(self, text: str) -> np.ndarray:
    """The genotype `[D]` of a cell in NATS-Bench's notation; `describe`'s inverse.

    Raises:
      InputError: when it is no such text, or names an unknown operation.
    """
    edges = [
      (part.rpartition("~"), node)
      for node, entering in enumerate(text.strip().split("+"), 1)
      for part in entering.strip("|").split("|")
    ]
    found = [(source, str(node)) for (_, _, source), node in edges]
    if found != [(str(source), str(target)) for source, target in EDGES]:
      raise InputError(f"not a cell in NAS-Bench-201's notation: {text!r}")
    for (op, _, _), _ in edges:
      if op not in PRIMITIVES:
        raise InputError(
          f"unknown operation {op!r}; NAS-Bench-201 has {', '.join(PRIMITIVES)}"
        )
    return np.array([PRIMITIVES.index(op) for (op, _, _), _ in edges], np.int32)

  def canonical(self, genotype: np.ndarray) -> str:
    """A text that cells share when they compute the same, host side; there are 4,930.

    A `none` edge, and whatever reads a node that nothing reaches, is left out; a skip
    is what it copies; the order of what a node adds up does not count. (The authors'
    own text keeps zeros in its sums and does not open a sum within a sum, so it tells
    6,466 cells apart.)
    """
    terms: list[list[str]] = [["x"]]
    for node in range(1, _NODES):
      summed: list[str] = []
      for (source, target), op in zip(EDGES, np.asarray(genotype).tolist()):
        if target != node or op == _NONE or not terms[source]:
          continue
        if op == _SKIP:
          summed += terms[source]
        else:
          summed.append(f"{PRIMITIVES[op]}({' + '.join(terms[source])})")
      terms.append(sorted(summed))
    return " + ".join(terms[-1]) or "0"

  def to_dict(self) -> dict:
    """The space as plain JSON values: `kind`."""
    return {"kind": "nasbench201"}
