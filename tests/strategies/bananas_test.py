import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nasjax.core.types import InputError
from nasjax.predictors import regressors
from nasjax.spaces.categorical import Categorical
from nasjax.strategies.bananas import bananas

TINY = Categorical((2, 2, 2))
WIDE = Categorical((3,) * 5)
SEEDS = 20
P = 5


def by_sum(genotypes):
  return genotypes.sum(-1).astype(jnp.float32)


def test_everything_is_asked_once_though_hardly_a_candidate_is_new():
  strategy = bananas(
    TINY,
    population=2,
    max_evaluations=8,
    initial=2,
    num_mutants=2,
    hidden=4,
    steps=2,
  )

  def search(key, fails):
    def score(genotypes):
      return jnp.where(fails, jnp.nan, by_sum(genotypes))

    def one_round(state, number):
      ask, tell = jax.random.split(jax.random.fold_in(key, number))
      genotypes, state = strategy.ask(ask, state)
      return strategy.tell(tell, state, genotypes, score(genotypes))[0], genotypes

    start = strategy.init(jax.random.fold_in(key, 4))
    return jax.lax.scan(one_round, start, jnp.arange(4))[1]

  keys = jax.random.split(jax.random.key(0), SEEDS)
  fails = jnp.arange(SEEDS) % 4 == 0
  asked = np.asarray(jax.jit(jax.vmap(search))(keys, fails))
  for genotypes in asked.reshape(SEEDS, 8, 3):
    assert len(np.unique(genotypes, axis=0)) == 8


@functools.cache
def rounds():
  """Genotypes, scores, predictions (told, and of the ensemble before) of 7 rounds.

  The first child of each fails.
  """
  strategy = bananas(
    WIDE, population=P, max_evaluations=40, initial=10, hidden=16, steps=60
  )
  ask, tell = jax.jit(strategy.ask), jax.jit(strategy.tell)
  state = strategy.init(jax.random.key(0))
  done = []
  for number in range(7):
    ask_key, tell_key = jax.random.split(jax.random.key(number))
    genotypes, state = ask(ask_key, state)
    scores = by_sum(genotypes).at[0].set(jnp.nan)
    x = jax.nn.one_hot(genotypes, 3).reshape(P, -1)
    before, _ = regressors.predict(state.ensemble, x)
    state, info = tell(tell_key, state, genotypes, scores)
    done.append((genotypes, scores, info["predicted"], before))
  return [np.stack(leaves) for leaves in zip(*done)]


def test_it_climbs_once_it_has_seen_enough():
  genotypes, scores, *_ = rounds()
  # The first ten are of the prior, whose mean is 5.
  assert np.nanmean(scores[:2]) < 7 < np.nanmean(scores[2:5])
  assert len(np.unique(genotypes.reshape(-1, 5), axis=0)) == 7 * P


def test_what_is_predicted_was_learned_before():
  _, scores, predicted, before = rounds()
  assert predicted.shape == (7, P) and np.isfinite(predicted).all()
  np.testing.assert_allclose(predicted, before, rtol=1e-4, atol=1e-5)
  # Of scores from 0 to 10, nothing was known before the first round.
  error = abs(predicted - scores)[:, 1:].mean(-1)
  assert error[0] > 3 and error[1] < 3 and error[2:].max() < 2


def test_it_beats_random_search(planted, beats_random_search):
  strategy = bananas(planted, population=5, max_evaluations=60, hidden=16, steps=40)
  beats_random_search(strategy, population=5, num_rounds=12)


@pytest.mark.parametrize(
  ("options", "named"),
  [
    ({name: 0}, "every number must be positive")
    for name in (
      "population",
      "max_evaluations",
      "initial",
      "num_parents",
      "hidden",
      "steps",
    )
  ]
  + [
    ({"num_mutants": 9}, "a candidate for each child"),
    ({"members": 1}, "two members"),
    ({"encoding": "graph"}, "unknown encoding 'graph'; there are one_hot, paths"),
  ],
)
def test_what_it_refuses(options, named):
  with pytest.raises(InputError, match=named):
    bananas(WIDE, **options)
