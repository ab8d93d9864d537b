"""Cells of DARTS: the authors' notation both ways, derivation, and bad input."""

import numpy as np
import pytest

from nasjax.core.types import InputError
from nasjax.spaces.conv_cell import CELLS, PRIMITIVES, PUBLISHED, ConvCell, Edge, edges

SPACE = ConvCell()


def test_sizes():
  assert SPACE.length == 32 and SPACE.num_edges == 14
  assert len(edges(4)) == 14 and edges(2) == ((0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
  # A node picks 2 of its 2, 3, 4, 5 states in order, and 7 operations twice.
  assert SPACE.size == (2 * 6 * 12 * 20 * 7**8) ** 2
  assert ConvCell(1).size == (2 * 49) ** 2


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_cells_survive_the_notation(name):
  genotype = SPACE.parse(name)
  assert bool(SPACE.is_legal(genotype))
  text = SPACE.describe(genotype)
  assert text == PUBLISHED[name]
  np.testing.assert_array_equal(SPACE.parse(text), genotype)


def test_the_second_published_cell():
  cells = SPACE.decode(SPACE.parse("DARTS_V2"))
  assert cells.normal[3] == (Edge("skip_connect", 0), Edge("dil_conv_3x3", 2))
  assert cells.reduce[0] == (Edge("max_pool_3x3", 0), Edge("max_pool_3x3", 1))


def test_lists_may_stand_for_ranges_and_lines_may_break():
  text = PUBLISHED["DARTS_V1"].replace("range(2, 6)", "[2, 3, 4, 5]")
  text = text.replace("), (", "),\n  (")
  np.testing.assert_array_equal(SPACE.parse(text), SPACE.parse("DARTS_V1"))


def test_derive_by_hand():
  """Two nodes; weights are softmax, so only order within and between edges counts."""
  space = ConvCell(2)
  weights = np.full((5, 8), 0.05)
  none, pool, skip, sep = 0, 1, 3, 4
  # Node 0 reads both inputs anyway: the stronger edge, of input 1, comes first.
  weights[0, skip], weights[1, sep] = 0.3, 0.4
  # Node 1: edge 0 has the largest weight on none, which does not count.
  weights[2, none], weights[2, pool] = 0.9, 0.06
  weights[3, pool], weights[4, skip] = 0.2, 0.2  # equal: the first comes first
  weights /= weights.sum(-1, keepdims=True)
  weights[3] = weights[4][[0, 3, 2, 1, 4, 5, 6, 7]]
  alphas = dict.fromkeys(CELLS, np.log(weights))
  cells = space.decode(space.derive(alphas))
  assert cells.normal == (
    (Edge("sep_conv_3x3", 1), Edge("skip_connect", 0)),
    (Edge("max_pool_3x3", 1), Edge("skip_connect", 2)),
  )
  assert cells.reduce == cells.normal


def test_derive_names_what_is_not_finite():
  alphas = {name: np.zeros((14, 8)) for name in CELLS}
  alphas["reduce"][5, 4] = np.nan
  message = "an alpha of the reduce cell is nan: sep_conv_3x3 on edge 5, "
  message += "from state 0 into node 2"
  with pytest.raises(InputError, match=f"^{message}$"):
    SPACE.derive(alphas)
  assert SPACE.fault(alphas) == message
  alphas["reduce"][5, 4] = 0.0
  assert SPACE.fault(alphas) is None


V2 = PUBLISHED["DARTS_V2"]


@pytest.mark.parametrize(
  "text, match",
  [
    (
      V2.replace("'dil_conv_3x3', 2", "'conv_9x9', 2"),
      "edge 8 of the normal cell.*9x9",
    ),
    (V2.replace("'dil_conv_3x3', 2", "'none', 2"), "no operation 'none'"),
    (
      V2.replace("'dil_conv_3x3', 2", "'dil_conv_3x3', 5"),
      "reads state 5; node 3 comes",
    ),
    (V2.replace("'dil_conv_3x3', 2", "'dil_conv_3x3', 0"), "reads state 0 again"),
    (V2.replace("'dil_conv_3x3', 2", "'dil_conv_3x3', True"), "reads state True"),
    (
      V2.replace(", ('dil_conv_3x3', 2)", ""),
      "normal cell has 7 edges; 4 nodes read 8",
    ),
    (V2.replace("normal_concat=range(2, 6)", "normal_concat=[4, 5]"), "must join all"),
    (
      V2.replace("('dil_conv_3x3', 2)", "7"),
      r"edge 8 .* must be \('operation', state\)",
    ),
    (V2.replace("reduce_concat=range(2, 6)", "other=[1]"), "a genotype has normal"),
    ("DARTS_V3", "not a genotype in the form"),
    ("__import__('os').system('false')", "not a genotype in the form"),
    ("Genotype(normal=open('x'))", "not a genotype in the form"),
    ("Genotype(normal=range(0, 10**9))", "not a genotype in the form"),
    ("(" * 500, "not a genotype in the form"),
  ],
)
def test_bad_text_is_refused(text, match):
  with pytest.raises(InputError, match=match):
    SPACE.parse(text)


def test_illegal_genotypes():
  genotype = SPACE.parse("DARTS_V1")
  for place, value in ((0, 2), (1, 0), (1, len(PRIMITIVES)), (2, int(genotype[0]))):
    wrong = genotype.copy()
    wrong[place] = value
    assert not bool(SPACE.is_legal(wrong))
    with pytest.raises(InputError, match="not a genotype"):
      SPACE.describe(wrong)
  with pytest.raises(InputError, match="at least one node"):
    ConvCell(0)
