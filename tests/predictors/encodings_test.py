import itertools

import jax
import jax.numpy as jnp
import numpy as np

from nasjax.predictors import encodings
from nasjax.spaces.categorical import Categorical
from nasjax.spaces.nasbench201 import EDGES, PRIMITIVES, NASBench201

REAL = [op for op in PRIMITIVES if op != "none"]
SEQUENCES = [
  ops for length in (1, 2, 3) for ops in itertools.product(REAL, repeat=length)
]


def carried(cell, node=0):
  """Every sequence of operations from a node to the output, by walking the cell."""
  if node == 3:
    return {()}
  return {
    (PRIMITIVES[op], *rest)
    for (source, target), op in zip(EDGES, cell)
    if source == node and PRIMITIVES[op] != "none"
    for rest in carried(cell, target)
  }


def test_paths_are_those_found_by_walking_a_cell():
  cells = np.random.default_rng(0).integers(0, 5, (200, 6))
  cells[0], cells[1] = 0, 1
  features = np.asarray(jax.jit(jax.vmap(encodings.paths(NASBench201())))(cells))
  assert features.shape == (200, 84) and len(SEQUENCES) == 84
  for cell, row in zip(cells, features):
    expected = carried(cell)
    assert row.tolist() == [float(ops in expected) for ops in SEQUENCES]
  assert not features[0].any() and features[1].sum() == 3
  assert len({len(carried(cell)) for cell in cells}) == 5  # 0 to 4 of them


def test_elsewhere_features_are_one_hot():
  space = Categorical((2, 3))
  for encoding in (encodings.paths(space), encodings.one_hot(space)):
    assert encoding(jnp.array([1, 2])).tolist() == [0, 1, 0, 0, 0, 1]
  cell = encodings.one_hot(NASBench201())(jnp.array([0, 1, 2, 3, 4, 0]))
  assert cell.shape == (30,) and np.flatnonzero(cell).tolist() == [0, 6, 12, 18, 24, 25]
