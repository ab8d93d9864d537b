"""The recurrent cell: the authors' notation both ways, derivation, and bad input."""

import numpy as np
import pytest

from nasjax.core.types import InputError
from nasjax.spaces.recurrent_cell import (
  PRIMITIVES,
  PUBLISHED,
  Edge,
  RecurrentCell,
  edges,
)

SPACE = RecurrentCell()


def test_sizes():
  assert SPACE.length == 16 and SPACE.num_edges == 36
  assert edges(3) == ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
  # Node i picks one of i + 1 states and one of four activations.
  assert SPACE.size == 40320 * 4**8
  assert RecurrentCell(2).size == 2 * 16


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_cells_survive_the_notation(name):
  genotype = SPACE.parse(name)
  assert bool(SPACE.is_legal(genotype))
  text = SPACE.describe(genotype)
  assert text == PUBLISHED[name]
  np.testing.assert_array_equal(SPACE.parse(text), genotype)


def test_the_second_published_cell():
  cell = SPACE.decode(SPACE.parse("DARTS_V2"))
  assert cell[0] == Edge("sigmoid", 0) and cell[4] == Edge("tanh", 2)
  assert cell[7] == Edge("relu", 5)


def test_derive_by_hand():
  """Two nodes; only the order within and between edges counts."""
  space = RecurrentCell(2)
  weights = np.full((3, 5), 0.05)
  none, tanh, sigmoid = 0, 1, 3
  weights[0, none], weights[0, sigmoid] = 0.7, 0.06  # none does not count
  weights[1, tanh], weights[2, sigmoid] = 0.4, 0.5
  weights /= weights.sum(-1, keepdims=True)
  assert space.decode(space.derive(np.log(weights))) == (
    Edge("sigmoid", 0),
    Edge("sigmoid", 1),
  )
  weights[2] = weights[1, [0, 4, 2, 3, 1]]  # equal: the first state stays
  assert space.decode(space.derive(np.log(weights)))[1] == Edge("tanh", 0)


def test_derive_names_what_is_not_finite():
  alphas = np.zeros((36, 5))
  alphas[4, 2] = np.nan
  with pytest.raises(InputError, match=r"edge 4 \(state 1 into 3\), relu is nan"):
    SPACE.derive(alphas)


V2 = PUBLISHED["DARTS_V2"]


@pytest.mark.parametrize(
  "text, match",
  [
    (V2.replace("('tanh', 3)", "('swish', 3)"), "edge 7 .*no operation 'swish'"),
    (V2.replace("('tanh', 3)", "('none', 3)"), "no operation 'none'"),
    (
      V2.replace("('tanh', 2)", "('tanh', 5)"),
      "edge 5 .*reads state 5; node 5 comes after states 0 to 4",
    ),
    (V2.replace("('sigmoid', 0)", "('sigmoid', 1)"), "node 1 comes after state 0"),
    (V2.replace("('tanh', 2)", "('tanh', -1)"), "reads state -1"),
    (V2.replace(", ('relu', 5)]", "]"), "has 7 edges; 8 nodes read one each"),
    (V2.replace("range(1, 9)", "range(2, 9)"), "concat must join all nodes"),
    (V2.replace("('tanh', 2)", "2"), r"edge 5 .* must be \('operation', state\)"),
    (V2.replace("concat", "other"), "a genotype has recurrent, concat"),
    ("DARTS_V3", "not a genotype in the form .* nor one of DARTS_V1, DARTS_V2"),
    ("Genotype(recurrent=open('x'))", "not a genotype in the form"),
  ],
)
def test_bad_text_is_refused(text, match):
  with pytest.raises(InputError, match=match):
    SPACE.parse(text)


def test_illegal_genotypes():
  genotype = SPACE.parse("DARTS_V1")
  for place, value in ((0, 1), (1, 0), (1, len(PRIMITIVES)), (4, -1)):
    wrong = genotype.copy()
    wrong[place] = value
    assert not bool(SPACE.is_legal(wrong))
    with pytest.raises(InputError, match="not a genotype"):
      SPACE.describe(wrong)
  with pytest.raises(InputError, match="at least one node"):
    RecurrentCell(0)
