import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nasjax.core.types import InputError
from nasjax.spaces.categorical import Categorical
from nasjax.strategies.bayesian import bayesian

TINY = Categorical((2, 2, 2))
WIDE = Categorical((3,) * 5)
SEEDS = 20


def by_sum(genotypes):
  return genotypes.sum(-1).astype(jnp.float32)


def all_asked(strategy, num_rounds):
  """`[SEEDS, rounds, P, D]` asked by searches; in one of four every child fails."""

  def search(key, fails):
    def one_round(state, number):
      ask, tell = jax.random.split(jax.random.fold_in(key, number))
      genotypes, state = strategy.ask(ask, state)
      scores = jnp.where(fails, jnp.nan, by_sum(genotypes))
      return strategy.tell(tell, state, genotypes, scores)[0], genotypes

    start = strategy.init(jax.random.fold_in(key, num_rounds))
    return jax.lax.scan(one_round, start, jnp.arange(num_rounds))[1]

  keys = jax.random.split(jax.random.key(0), SEEDS)
  return np.asarray(jax.jit(jax.vmap(search))(keys, jnp.arange(SEEDS) % 4 == 0))


def test_everything_is_asked_once_though_hardly_a_candidate_is_new():
  strategy = bayesian(
    TINY, population=2, max_evaluations=8, initial=2, num_mutants=1, num_draws=1
  )
  for genotypes in all_asked(strategy, 4).reshape(SEEDS, 8, 3):
    assert len(np.unique(genotypes, axis=0)) == 8


@functools.cache
def compiled():
  strategy = bayesian(WIDE, max_evaluations=60, initial=10)
  return strategy._replace(ask=jax.jit(strategy.ask), tell=jax.jit(strategy.tell))


def test_it_climbs_once_it_has_seen_enough():
  strategy = compiled()
  state = strategy.init(jax.random.key(0))
  scores, evidence = [], []
  for number in range(30):
    ask, tell = jax.random.split(jax.random.key(number))
    genotypes, state = strategy.ask(ask, state)
    score = by_sum(genotypes)
    state, info = strategy.tell(tell, state, genotypes, score)
    scores.append(float(score[0]))
    evidence.append(float(info["evidence"]))
  # The first ten are of the prior, whose mean is 5.
  assert np.mean(scores[:10]) < 7 < np.mean(scores[10:20])
  assert 10.0 in scores and np.isfinite(evidence).all()
  assert int(state.process.num_seen) == int(state.history.num_added) == 30


def test_a_failed_child_is_remembered_but_not_modelled():
  strategy = compiled()
  state = strategy.init(jax.random.key(0))
  for score in (1.0, jnp.nan, jnp.inf, 2.0):
    genotypes, state = strategy.ask(jax.random.key(int(state.history.num_added)), state)
    told = jnp.array([score])
    state, _ = strategy.tell(jax.random.key(9), state, genotypes, told)
  assert int(state.history.num_added) == 4 and int(state.process.num_seen) == 2
  np.testing.assert_array_equal(state.process.y[:3], [1.0, 2.0, 0.0])


def test_beyond_its_room_it_goes_on_with_what_it_has_learned():
  strategy = bayesian(WIDE, population=3, max_evaluations=9, initial=3, num_mutants=30)
  asked = all_asked(strategy, 6)
  assert bool(jax.vmap(WIDE.is_legal)(asked.reshape(-1, 5)).all())
  for genotypes in asked.reshape(-1, 3, 5):
    assert len(np.unique(genotypes, axis=0)) == 3


def test_it_beats_random_search(planted, beats_random_search):
  strategy = bayesian(planted, population=2, max_evaluations=60, initial=10)
  beats_random_search(strategy, population=2, num_rounds=30)


@pytest.mark.parametrize(
  ("options", "named"),
  [
    ({name: 0}, "every number must be positive")
    for name in (
      "population",
      "max_evaluations",
      "initial",
      "num_parents",
      "num_mutants",
      "num_draws",
    )
  ]
  + [({"encoding": "graph"}, "unknown encoding 'graph'; there are one_hot, paths")],
)
def test_what_it_refuses(options, named):
  with pytest.raises(InputError, match=named):
    bayesian(WIDE, **options)
