"""The protocol of performance estimation."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from nasjax.core.types import Evaluation


class Estimator(NamedTuple):
  """A performance estimator as two functions.

  Attributes:
    init: `(key) -> state`.
    estimate: `(key, state, genotypes [P, D], fidelity=None) -> (state, Evaluation)`.
      `fidelity` is how much to spend on each child (epochs, for a trained estimator);
      None is the estimator's full one.
  """

  init: Callable[[jax.Array], Any]
  estimate: Callable[..., tuple[Any, Evaluation]]
