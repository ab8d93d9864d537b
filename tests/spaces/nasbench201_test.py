"""NAS-Bench-201's notation and isomorphism, and errors."""

import itertools

import numpy as np
import pytest

from nasjax.core.types import InputError
from nasjax.spaces.categorical import Categorical
from nasjax.spaces.nasbench201 import EDGES, PRIMITIVES, NASBench201

SPACE = NASBench201()
TEXT = (
  "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+"
  "|nor_conv_1x1~0|skip_connect~1|skip_connect~2|"
)


def test_the_notation_of_the_authors():
  genotype = SPACE.parse(TEXT)
  assert genotype.tolist() == [4, 2, 1, 2, 1, 1]  # row 0 of their files
  assert SPACE.describe(genotype) == TEXT


@pytest.mark.parametrize(
  ("text", "what"),
  [
    ("", "not a cell"),
    (TEXT.replace("~2", "~1"), "not a cell"),
    (TEXT[: TEXT.rindex("+")], "not a cell"),
    (TEXT + "+|none~0|", "not a cell"),
    (TEXT.replace("avg_pool_3x3", "max_pool_3x3"), "unknown operation 'max_pool_3x3'"),
  ],
)
def test_other_text_is_refused(text, what):
  with pytest.raises(InputError, match=what):
    SPACE.parse(text)


def test_describe_refuses_what_is_no_genotype():
  for bad in ([0] * 5, [0, 0, 0, 0, 0, 5], [-1] * 6):
    with pytest.raises(InputError, match="not a genotype of NAS-Bench-201"):
      SPACE.describe(np.array(bad))


def test_canonical_texts_are_equal_when_the_cells_compute_the_same():
  # Every operation as a random function with f(0) = 0: cells that compute the same
  # give the same number whatever the functions, others do not.
  every = np.array(list(itertools.product(range(5), repeat=6)))
  rng = np.random.default_rng(0)
  mix = rng.normal(size=(5, 8, 8))
  nodes = [np.broadcast_to(rng.normal(size=8), (len(every), 8))]
  for node in range(1, 4):
    total = np.zeros((len(every), 8))
    for edge, (source, target) in enumerate(EDGES):
      if target != node:
        continue
      x = nodes[source]
      outputs = np.stack(
        [np.zeros_like(x), x, *(np.sin(x @ mix[op]) for op in range(2, 5))]
      )
      total = total + outputs[every[:, edge], np.arange(len(every))]
    nodes.append(total)
  values = np.round(nodes[-1], 6) + 0.0
  _, by_value = np.unique(values, axis=0, return_inverse=True)
  texts = np.array([SPACE.canonical(genotype) for genotype in every])
  _, by_text = np.unique(texts, return_inverse=True)
  pairs = np.unique(np.stack([by_value.ravel(), by_text]), axis=1)
  assert pairs.shape[1] == by_text.max() + 1 == by_value.max() + 1 == 4930


def test_numbers_run_through_the_last_edge_first():
  assert np.asarray(SPACE.at(1)).tolist() == [0, 0, 0, 0, 0, 1]
  assert SPACE.size == len(PRIMITIVES) ** 6 == 15625
  assert np.asarray(Categorical((2, 3)).at(4)).tolist() == [1, 1]


@pytest.mark.parametrize(
  ("num_choices", "what"),
  [((), "must be positive"), ((2, 0), "must be positive"), ((9,) * 12, "too many")],
)
def test_categorical_refuses(num_choices, what):
  with pytest.raises(InputError, match=what):
    Categorical(num_choices)


def test_categorical_refuses_other_text():
  space = Categorical((2, 3))
  assert space.parse("1 2").tolist() == [1, 2]
  for text in ("1", "2 0", "1 x", "0 1 2"):
    with pytest.raises(InputError, match="not a genotype of 2 decisions"):
      space.parse(text)
