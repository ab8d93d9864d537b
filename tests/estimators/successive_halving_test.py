import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nasjax import search
from nasjax.core.types import Evaluation, InputError
from nasjax.data import benchmarks
from nasjax.estimators.base import Estimator
from nasjax.estimators.successive_halving import (
  bracket_sizes,
  hyperband,
  successive_halving,
)
from nasjax.estimators.tabular import rows_of, space_of, tabular
from nasjax.spaces.categorical import Categorical
from nasjax.strategies.random_search import random_search

pytestmark = pytest.mark.usefixtures("quick_compile")

SIZE, LEVELS = 40, 4
FIDELITIES = (1, 3, 9, 27)
rng = np.random.default_rng(0)
SCORES = rng.random((LEVELS, SIZE)).astype(np.float32)
SECONDS = np.outer(FIDELITIES, 1 + rng.random(SIZE)).astype(np.float32)
POPULATION = rng.permutation(SIZE)[:23, None].astype(np.int32)


def table(scores=SCORES):
  """An estimator whose genotypes `[P, 1]` are the columns of a table."""

  def estimate(key, state, genotypes, fidelity=None):
    at = FIDELITIES.index(fidelity or FIDELITIES[-1])
    column = genotypes[:, 0]
    curve = state[0][: at + 1, column].T
    return state, Evaluation(state[0][at, column], state[1][at, column], curve, {})

  return Estimator(lambda key: (jnp.asarray(scores), jnp.asarray(SECONDS)), estimate)


def evaluate(estimator, genotypes=POPULATION, seed=1, jit=True):
  run = jax.jit(estimator.estimate) if jit else estimator.estimate
  state = estimator.init(jax.random.key(0))
  return jax.tree.map(np.asarray, run(jax.random.key(seed), state, genotypes)[1])


def reference(columns, levels, eta, resumed, scores=SCORES):
  """Score, cost, curve and rung of each, in plain loops; scores must differ."""
  alive, done, places = list(columns), {}, len(columns)
  for place, level in enumerate(levels):
    for c in alive:
      before = done[c][1] if place and not resumed else 0.0
      curve = [*scores[: level + 1, c], *[np.nan] * (LEVELS - level - 1)]
      done[c] = (scores[level, c], before + SECONDS[level, c], curve, level)
    places = math.ceil(places / eta)
    finite = [c for c in alive if np.isfinite(scores[level, c])]
    alive = sorted(finite, key=lambda c: -scores[level, c])[:places]
  return [np.array(part) for part in zip(*(done[c] for c in columns), strict=True)]


def check(evaluation, expected, rows=slice(None)):
  found = (*evaluation[:3], evaluation.info["rung"])
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_allclose(a[rows], b, rtol=1e-6)


@pytest.mark.parametrize("eta", [2, 3, 30])
@pytest.mark.parametrize("resumed", [True, False])
def test_halving_is_what_plain_loops_do(eta, resumed):
  halving = successive_halving(table(), rungs=FIDELITIES, eta=eta, resumed=resumed)
  expected = reference(POPULATION[:, 0], range(LEVELS), eta, resumed)
  check(evaluate(halving), expected)
  assert set(expected[3]) == ({0, 1, 2, 3} if eta < 30 else {0, 3})


def test_two_rungs_of_a_table_with_more():
  halving = successive_halving(table(), rungs=(3, 27))
  evaluation = evaluate(halving)
  went_on = evaluation.info["rung"] == 1
  assert went_on.sum() == 8 == math.ceil(23 / 3)
  columns = POPULATION[:, 0]
  np.testing.assert_array_equal(
    evaluation.score, np.where(went_on, SCORES[3, columns], SCORES[1, columns])
  )
  assert SCORES[1, columns][went_on].min() > SCORES[1, columns][~went_on].max()


def test_what_failed_does_not_go_on():
  spoiled = SCORES.copy()
  columns = POPULATION[:, 0]
  spoiled[0, columns[:20]] = np.nan  # three are left for eight places
  spoiled[1, columns[20]] = np.nan
  evaluation = evaluate(successive_halving(table(spoiled), rungs=FIDELITIES))
  expected = reference(columns, range(LEVELS), 3, True, spoiled)
  check(evaluation, expected)
  assert (
    np.isnan(evaluation.score[:21]).all() and np.isfinite(evaluation.score[21:]).all()
  )
  assert evaluation.info["rung"].tolist()[:21] == [0] * 20 + [1]


def test_an_only_child_goes_to_the_end():
  for wrap in (successive_halving, hyperband):
    evaluation = evaluate(wrap(table(), rungs=FIDELITIES), POPULATION[:1])
    assert evaluation.info["rung"] == [3]


@pytest.mark.parametrize("resumed", [True, False])
def test_hyperband_is_halving_bracket_by_bracket(resumed):
  band = hyperband(table(), rungs=FIDELITIES, eta=2, resumed=resumed)
  evaluation = evaluate(band)
  bracket = evaluation.info["bracket"]
  assert np.bincount(bracket).tolist() == list(bracket_sizes(23, 4, 2))
  assert len(set(bracket)) == 4
  for first in range(4):
    rows = np.flatnonzero(bracket == first)
    levels = range(first, LEVELS)
    check(evaluation, reference(POPULATION[rows, 0], levels, 2, resumed), rows)
  other = evaluate(band, seed=2).info["bracket"]
  assert (other != bracket).any()  # who goes where is drawn


def test_brackets_are_those_of_the_paper():
  # Li et al. 2018, table 1: R = 81, eta = 3.
  assert bracket_sizes(143, 5, 3) == (81, 34, 15, 8, 5)
  assert bracket_sizes(286, 5, 3) == (162, 68, 30, 16, 10)
  for population in range(1, 40):
    sizes = bracket_sizes(population, 3, 3)
    assert sum(sizes) == population and min(sizes) >= 0
  assert bracket_sizes(1, 5, 3) == (1, 0, 0, 0, 0)
  assert bracket_sizes(7, 1, 3) == (7,)


@pytest.mark.parametrize("wrap", [successive_halving, hyperband])
def test_jit_and_order_change_nothing(wrap):
  tied = (SCORES * 4).round() / 4  # five values: the cut is among equals
  estimator = wrap(table(tied), rungs=FIDELITIES, resumed=False)
  plain = evaluate(estimator)
  jax.tree.map(np.testing.assert_array_equal, plain, evaluate(estimator, jit=False))
  order = np.random.default_rng(1).permutation(23)
  expected = jax.tree.map(lambda values: values[order], plain)
  turned = evaluate(estimator, POPULATION[order])
  jax.tree.map(np.testing.assert_array_equal, expected, turned)


def test_all_rungs_of_a_resumed_training_have_its_key():
  seen = []

  def estimate(key, state, genotypes, fidelity=None):
    seen.append(jax.random.uniform(key).item())
    return table().estimate(None, state, genotypes, fidelity)

  noisy = Estimator(table().init, estimate)
  evaluate(successive_halving(noisy, rungs=FIDELITIES), jit=False)
  assert len(set(seen)) == 1
  seen.clear()
  evaluate(successive_halving(noisy, rungs=FIDELITIES, resumed=False), jit=False)
  assert len(set(seen)) == 4


@pytest.mark.parametrize("wrap", [successive_halving, hyperband])
def test_what_cannot_be_is_refused(wrap):
  for rungs in ((), (3, 1), (0, 1), (1, 1)):
    with pytest.raises(InputError, match="rungs must be positive and rise"):
      wrap(table(), rungs=rungs)
  with pytest.raises(InputError, match="^eta must be at least 2, got 1"):
    wrap(table(), rungs=(1, 3), eta=1)
  with pytest.raises(InputError, match="end at 27; build another estimator for 3"):
    estimator = wrap(table(), rungs=FIDELITIES)
    estimator.estimate(jax.random.key(0), None, POPULATION, fidelity=3)


@pytest.mark.parametrize("wrap", [successive_halving, hyperband])
def test_a_compiled_search_over_a_table(wrap, tmp_path):
  space = Categorical((7, 9))
  random = np.random.default_rng(3)
  final = random.random(63)
  arrays = {
    "space": np.array(json.dumps({"kind": "categorical", "num_choices": [7, 9]})),
    "genotypes": np.asarray(jax.vmap(space.at)(jnp.arange(63))),
    "epochs": np.array(9),
    "made_valid": 100 * final,
    "made_test": 100 * final,
    "made_train_seconds": np.full(63, 9.0),
    "ep1_made_valid": 50 * random.random(63),
    "ep3_made_valid": 50 + 30 * final,
  }
  benchmarks.write(tmp_path / "made.npz", arrays)
  table = benchmarks.read(tmp_path / "made.npz")
  whole = tabular(space_of(table), table, "made")
  strategy = random_search(space, population=12, max_evaluations=48)
  full, halved = (
    search.run_compiled(
      strategy, estimator, jax.random.split(jax.random.key(0), 3), max_evaluations=48
    )
    for estimator in (whole, wrap(whole, rungs=(1, 3, 9)))
  )
  np.testing.assert_array_equal(full.genotypes, halved.genotypes)
  assert set(np.unique(halved.cost)) == {1.0, 3.0, 9.0} and (full.cost == 9).all()
  to_the_end = halved.cost == 9
  np.testing.assert_array_equal(halved.rung == 2, to_the_end)
  assert (full.rung == 0).all()
  best, at = halved.incumbents()
  for i in range(3):  # of those that went to the end the best
    assert halved.score[i, at[i]] == halved.score[i, to_the_end[i]].max()
    np.testing.assert_array_equal(best[i], halved.genotypes[i, at[i]])
  np.testing.assert_array_equal(full.score[to_the_end], halved.score[to_the_end])
  assert (halved.score[halved.cost == 1] <= 0.5).all()
  with pytest.raises(InputError, match="no scores after 2 epochs; it has 1, 3, 9"):
    evaluate(wrap(whole, rungs=(2, 9)), np.zeros((5, 2), np.int32))


def test_halving_beats_full_fidelity_at_equal_cost_on_nas_bench_201(shared_data):
  table = benchmarks.read(shared_data / "nasbench201" / "nasbench201.npz")
  space, measured = space_of(table), table.on("cifar10")
  whole = tabular(space, table, "cifar10")
  strategy = random_search(space, population=27, max_evaluations=108)
  regret = []
  for estimator in (
    whole,
    successive_halving(whole, rungs=(12, 200), resumed=False),
  ):
    found = search.run_compiled(
      strategy,
      estimator,
      jax.random.split(jax.random.key(0), 128),
      max_evaluations=108,
      budget=20 * float(measured.seconds[-1].mean()),
    )
    genotypes, _ = found.incumbents()
    number = np.asarray(jax.vmap(space.index)(genotypes))
    test = measured.test[rows_of(space, table)][number]
    regret.append(measured.test.max() - test)
  assert regret[1].mean() < 0.85 * regret[0].mean()
  error = np.sqrt(sum(r.var() / len(r) for r in regret))
  assert regret[0].mean() - regret[1].mean() > 3 * error
