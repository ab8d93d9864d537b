import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from nasjax.core.types import InputError
from nasjax.predictors import curves
from nasjax.runtime import CompileCounter

pytestmark = pytest.mark.usefixtures("quick_compile")

NAN = np.nan
P, K, T = 400, 12, 24
# Three children a family: asymptote, rise, shape parameters.
CHILDREN = {
  "pow3": [(0.95, 0.6, 0.4), (0.8, 0.3, 0.9), (0.99, 0.2, 1.7)],
  "exp3": [(0.95, 0.6, 0.08), (0.8, 0.3, 0.3), (0.99, 0.2, 0.9)],
  "weibull": [(0.95, 0.6, 0.4, 0.6), (0.8, 0.3, 0.1, 1.3), (0.99, 0.5, 0.5, 1.0)],
  "mmf": [(0.95, 0.6, 0.3, 1.2), (0.8, 0.3, 2.0, 0.8), (0.99, 0.5, 0.05, 2.2)],
  "hill3": [(0.95, 0.95, 0.5, 1.1), (0.8, 0.8, 3.0, 0.6), (0.99, 0.99, 0.2, 2.0)],
  "ilog2": [(0.95, 0.6), (0.8, 0.3), (0.99, 0.2)],
}
TRUTH = {  # As Domhan et al. and the module write them, in numpy.
  "pow3": lambda x, c, a, alpha: c - a * x**-alpha,
  "exp3": lambda x, c, a, r: c - a * np.exp(-r * (x - 1)),
  "weibull": lambda x, c, a, r, delta: c - a * np.exp(-r * (x**delta - 1)),
  "mmf": lambda x, c, a, v, delta: c - a * (1 + v) / (1 + v * x**delta),
  "hill3": lambda x, c, _, v, eta: c * x**eta / (1 / v + x**eta),
  "ilog2": lambda x, c, a: c - a * np.log(2) / np.log(x + 1),
}


def curves_of(family, epochs=T):
  x = np.arange(1, epochs + 1)
  return np.array([TRUTH[family](x, *child) for child in CHILDREN[family]])


def rising(num=P, noise=0.005, seed=0):
  """Noisy curves `[num, K]` that rise to plateaus, and their true values at T."""
  rng, x = np.random.default_rng(seed), np.arange(1, T + 1)
  c, rise = rng.uniform(0.6, 0.98, (num, 1)), rng.uniform(0.02, 0.5, (num, 1))
  power = x ** -rng.uniform(0.3, 1.5, (num, 1))
  decay = np.exp(-rng.uniform(0.05, 0.8, (num, 1)) * (x - 1))
  true = c - rise * np.where(rng.random((num, 1)) < 0.5, power, decay)
  noisy = true + rng.normal(0, noise, true.shape)
  return noisy[:, :K].astype(np.float32), true[:, -1]


def extrapolate(rows, target=T, **options):
  """Pads to one shape: NaN children and epochs, so that all tests share a program."""
  rows = np.asarray(rows, np.float32)
  padded = np.full((P, K), NAN, np.float32)
  padded[: rows.shape[0], : rows.shape[1]] = rows
  found = curves.extrapolate(padded, target, **options)
  return type(found)(*(np.asarray(values)[: len(rows)] for values in found))


@pytest.mark.parametrize("family", curves.FAMILIES)
def test_a_family_finds_its_own_curve_from_the_first_half(family):
  full = curves_of(family)
  found = extrapolate(full[:, :K], T, families=(family,))
  np.testing.assert_allclose(found.predicted, full[:, -1], atol=1e-4)
  assert (found.residual_std < 1e-5).all()


@pytest.mark.parametrize("family", curves.FAMILIES)
def test_all_families_together_come_near(family):
  full = curves_of(family)
  found = extrapolate(full[:, :K], T)
  error = np.abs(found.predicted - full[:, -1])
  assert (error < 0.02).all()
  assert error.mean() < np.abs(full[:, K - 1] - full[:, -1]).mean()


def test_a_noisy_fit_is_that_of_scipy():
  noisy, _ = rising(num=20)
  expected, spread = [], []
  for curve in noisy.astype(float):
    x = np.arange(1, K + 1)
    best = None
    for alpha in (0.1, 0.5, 2.0):
      start, bounds = (0.8, 0.3, alpha), ((-0.02, -1.04, 0.05), (1.02, 1.04, 5.0))
      found, _ = scipy.optimize.curve_fit(
        TRUTH["pow3"], x, curve, start, bounds=bounds, ftol=1e-12, xtol=1e-12
      )
      rss = np.square(TRUTH["pow3"](x, *found) - curve).sum()
      if best is None or rss < best[0]:
        best = rss, TRUTH["pow3"](T, *found)
    spread.append(np.sqrt(best[0] / K))
    expected.append(best[1])
  found = extrapolate(noisy, T, families=("pow3",))
  np.testing.assert_allclose(found.predicted, expected, atol=5e-4)
  np.testing.assert_allclose(found.residual_std, spread, rtol=1e-3)


@pytest.mark.parametrize("epochs", [3, 6, K])
def test_it_is_nearer_than_the_last_value(epochs):
  noisy, true = rising()
  noisy = noisy[:, :epochs]
  error = np.abs(extrapolate(noisy, T).predicted - true)
  assert error.mean() < 0.75 * np.abs(noisy[:, -1] - true).mean()


def test_the_weights_are_those_of_equation_8():
  noisy, _ = rising(num=5)
  found = extrapolate(noisy, T, noise=0.01)
  np.testing.assert_allclose(found.weights.sum(1), 1, rtol=1e-5)
  log_weights = []
  for name, family in curves.FAMILIES.items():
    alone = extrapolate(noisy, T, families=(name,))
    variance = np.square(alone.residual_std) + 0.01**2
    log_weights.append(-K / 2 * np.log(variance))
    log_weights[-1] -= family.num_parameters / 2 * np.log(K)
  expected = np.exp(np.array(log_weights).T)
  expected /= expected.sum(1, keepdims=True)
  np.testing.assert_allclose(found.weights, expected, atol=1e-3)
  mean = (found.weights * found.by_family).sum(1)
  np.testing.assert_allclose(found.predicted, mean, rtol=1e-5)


@pytest.mark.parametrize("level", [0.0, 0.1, 0.73, 1.0])
def test_a_flat_curve_stays_where_it_is(level):
  found = extrapolate(np.full((1, 6), level), 100)
  np.testing.assert_allclose(found.predicted, level, atol=1e-3)
  assert found.residual_std[0] < 1e-3


def test_a_falling_curve_is_not_said_to_rise():
  found = extrapolate(np.array([[0.8, 0.7, 0.65, 0.62, 0.6]]), 12)
  assert 0.45 < found.predicted[0] < 0.62


def test_predictions_are_accuracies():
  straight = np.array([[0.1, 0.3, 0.5, 0.7, 0.9], [0.9, 0.7, 0.5, 0.3, 0.1]])
  found = extrapolate(straight, 1000)
  for values in (found.predicted, found.by_family):
    assert ((values >= 0) & (values <= 1)).all()


def test_epochs_that_were_not_run_are_left_out():
  noisy, _ = rising(num=6)
  masked = np.concatenate([noisy[:, :5], np.full((6, K - 5), NAN)], 1)
  masked[0, 5] = np.inf
  families = ("pow3", "ilog2")
  for with_mask, short in zip(
    curves.extrapolate(masked, T, families=families),
    curves.extrapolate(noisy[:, :5], T, families=families),
  ):
    np.testing.assert_allclose(with_mask, short, atol=2e-4)


def test_few_epochs_use_the_families_that_they_can_fit():
  rows = np.full((5, 5), NAN)
  for n in range(5):
    rows[n, :n] = [0.5, 0.6, 0.65, 0.68][:n]
  found = extrapolate(rows, 9)
  used = [
    [name for name, value in zip(curves.FAMILIES, row) if np.isfinite(value)]
    for row in found.by_family
  ]
  three = ["pow3", "exp3", "hill3", "ilog2"]
  assert used == [[], [], ["ilog2"], three, list(curves.FAMILIES)]
  assert np.isnan(found.predicted).tolist() == [True] + [False] * 4
  assert found.predicted[1] == 0.5
  assert np.isnan(found.residual_std).tolist() == [True, True] + [False] * 3
  assert (found.weights[:2] == 0).all()
  # Through two points: 0.5 = c - a, 0.6 = c - a log 2 / log 3.
  rise = 0.1 / (1 - np.log(2) / np.log(3))
  expected = 0.5 + rise - rise * np.log(2) / np.log(10)
  np.testing.assert_allclose(found.predicted[2], expected, atol=1e-5)
  # With the one family that three epochs cannot fit, the last value is left.
  alone = extrapolate(rows, 9, families=("mmf",))
  np.testing.assert_allclose(alone.predicted[3], 0.65, rtol=1e-6)


def test_one_epoch_gives_the_last_value():
  rows, families = np.array([[0.4], [NAN], [1.5]]), ("hill3", "ilog2")
  found = curves.extrapolate(rows, T, families=families)
  np.testing.assert_array_equal(found.predicted, np.float32([0.4, NAN, 1.0]))


def test_jit_and_vmap_change_nothing():
  noisy, _ = rising(num=6)
  families = ("hill3",)

  def predicted(rows, target):
    found = curves.extrapolate(rows, target, families=families, iterations=2)
    return found.predicted

  plain = predicted(noisy, T)
  np.testing.assert_allclose(jax.jit(predicted)(noisy, T), plain, atol=1e-5)
  pairs = jnp.asarray(noisy).reshape(3, 2, K)
  each = jax.vmap(predicted, (0, None))(pairs, T)
  np.testing.assert_allclose(each.reshape(6), plain, atol=1e-5)
  with jax.disable_jit():
    np.testing.assert_allclose(predicted(noisy[:2], T), plain[:2], atol=1e-5)


def test_permuting_the_population_permutes_the_predictions():
  noisy, _ = rising(num=8)
  order = np.random.default_rng(0).permutation(8)
  plain, permuted = (extrapolate(rows) for rows in (noisy, noisy[order]))
  np.testing.assert_allclose(permuted.predicted, plain.predicted[order], atol=1e-5)


def test_compiles_once():
  curves.extrapolate(rising()[0], T, noise=0.01)
  with CompileCounter() as again:
    curves.extrapolate(rising(seed=1)[0], 50, noise=0.02)
  assert again.count == 0


@pytest.mark.parametrize(
  ("arguments", "options", "message"),
  [
    ((np.zeros(5), 9), {}, r"must be \[P, k\]"),
    ((np.zeros((5, 0)), 9), {}, r"must be \[P, k\]"),
    ((np.zeros((5, 3)), 0), {}, "1 or later, got 0"),
    ((np.zeros((5, 3)), 9), {"families": ("pow9",)}, "pow3, .*got .*pow9"),
    ((np.zeros((5, 3)), 9), {"families": ()}, "pow3, .*got"),
    ((np.zeros((5, 3)), 9), {"noise": 0.0}, "noise"),
    ((np.zeros((5, 3)), 9), {"iterations": 0}, "iterations"),
  ],
)
def test_mistakes_are_said_in_one_line(arguments, options, message):
  with pytest.raises(InputError, match=message) as caught:
    curves.extrapolate(*arguments, **options)
  assert "\n" not in str(caught.value)
