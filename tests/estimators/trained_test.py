import jax
import numpy as np
import pytest

from nasjax.core.types import InputError
from nasjax.data import embedded
from nasjax.estimators.trained import trained
from nasjax.spaces.mlp_chain import MLPChain
from nasjax.training.step import epoch_weighted

SPACE = MLPChain(widths=(4, 8), max_layers=3)
DATA = embedded.load("iris")
GENOTYPES = np.stack([SPACE.parse(a) for a in ("8 relu", "8 relu - 4 tanh")])


def estimate(estimator, genotypes=GENOTYPES, state=None, seed=0):
  state = estimator.init(jax.random.key(9)) if state is None else state
  return estimator.estimate(jax.random.key(seed), state, genotypes)


def build(**options):
  settings = {"epochs": 3, "batch_size": 16, "learning_rate": 0.01, **options}
  return trained(SPACE, DATA, **settings)


def test_an_evaluation_says_everything_of_each_child():
  seen = []
  estimator = build(on_child=lambda i, child, score: seen.append((i, score)))
  state, evaluation = estimate(estimator)
  assert evaluation.curve.shape == (2, 3) and not state.weights
  np.testing.assert_allclose(
    evaluation.score, epoch_weighted(evaluation.curve), rtol=1e-6
  )
  np.testing.assert_allclose([s for _, s in sorted(seen)], evaluation.score, rtol=1e-6)
  assert evaluation.info["num_params"] == [4 * 8 + 8 + 8 * 3 + 3, 40 + 36 + 15]
  assert evaluation.info["epochs_run"] == [3, 3]
  assert evaluation.info["shared_layers"] == [0, 0]
  assert (evaluation.cost > 0).all()


def test_the_test_split_is_not_looked_at():
  import dataclasses

  spoiled = dataclasses.replace(DATA, test=DATA.test._replace(x=DATA.test.x * np.nan))
  settings = {"epochs": 2, "batch_size": 16}
  _, a = estimate(trained(SPACE, DATA, **settings))
  _, b = estimate(trained(SPACE, spoiled, **settings))
  np.testing.assert_array_equal(a.score, b.score)


def test_one_shot_starts_from_what_was_stored():
  estimator = build(one_shot="last", learning_rate=0.0)
  state, _ = estimate(estimator)
  assert sorted(state.weights) == [
    "4 tanh>output",
    "8 relu>4 tanh",
    "8 relu>output",
    "input>8 relu",
  ]
  # with a rate of 0 nothing is learned: the second round gives the stored weights back
  again, evaluation = estimate(estimator, state=state, seed=1)
  assert evaluation.info["shared_layers"] == [2, 3]
  for name, layer in state.weights.items():
    np.testing.assert_array_equal(again.weights[name]["kernel"], layer["kernel"])
  _, fresh = estimate(estimator, seed=1)
  assert np.abs(fresh.curve - evaluation.curve).max() > 0


def test_warm_starts_help_a_child_that_was_trained_before():
  estimator = build(one_shot="best", epochs=10)
  # One child: the layers of several need not go together.
  state, cold = estimate(estimator, GENOTYPES[:1])
  _, warm = estimate(estimator, GENOTYPES[:1], state=state, seed=1)
  assert warm.curve[0, 0] > cold.curve[0, 0]


def test_bad_options_are_refused():
  for options in ({"score": "median"}, {"one_shot": "yes"}, {"epochs": 0}):
    with pytest.raises(InputError):
      build(**options)
  with pytest.raises(InputError, match="trains 3 epochs"):
    build().estimate(jax.random.key(0), None, GENOTYPES, fidelity=7)
