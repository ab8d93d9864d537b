import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nasjax import search
from nasjax.core.types import Evaluation, InputError
from nasjax.estimators.base import Estimator
from nasjax.spaces.mlp_chain import MLPChain
from nasjax.strategies.base import Strategy
from nasjax.strategies.random_search import random_search

SPACE = MLPChain(widths=(8, 16), activations=("relu",), max_layers=3)  # 2 + 2 * 3 = 8


def counting(seen, score=lambda genotype: float(genotype.sum())):
  """An estimator without training that notes what it was given."""

  def estimate(key, state, genotypes, fidelity=None):
    del key, fidelity
    seen.append(np.asarray(genotypes))
    scores = np.array([score(g) for g in genotypes], np.float32)
    info = {"failure": [None] * len(scores)}
    return state + 1, Evaluation(scores, np.ones_like(scores), scores[:, None], info)

  return Estimator(lambda key: 0, estimate)


def test_rounds_carry_what_was_estimated():
  seen = []
  strategy = random_search(SPACE, population=2, max_evaluations=8)
  rounds = list(search.run(strategy, counting(seen), jax.random.key(0), num_rounds=3))
  assert [r.number for r in rounds] == [0, 1, 2]
  for each, given in zip(rounds, seen):
    np.testing.assert_array_equal(each.genotypes, given)
  best = search.best(rounds)
  every = np.concatenate(seen)
  assert best.score == every.sum(1).max()
  np.testing.assert_array_equal(best.genotype, every[best.evaluations - 1])
  merged = search.evaluations(rounds)
  assert merged.score.shape == (6,) and len(merged.info["failure"]) == 6


def test_no_architecture_is_estimated_twice_and_a_small_space_ends_the_search():
  seen = []
  strategy = random_search(SPACE, population=3, max_evaluations=30)
  rounds = list(search.run(strategy, counting(seen), jax.random.key(0), num_rounds=20))
  names = [genotype.tobytes() for part in seen for genotype in part]
  assert len(names) == len(set(names)) == SPACE.size == 8
  assert len(rounds) == 3 and rounds[-1].skipped == 1


def test_a_repeat_is_told_its_recorded_score():
  told = []
  population = jnp.stack([jnp.asarray(SPACE.parse(a)) for a in ("8 relu", "16 relu")])
  stubborn = jnp.concatenate([population[:1], population])

  def tell(key, state, genotypes, scores):
    jax.debug.callback(lambda s: told.append(np.asarray(s)), scores)
    return state, {"double": 2 * scores, "one": jnp.float32(1)}

  strategy = Strategy(lambda key: 0, lambda key, state: (stubborn, state), tell)
  seen = []
  rounds = list(search.run(strategy, counting(seen), jax.random.key(0), num_rounds=2))
  jax.effects_barrier()
  sums = np.asarray(stubborn.sum(1), np.float32)
  np.testing.assert_array_equal(told[0], sums)
  assert len(rounds) == 1 and len(seen[0]) == 2 and rounds[0].skipped == 1
  np.testing.assert_array_equal(rounds[0].info["double"], 2 * sums[[0, 2]])
  assert rounds[0].info["one"] == 1.0


def test_the_same_key_gives_the_same_search():
  strategy = random_search(SPACE, population=2, max_evaluations=8)
  runs = []
  for seed in (0, 0, 1):
    seen = []
    list(search.run(strategy, counting(seen), jax.random.key(seed), num_rounds=2))
    runs.append(np.concatenate(seen))
  assert (runs[0] == runs[1]).all() and (runs[0] != runs[2]).any()


def test_a_search_that_found_nothing_says_so():
  strategy = random_search(SPACE, population=2, max_evaluations=8)
  failing = counting([], score=lambda genotype: float("nan"))
  rounds = list(search.run(strategy, failing, jax.random.key(0), num_rounds=2))
  with pytest.raises(InputError, match="all 4 children failed"):
    search.best(rounds)
  with pytest.raises(InputError, match="at least one round"):
    next(search.run(strategy, failing, jax.random.key(0), num_rounds=0))
