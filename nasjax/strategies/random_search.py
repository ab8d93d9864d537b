"""Random search: draws from the space's prior. The control.

Bergstra and Bengio, "Random search for hyper-parameter optimization", JMLR 2012; every
strategy here is compared with it at equal budget.
"""

import jax

from nasjax.core.types import InputError
from nasjax.spaces import base
from nasjax.spaces.base import Space
from nasjax.strategies.base import (
  History,
  Strategy,
  empty_history,
  remember,
  sample_new,
)


def random_search(
  space: Space,
  *,
  population: int = 10,
  max_evaluations: int = 1000,
  distinct: bool = True,
) -> Strategy:
  """Random search.

  Args:
    space: the space.
    population: P, children of a round.
    max_evaluations: how many children are remembered so as not to repeat them.
    distinct: ask nothing twice.

  Returns:
    A `Strategy` whose state is a `History`. Failed children are remembered like any.

  Raises:
    InputError: a number that is not positive.
  """
  if population < 1 or max_evaluations < 1:
    raise InputError(
      "random_search: population and max_evaluations must be positive, got "
      f"{population} and {max_evaluations}"
    )

  def init(key: jax.Array) -> History:
    del key
    return empty_history(max_evaluations, space.length)

  def ask(key, history):
    def prior(key):
      return base.sample(space, key)

    if not distinct:
      return jax.vmap(prior)(jax.random.split(key, population)), history
    return sample_new(key, prior, space, history, population), history

  def tell(key, history, genotypes, scores):
    del key
    return remember(history, genotypes, scores), {}

  return Strategy(init, ask, tell)
