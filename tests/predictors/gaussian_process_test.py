import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from nasjax.predictors import gaussian_process as gp_lib

pytestmark = pytest.mark.usefixtures("quick_compile")

E, CAPACITY, SCALE = 4, 20, 2.0
PAIRS = [(length, noise) for length in gp_lib.LENGTHS for noise in gp_lib.NOISES]
append = jax.jit(gp_lib.append)
predict = jax.jit(gp_lib.predict)
evidence = jax.jit(gp_lib.evidence)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(CAPACITY, E))
Y = 70 + 5 * np.sin(X.sum(-1)) + RNG.normal(size=CAPACITY)
NEW = RNG.normal(size=(7, E))


@jax.jit
def predict_by(pair, gp, x):
  """What is predicted when this pair has the highest evidence."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(gp_lib, "evidence", lambda _: jnp.arange(len(PAIRS)) == pair)
    return gp_lib.predict(gp, x)


@functools.cache
def process(num_seen):
  """The process of the first observations."""
  gp = gp_lib.empty(CAPACITY, E, SCALE)
  for x, y in zip(X[:num_seen], Y[:num_seen]):
    gp = append(gp, jnp.float32(x), jnp.float32(y))
  return gp


def kernel(a, b, length):
  square = ((a[:, None] - b[None]) ** 2).sum(-1)
  return np.exp(-square / (2 * (length * SCALE) ** 2))


def reference(num_seen, length, noise):
  """Mean, deviation and evidence by solving the whole system, in float64."""
  x, y = X[:num_seen], Y[:num_seen]
  mean, deviation = y.mean(), max(y.std(), 1e-6)
  z = (y - mean) / deviation
  covariance = kernel(x, x, length) + noise * np.eye(num_seen)
  cross = kernel(x, NEW, length)
  expected = cross.T @ np.linalg.solve(covariance, z)
  variance = 1 - (cross * np.linalg.solve(covariance, cross)).sum(0)
  log_evidence = stats.multivariate_normal(cov=covariance).logpdf(z)
  return mean + deviation * expected, deviation * np.sqrt(variance), log_evidence


@pytest.mark.parametrize("num_seen", [1, 2, 5, 12, 20])
def test_it_is_the_exact_process(num_seen):
  gp = process(num_seen)
  found_evidence = np.asarray(evidence(gp))
  for pair, (length, noise) in enumerate(PAIRS):
    mean, std, log_evidence = reference(num_seen, length, noise)
    np.testing.assert_allclose(found_evidence[pair], log_evidence, rtol=1e-3, atol=1e-3)
    found = predict_by(pair, gp, jnp.float32(NEW))
    np.testing.assert_allclose(found[0], mean, rtol=1e-4)
    np.testing.assert_allclose(found[1], std, rtol=1e-2, atol=1e-3 * Y.std())


def test_it_predicts_by_the_pair_with_the_highest_evidence():
  by_evidence = [reference(CAPACITY, *pair) for pair in PAIRS]
  mean, std, _ = max(by_evidence, key=lambda found: found[2])
  found = predict(process(CAPACITY), jnp.float32(NEW))
  np.testing.assert_allclose(found[0], mean, rtol=1e-4)
  np.testing.assert_allclose(found[1], std, rtol=1e-2)
  others = [found[0] for found in by_evidence if found[0] is not mean]
  assert all(abs(other - mean).max() > 0.01 for other in others)


def test_the_order_of_observations_does_not_count():
  gp = gp_lib.empty(CAPACITY, E, SCALE)
  for row in np.random.default_rng(1).permutation(12):
    gp = append(gp, jnp.float32(X[row]), jnp.float32(Y[row]))
  for a, b in zip(
    predict(gp, jnp.float32(NEW)), predict(process(12), jnp.float32(NEW))
  ):
    np.testing.assert_allclose(a, b, rtol=1e-3)


def same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_failed_is_not_added(bad):
  before = process(5)
  same(append(before, jnp.float32(NEW[0]), jnp.float32(bad)), before)


def test_without_room_nothing_is_added():
  before = process(CAPACITY)
  assert int(before.num_seen) == CAPACITY
  same(append(before, jnp.float32(NEW[0]), jnp.float32(1.0)), before)


def test_the_same_observation_again_and_again_stays_finite():
  gp = process(2)
  for _ in range(18):
    gp = append(gp, jnp.float32(X[0]), jnp.float32(Y[0]))
  mean, std = predict(gp, jnp.float32(np.concatenate([X[:1], NEW])))
  assert np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all()
  assert abs(float(mean[0]) - Y[0]) < 0.1
  assert np.isfinite(evidence(gp)).all()


def test_without_observations_it_knows_nothing():
  gp = process(0)
  mean, std = predict(gp, jnp.float32(NEW))
  np.testing.assert_array_equal(mean, 0.0)
  np.testing.assert_allclose(std, 1e-6, rtol=1e-5)
  np.testing.assert_array_equal(evidence(gp), 0.0)


def test_one_score_for_all_is_predicted():
  gp = gp_lib.empty(CAPACITY, E, SCALE)
  for x in X[:3]:
    gp = append(gp, jnp.float32(x), jnp.float32(0.5))
  mean, std = predict(gp, jnp.float32(NEW))
  np.testing.assert_allclose(mean, 0.5, rtol=1e-5)
  assert (std > 0).all() and (std < 1e-5).all()


def test_expected_improvement():
  mean = np.array([0.0, 0.3, -0.5, 2.0, 1.0, -1.0], np.float32)
  std = np.array([1.0, 0.2, 0.4, 0.1, 1e-3, 2.0], np.float32)
  best = 0.4
  found = gp_lib.expected_improvement(jnp.asarray(mean), jnp.asarray(std), best)
  z = (mean - best) / std
  exact = std * (z * stats.norm.cdf(z) + stats.norm.pdf(z))
  np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-7)
  drawn = np.random.default_rng(0).normal(size=(200_000, 1)) * std + mean
  gain = np.maximum(drawn - best, 0)
  error = gain.std(0) / np.sqrt(len(drawn))
  assert (abs(gain.mean(0) - found) <= 4 * error + 1e-6).all()


def test_no_improvement_is_hoped_for_far_below_and_all_of_it_far_above():
  mean = jnp.array([-100.0, -5.0, 100.0])
  found = gp_lib.expected_improvement(mean, jnp.full(3, 1e-3), 0.0)
  np.testing.assert_allclose(found, [0, 0, 100], rtol=1e-6)
