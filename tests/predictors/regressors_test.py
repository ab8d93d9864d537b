import functools

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from nasjax.predictors import regressors

E = 12
RNG = np.random.default_rng(0)
X = RNG.integers(0, 2, (160, E)).astype(np.float32)
Y = (70 + X @ RNG.normal(size=E)).astype(np.float32)
TRAIN, HELD_OUT = slice(0, 100), slice(100, None)
fit = jax.jit(functools.partial(regressors.fit, steps=60))


def start(members=3):
  return regressors.init(jax.random.key(0), E, members=members, hidden=16)


@functools.cache
def fitted():
  """Two rounds, the second from where the first ended."""
  once = fit(jax.random.key(1), start(), X[TRAIN], Y[TRAIN])
  return fit(jax.random.key(2), once, X[TRAIN], Y[TRAIN])


def same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_it_learns_a_linear_score_in_its_own_units():
  mean, std = regressors.predict(fitted(), X[HELD_OUT])
  assert stats.spearmanr(mean, Y[HELD_OUT]).statistic > 0.9
  assert abs(np.asarray(mean) - Y[HELD_OUT]).mean() < 0.5 * Y.std()
  assert (std > 0).all() and float(std.mean()) < Y.std()


def test_it_goes_on_from_where_it_was():
  once = fit(jax.random.key(1), start(), X[TRAIN], Y[TRAIN])

  def error(ensemble):
    return abs(regressors.predict(ensemble, X[TRAIN])[0] - Y[TRAIN]).mean()

  assert error(fitted()) < error(once)


def test_members_differ_in_their_start_and_in_what_they_see():
  def kernels(ensemble):
    return np.asarray(ensemble.params["first"]["kernel"])

  for pair in ((0, 1), (0, 2), (1, 2)):
    assert abs(np.diff(kernels(start())[list(pair)], axis=0)).max() > 0.1
  # From the same start they part by their bootstraps.
  twins = jax.tree.map(lambda leaf: leaf[jnp.array([0, 0, 0])], start().params)
  apart = fit(jax.random.key(1), start()._replace(params=twins), X[TRAIN], Y[TRAIN])
  assert abs(np.diff(kernels(apart), axis=0)).max() > 1e-3


def test_failed_children_are_left_out():
  failed = np.arange(100) % 3 == 0
  found = []
  for bad, x in ((np.nan, X[TRAIN]), (np.inf, X[TRAIN]), (np.nan, 1 - X[TRAIN])):
    y = np.where(failed, np.float32(bad), Y[TRAIN])
    x = np.where(failed[:, None], x, X[TRAIN])
    found.append(fit(jax.random.key(1), start(), x, y))
  for other in found[1:]:
    same(other, found[0])
  assert np.isclose(float(found[0].mean), Y[TRAIN][~failed].mean())


def test_it_says_something_finite_before_it_has_learned():
  nothing = np.full(100, np.nan, np.float32)
  for ensemble in (start(), fit(jax.random.key(1), start(), X[TRAIN], nothing)):
    mean, std = regressors.predict(ensemble, X[HELD_OUT])
    assert mean.shape == std.shape == (60,)
    assert np.isfinite(mean).all() and np.isfinite(std).all()
  one = np.where(np.arange(100) == 7, np.float32(0.5), nothing)
  mean, std = regressors.predict(
    fit(jax.random.key(1), start(), X[TRAIN], one), X[HELD_OUT]
  )
  np.testing.assert_allclose(mean, 0.5, atol=1e-3)
