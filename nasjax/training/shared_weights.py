"""One-shot weights of the survey: shared by bigram, loaded before and stored after.

A bigram is (previous dense layer or `input`, dense layer); dropout is transparent, and
the output layer is a layer too. The survey's key has no position, so the same pair at
depth 2 and at depth 9 is one entry. All children of a round load the table as it was
when the round began, and store in population order after it: with the survey's rule
the last writer wins, with "best" a store replaces an entry only if its child scored
higher than the one that wrote it.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from nasjax.networks.mlp import Weights
from nasjax.spaces.mlp_chain import Dropout, Layer

Rule = Literal["off", "last", "best"]


class SharedWeights(NamedTuple):
  """The table.

  Attributes:
    weights: by bigram, such as `input>64 relu` or `64 relu>output`, its kernel and
      bias.
    scores: by bigram, the score of the child that wrote it.
  """

  weights: dict[str, dict[str, np.ndarray]]
  scores: dict[str, float]


def empty() -> SharedWeights:
  """A table without entries."""
  return SharedWeights({}, {})


def bigrams(layers: tuple[Layer, ...]) -> list[str]:
  """The keys of a chain's dense layers, output last."""
  names = [
    f"{layer.width} {layer.activation}"
    for layer in layers
    if not isinstance(layer, Dropout)
  ]
  return [
    f"{before}>{name}" for before, name in zip(["input", *names], [*names, "output"])
  ]


def load(table: SharedWeights, layers: tuple[Layer, ...], fresh: Weights) -> Weights:
  """Fresh weights with every layer replaced whose bigram is in the table."""
  found = [table.weights.get(name) for name in bigrams(layers)]
  return [stored or new for stored, new in zip(found, fresh)]


def num_shared(table: SharedWeights, layers: tuple[Layer, ...]) -> int:
  """How many layers `load` takes from the table."""
  return sum(name in table.weights for name in bigrams(layers))


def store(
  table: SharedWeights,
  children: Sequence[tuple[tuple[Layer, ...], Weights, float]],
  rule: Rule,
) -> SharedWeights:
  """The table after a round.

  Args:
    table: the table before it.
    children: `(layers, trained weights, score)` in population order; those with a
      non-finite score store nothing.
    rule: "last" (the survey's) or "best"; see the module.

  Returns:
    A new table.
  """
  weights, scores = dict(table.weights), dict(table.scores)
  for layers, trained, score in children:
    if not np.isfinite(score):
      continue
    for name, layer in zip(bigrams(layers), trained):
      if rule == "last" or score > scores.get(name, -np.inf):
        weights[name] = {part: np.array(value) for part, value in layer.items()}
        scores[name] = float(score)
  return SharedWeights(weights, scores)
