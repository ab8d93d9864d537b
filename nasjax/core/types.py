"""The types that the roles exchange, and the axis letters used in every shape.

Axis letters: P population, D decisions of a genotype, K choices of a decision,
B batch, N rows, F features, C outputs, W width, T epochs (or steps), S seeds.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

Array = jax.Array | np.ndarray
_NOTHING: Mapping[str, Any] = MappingProxyType({})


class InputError(ValueError):
  """A mistake in what the user gave: one line that says what is wrong and with what.

  `run.py` prints that line and exits with status 2; a library user catches it as the
  `ValueError` that it is.
  """


class Evaluation(NamedTuple):
  """What an estimator says of a population.

  Attributes:
    score: `[P]` validation metric, higher is better; NaN marks a failed child.
    cost: `[P]` what the estimate cost (seconds of training, or of simulated time).
    curve: `[P, T]` validation metric per epoch; NaN where no epoch was run.
    info: what else is known of each child, sequences of length P by name.
  """

  score: Array
  cost: Array
  curve: Array
  info: Mapping[str, Any] = _NOTHING


class Round(NamedTuple):
  """One ask-estimate-tell of a search.

  Attributes:
    number: which round, from 0.
    genotypes: `[P, D]` int32, the children that were estimated in this round.
    evaluation: their `Evaluation`, in the same order.
    info: what the strategy reports of this round: scalars, and `[P]` arrays in the
      order of `genotypes`.
    skipped: how many asked genotypes were left out as estimated before.
  """

  number: int
  genotypes: np.ndarray
  evaluation: Evaluation
  info: dict[str, Any]
  skipped: int
