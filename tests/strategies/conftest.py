"""A score that is known everywhere, and how well a strategy searches it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from nasjax.spaces.categorical import Categorical

SEEDS = 24
PLANTED = Categorical((4,) * 8)
TARGET = (3, 1, 0, 2, 2, 0, 1, 3)
# Of different weight, so that hardly any two genotypes are alike.
WEIGHTS = np.float32([1.0, 1.1, 1.3, 1.6, 2.0, 2.5, 3.1, 3.8])


def planted_score(genotypes):
  """`[P]` of `[P, D]`: the weight of the decisions that are the target's, of 1."""
  hit = genotypes == jnp.asarray(TARGET)[None]
  return jnp.where(hit, WEIGHTS[None], 0.0).sum(-1) / WEIGHTS.sum()


def random_best(num_asked):
  """`[SEEDS]` best score of as many different draws from the prior."""
  rng = np.random.default_rng(0)
  drawn = [rng.choice(PLANTED.size, num_asked, replace=False) for _ in range(SEEDS)]
  places = 4 ** np.arange(8)
  genotypes = np.stack(drawn)[..., None] // places % 4
  hits = (genotypes == TARGET) * WEIGHTS
  return hits.sum(-1).max(-1) / WEIGHTS.sum()


def best_found(strategy, num_rounds):
  """`[SEEDS]` best score of as many rounds; what is asked twice is not free."""

  def search(key):
    def one_round(state, number):
      ask, tell = jax.random.split(jax.random.fold_in(key, number))
      genotypes, state = strategy.ask(ask, state)
      scores = planted_score(genotypes)
      return strategy.tell(tell, state, genotypes, scores)[0], scores

    start = strategy.init(jax.random.fold_in(key, num_rounds))
    return jax.lax.scan(one_round, start, jnp.arange(num_rounds))[1].max()

  return jax.jit(jax.vmap(search))(jax.random.split(jax.random.key(0), SEEDS))


@pytest.fixture
def planted():
  """The space that `beats_random_search` searches."""
  return PLANTED


@pytest.fixture
def beats_random_search():
  """Asserts that a strategy finds better than random search, with as many children.

  One-sided Mann-Whitney test over seeds, at 1 in 10,000.
  """

  def check(strategy, population, num_rounds):
    found = np.asarray(best_found(strategy, num_rounds))
    control = random_best(population * num_rounds)
    assert stats.mannwhitneyu(found, control, alternative="greater").pvalue < 1e-4

  return check


@pytest.fixture(autouse=True)
def _quick(quick_compile):
  """Searches of a hundred children: compiling them takes longer than they do."""
