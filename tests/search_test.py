"""The search loop, and the same loop compiled over seeds."""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nasjax import search
from nasjax.core.types import Evaluation, InputError, Round
from nasjax.estimators.base import Estimator
from nasjax.estimators.successive_halving import hyperband, successive_halving
from nasjax.runtime import CompileCounter
from nasjax.spaces.categorical import Categorical
from nasjax.spaces.mlp_chain import MLPChain
from nasjax.strategies.bananas import bananas
from nasjax.strategies.base import Strategy
from nasjax.strategies.bayesian import bayesian
from nasjax.strategies.evolution import evolution
from nasjax.strategies.local_search import local_search
from nasjax.strategies.random_search import random_search
from nasjax.strategies.reinforce import reinforce

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


TABLE = jax.random.uniform(jax.random.key(7), (8,))


def looked_up(space=SPACE):
  """A jittable estimator: scores of eight architectures, one of them failed."""

  def estimate(key, state, genotypes, fidelity=None):
    del key, fidelity
    number = jax.vmap(space.index)(jnp.asarray(genotypes))
    score = jnp.where(number == 5, jnp.nan, state[number])
    return state, Evaluation(score, 1.0 + number, score[:, None], {})

  return Estimator(lambda key: TABLE, estimate)


BITS = Categorical((2, 2, 2))  # the space of strategies that compile long
MADE = {  # by name: the space, and what makes the strategy
  "random_search": (SPACE, lambda s: random_search(s, population=3, max_evaluations=8)),
  "evolution": (SPACE, lambda s: evolution(s, population=3, sample=2)),
  "evolution_crossover": (
    BITS,
    lambda s: evolution(s, population=3, sample=2, children=2, crossover=0.7),
  ),
  "local_search": (SPACE, lambda s: local_search(s, children=2)),
  "local_search_steepest": (
    BITS,
    lambda s: local_search(s, rule="steepest", children=2),
  ),
  "reinforce_lstm": (
    BITS,
    lambda s: reinforce(
      s, population=2, max_evaluations=8, hidden=4, updates=2, predictor=0.0
    ),
  ),
  "reinforce_independent": (
    BITS,
    lambda s: reinforce(
      s,
      policy="independent",
      population=1,
      max_evaluations=8,
      updates=1,
      corrected=True,
      utility="score",
      predictor=0.0,
      distinct=False,
    ),
  ),
  "bayesian": (
    BITS,
    lambda s: bayesian(s, max_evaluations=8, initial=2, num_mutants=6, num_draws=2),
  ),
  "bananas": (
    BITS,
    lambda s: bananas(
      s, population=2, max_evaluations=8, initial=2, num_mutants=6, hidden=4, steps=3
    ),
  ),
}


@pytest.mark.parametrize("name", MADE)
def test_compiled_searches_do_what_the_loop_does(name, quick_compile):
  space, make = MADE[name]
  strategy, estimator = make(space), looked_up(space)
  seeds = jax.random.split(jax.random.key(1), 3)
  done = search.run_compiled(strategy, estimator, seeds, max_evaluations=6)
  for i, key in enumerate(seeds):
    rounds = search.run(strategy, estimator, jax.random.clone(key), num_rounds=60)
    genotypes, scores = [], []
    for each in rounds:
      genotypes += list(each.genotypes)
      scores += list(each.evaluation.score)
      if len(scores) >= 6:
        break
    count = min(len(scores), 6)
    assert done.num_evaluations[i] == count
    np.testing.assert_array_equal(done.genotypes[i, :count], genotypes[:count])
    np.testing.assert_allclose(done.score[i, :count], scores[:count], rtol=1e-6)
  assert not done.ended.any()


@pytest.mark.parametrize("wrap", [successive_halving, hyperband])
def test_compiled_halving_does_what_the_loop_does(wrap, quick_compile):
  # Nothing is asked for twice, so every round is the same population in both.
  space = Categorical((3, 3, 3))
  scores = jax.random.uniform(jax.random.key(8), (2, space.size))

  def estimate(key, state, genotypes, fidelity=None):
    del key
    level = (1, 9).index(fidelity)
    score = state[level, jax.vmap(space.index)(jnp.asarray(genotypes))]
    cost = jnp.full(len(score), 1.0 * fidelity)
    return state, Evaluation(score, cost, score[:, None], {})

  estimator = wrap(Estimator(lambda key: scores, estimate), rungs=(1, 9))
  estimator = estimator._replace(estimate=jax.jit(estimator.estimate))
  strategy = random_search(space, population=6, max_evaluations=18)
  seeds = jax.random.split(jax.random.key(1), 2)
  done = search.run_compiled(strategy, estimator, seeds, max_evaluations=18)
  for i, key in enumerate(seeds):
    each = search.run(strategy, estimator, jax.random.clone(key), num_rounds=3)
    rounds = list(each)
    merged = search.evaluations(rounds)
    genotypes = np.concatenate([part.genotypes for part in rounds])
    np.testing.assert_array_equal(done.genotypes[i], genotypes)
    np.testing.assert_array_equal(done.score[i], merged.score)
    np.testing.assert_array_equal(done.cost[i], merged.cost)
    np.testing.assert_array_equal(done.rung[i], merged.info["rung"])
    best, at = done.incumbents()
    found = search.best(rounds)
    assert found.evaluations == at[i] + 1
    np.testing.assert_array_equal(found.genotype, best[i])


def test_a_budget_of_cost_ends_a_search_before_what_would_pass_it():
  strategy = random_search(SPACE, population=2, max_evaluations=8)
  keys = jax.random.split(jax.random.key(2), 5)
  free = search.run_compiled(
    strategy, looked_up(), jax.random.clone(keys), max_evaluations=8
  )
  done = search.run_compiled(
    strategy, looked_up(), jax.random.clone(keys), max_evaluations=8, budget=15.0
  )
  assert (free.num_evaluations == 8).all() and done.ended.all()
  for i in range(5):
    within = int((np.cumsum(free.cost[i]) <= 15.0).sum())
    assert done.num_evaluations[i] == within < 8
    np.testing.assert_array_equal(
      done.genotypes[i, :within], free.genotypes[i, :within]
    )
    assert (done.genotypes[i, within:] == -1).all()
    assert np.isnan(done.score[i, within:]).all()
  for i, key in enumerate(keys):
    # The loop over rounds agrees, also in two parts, and after its end does nothing.
    rounds, states = [], []
    for part in (2, 8, 8):
      rounds += search.run(
        strategy,
        looked_up(),
        jax.random.clone(key),
        num_rounds=part,
        budget=15.0,
        state=states[-1] if states else None,
        on_state=states.append,
      )
    found = np.concatenate([each.genotypes for each in rounds])
    np.testing.assert_array_equal(found, done.genotypes[i, : len(found)])
    assert len(found) == done.num_evaluations[i] == len(states[-1].genotypes)
    merged = search.evaluations(rounds)
    np.testing.assert_array_equal(merged.cost, done.cost[i, : len(found)])
    assert merged.cost.sum() <= 15.0 < states[-1].spent
    assert all(len(each.genotypes) for each in rounds)
  best, at = done.incumbents()
  for i in range(5):
    scores = done.score[i, : done.num_evaluations[i]]
    assert at[i] == np.nanargmax(scores)
    np.testing.assert_array_equal(best[i], done.genotypes[i, at[i]])


def test_what_fills_all_places_is_not_ended_by_the_budget():
  # Costs of 1, 2, 3 and 8 within 7: three fit, the fourth child would pass it.
  four = jnp.stack([SPACE.at(number) for number in (0, 1, 2, 7)])
  strategy = Strategy(
    lambda key: 0, lambda key, state: (four, state), lambda key, s, g, v: (s, {})
  )
  for size, ended in ((2, False), (3, False), (4, True)):
    seed = jax.random.split(jax.random.key(0), 1)
    done = search.run_compiled(
      strategy, looked_up(), seed, max_evaluations=size, budget=7.0
    )
    assert done.num_evaluations.tolist() == [min(size, 3)]
    assert done.ended.tolist() == [ended]
    np.testing.assert_array_equal(done.genotypes[0, : min(size, 3)], four[:size][:3])


def test_the_winner_is_of_the_highest_rung():
  # Of seed 0 the 0.9 and 0.95 were stopped, and 0.7 went to the end twice; seed 1 has
  # one rung; all of seed 2 failed; the last of seed 3 is beyond its budget.
  score = np.array(
    [
      [np.nan, 0.9, 0.6, 0.7, 0.95, 0.7],
      [0.3, 0.2, 0.5, 0.5, np.nan, 0.4],
      [np.nan] * 6,
      [0.1, 0.2, 0.3, 0.1, 0.2, 0.9],
    ]
  )
  rung = np.array([[0, 0, 1, 1, 0, 1], [0] * 6, [1] * 6, [0, 0, 0, 1, 1, 1]])
  genotypes = np.arange(24).reshape(4, 6, 1)
  count, ended = np.array([6, 6, 6, 5]), np.array([True] * 4)
  done = search.Trajectories(genotypes, score, np.ones((4, 6)), rung, count, ended)
  held = [[-1, 1, 2, 3, 3, 3], [0, 0, 2, 2, 2, 2], [-1] * 6, [0, 1, 2, 3, 4, 4]]
  np.testing.assert_array_equal(done.held(), held)
  best, at = done.incumbents()
  assert at.tolist() == [3, 2, 0, 4] and best[:, 0].tolist() == [3, 8, 12, 22]
  # The loop's answer is the same.
  for i in (0, 1):
    info = {"rung": rung[i]}
    evaluation = Evaluation(score[i], score[i], score[i][:, None], info)
    found = search.best([Round(0, genotypes[i], evaluation, {}, 0)])
    assert found.evaluations == at[i] + 1 and found.score == score[i, at[i]]


def test_paid_repeats_count_and_free_ones_do_not():
  only = jnp.asarray(SPACE.parse("8 relu"))[None]

  def ask(key, state):
    return only, state

  stubborn = Strategy(lambda key: 0, ask, lambda key, s, g, v: (s, {}))
  keys = jax.random.split(jax.random.key(0), 2)
  options = {"max_evaluations": 4}
  free = search.run_compiled(stubborn, looked_up(), jax.random.clone(keys), **options)
  assert (free.num_evaluations == 1).all()
  paid = search.run_compiled(stubborn, looked_up(), keys, repeats="paid", **options)
  assert (paid.num_evaluations == 4).all() and (paid.cost[:, :4] == 1.0).all()


def test_pieces_and_padding_change_nothing():
  strategy = random_search(SPACE, population=2, max_evaluations=8)
  keys = jax.random.split(jax.random.key(3), 5)
  whole, cut = (
    search.run_compiled(
      strategy, looked_up(), jax.random.clone(keys), max_evaluations=4, max_seeds=size
    )
    for size in (1024, 2)
  )
  for a, b in zip(whole, cut):
    np.testing.assert_array_equal(a, b)


def test_another_table_of_the_same_shape_needs_no_compilation():
  strategy = random_search(SPACE, population=2, max_evaluations=8)
  compiled = search.compile_search(strategy, looked_up(), 3, max_evaluations=8)
  keys = jax.random.split(jax.random.key(4), 3)
  first, negative = compiled(jax.random.clone(keys)), -TABLE
  with CompileCounter() as again:
    other = compiled(keys, state=negative)
  assert again.count == 0
  np.testing.assert_array_equal(other.genotypes, first.genotypes)
  np.testing.assert_allclose(other.score, -first.score)


@pytest.mark.parametrize(
  ("options", "what"),
  [
    ({"max_evaluations": 0}, "at least one seed"),
    ({"max_evaluations": 4, "repeats": "cheap"}, "free or paid"),
    ({"max_evaluations": 4, "budget": 0.0}, "budget must be positive"),
  ],
)
def test_compiled_searches_refuse(options, what):
  strategy = random_search(SPACE, population=2, max_evaluations=8)
  with pytest.raises(InputError, match=what):
    search.run_compiled(
      strategy, looked_up(), jax.random.split(jax.random.key(0), 2), **options
    )


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from nasjax import search
from nasjax.core.types import Evaluation
from nasjax.estimators.base import Estimator
from nasjax.spaces.categorical import Categorical
from nasjax.strategies.evolution import evolution

space = Categorical((4, 4, 4))

def estimate(key, state, genotypes, fidelity=None):
  score = jnp.asarray(genotypes).sum(-1) + 0.0
  return state, Evaluation(score, jnp.ones(len(score)), score[:, None], {})

keys = jax.random.split(jax.random.key(0), 11)  # 11: the last piece is filled up
strategy = evolution(space, population=4, sample=2)
done = search.run_compiled(
  strategy, Estimator(lambda key: 0, estimate), keys, max_evaluations=12)
assert len(jax.devices()) == DEVICES
print(done.genotypes.tolist(), done.num_evaluations.tolist())
"""


def test_searches_sharded_over_devices_are_the_same():
  found = []
  for devices in (1, 4):
    flags = f"--xla_force_host_platform_device_count={devices}"
    finished = subprocess.run(
      [sys.executable, "-c", SHARDED.replace("DEVICES", str(devices))],
      env={**os.environ, "XLA_FLAGS": flags},
      cwd=pathlib.Path(__file__).resolve().parents[1],
      capture_output=True,
      text=True,
      timeout=300,
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    found.append(finished.stdout)
  assert found[0] == found[1] and found[0].startswith("[[[")
