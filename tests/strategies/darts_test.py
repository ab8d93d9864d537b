"""The bi-level step against algebra, finite differences and numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nasjax.core.types import InputError
from nasjax.strategies import darts

RNG = np.random.default_rng(0)
A = RNG.normal(size=(5, 3))
B = RNG.normal(size=5)
MOMENTUM, DECAY = 0.9, 0.03


@pytest.fixture(autouse=True)
def double():
  with jax.enable_x64(True):
    yield


def quadratic_train(weights, alphas, batch):
  return 0.5 * jnp.sum((weights - batch * (A @ alphas)) ** 2), batch


def quadratic_valid(weights, alphas, batch):
  return 0.5 * jnp.sum((weights - batch * B) ** 2) + 0.5 * jnp.sum(alphas**2), None


def quadratic_point():
  rng = np.random.default_rng(1)
  return [
    jnp.asarray(rng.normal(size=n)) for n in (5, 3, 5)
  ]  # weights, alphas, velocity


def inner(step_size, velocity):
  return darts.Inner(step_size, velocity, MOMENTUM, DECAY)


def by_hand(weights, alphas, velocity, step_size, train_batch, valid_batch):
  """The hypergradient of the quadratic problem, written out."""
  gradient = weights - train_batch * (A @ alphas)
  moved = weights - step_size * (MOMENTUM * velocity + gradient + DECAY * weights)
  # d2 L_train / da dw = -batch A^T
  return alphas + step_size * train_batch * A.T @ (moved - valid_batch * B)


@pytest.mark.parametrize("difference", [None, darts.DIFFERENCE])
@pytest.mark.parametrize("step_size", [0.0, 0.1, 0.7])
def test_the_quadratic_problem(step_size, difference):
  weights, alphas, velocity = quadratic_point()
  (loss, _), found = darts.unrolled(
    quadratic_train,
    quadratic_valid,
    weights,
    alphas,
    1.5,
    0.5,
    inner(step_size, velocity),
    difference,
  )
  wanted = by_hand(weights, alphas, velocity, step_size, 1.5, 0.5)
  np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)
  assert np.isfinite(loss)


def network(weights, alphas, batch):
  """Two mixed layers without kinks."""
  x, y = batch
  for kernel, mix in zip(weights, jax.nn.softmax(alphas, -1)):
    z = x @ kernel
    x = mix[0] * jax.nn.softplus(z) + mix[1] * jnp.tanh(z) + mix[2] * z
  return jnp.mean((x.sum(-1) - y) ** 2), None


def network_point(seed=0):
  rng = np.random.default_rng(seed)
  weights = [jnp.asarray(0.5 * rng.normal(size=s)) for s in ((4, 6), (6, 5))]
  velocity = [jnp.asarray(0.1 * rng.normal(size=w.shape)) for w in weights]
  alphas = jnp.asarray(rng.normal(size=(2, 3)))
  batches = [
    (jnp.asarray(rng.normal(size=(8, 4))), jnp.asarray(rng.normal(size=8)))
    for _ in range(3)
  ]
  return weights, alphas, velocity, batches


def network_gradient(step_size, difference=None):
  weights, alphas, velocity, (train, valid, _) = network_point()
  return darts.unrolled(
    network,
    network,
    weights,
    alphas,
    train,
    valid,
    inner(step_size, velocity),
    difference,
  )[1]


def test_a_finite_difference_agrees_to_second_order():
  exact = network_gradient(0.3)
  errors = [
    np.abs(network_gradient(0.3, difference) - exact).max()
    for difference in (0.2, 0.1, 0.05)
  ]
  for larger, smaller in zip(errors, errors[1:]):
    assert 3.6 < larger / smaller < 4.4
  np.testing.assert_allclose(network_gradient(0.3, 1e-3), exact, rtol=0, atol=1e-6)


def test_order_two_is_order_one_without_a_step():
  weights, alphas, _, (_, valid, _) = network_point()
  first = darts.first_order(network, weights, alphas, valid)[1]
  np.testing.assert_allclose(network_gradient(0.0), first, rtol=1e-12)
  assert np.abs(network_gradient(0.3) - first).max() > 1e-3


def test_through_one_step_both_ways_agree():
  weights, alphas, velocity, (train, valid, _) = network_point()
  (loss, _), found = darts.unrolled_through(
    network,
    network,
    weights,
    alphas,
    jax.tree.map(lambda part: part[None], train),
    valid,
    inner(0.3, velocity),
  )
  np.testing.assert_allclose(found, network_gradient(0.3), rtol=1e-9)
  assert np.isfinite(loss)


@pytest.mark.parametrize("clip_norm", [0.1, 100.0])
def test_through_a_clipped_step_both_ways_agree(clip_norm):
  """Reverse mode over the clipping, and its derivative written out."""
  weights, alphas, velocity, (train, valid, _) = network_point()
  clipped = inner(0.3, velocity)._replace(clip_norm=clip_norm)
  ours = darts.unrolled(network, network, weights, alphas, train, valid, clipped)
  through = darts.unrolled_through(
    network,
    network,
    weights,
    alphas,
    jax.tree.map(lambda part: part[None], train),
    valid,
    clipped,
  )
  np.testing.assert_allclose(ours[0][0], through[0][0], rtol=1e-12)
  np.testing.assert_allclose(ours[1], through[1], rtol=1e-9)
  is_clipped = np.abs(ours[1] - network_gradient(0.3)).max() > 1e-6
  assert is_clipped == (clip_norm < 1)


def test_the_authors_take_the_factor_of_a_clipped_step_for_a_constant():
  weights, alphas, velocity, (train, valid, _) = network_point()
  clipped = inner(0.3, velocity)._replace(clip_norm=0.1)
  found = darts.unrolled(
    network, network, weights, alphas, train, valid, clipped, difference=1e-4
  )[1]
  gradient = jax.grad(lambda w: network(w, alphas, train)[0])(weights)
  factor = 0.1 / np.sqrt(sum((part**2).sum() for part in gradient))
  assert factor < 1
  moved, _ = clipped.move(weights, velocity, gradient)
  both = darts.derivatives(network).both(moved, alphas, valid)
  _, (direction, explicit) = both
  implicit = darts.derivatives(network).mixed(weights, alphas, train, direction)
  np.testing.assert_allclose(found, explicit - 0.3 * factor * implicit, atol=1e-7)
  exact = darts.unrolled(network, network, weights, alphas, train, valid, clipped)[1]
  assert np.abs(exact - found).max() > 1e-4


def test_half_a_step_moves_the_weights_half_as_far():
  strategy = make("1")
  state = strategy.init(jax.random.key(0))
  whole, half = (strategy.step(state, 1.0, 2.0, part)[0] for part in (1.0, 0.5))
  np.testing.assert_allclose(
    half.weights - state.weights, 0.5 * (whole.weights - state.weights), rtol=1e-9
  )
  np.testing.assert_array_equal(half.alphas, whole.alphas)


def test_through_two_steps_against_differences_of_the_loss():
  weights, alphas, velocity, (first, valid, second) = network_point()
  batches = jax.tree.map(lambda *parts: jnp.stack(parts), first, second)

  @jax.jit
  def gradient(alphas):
    return darts.unrolled_through(
      network, network, weights, alphas, batches, valid, inner(0.3, velocity)
    )

  found = gradient(alphas)[1]
  for place in np.ndindex(*alphas.shape):
    ahead, behind = (gradient(alphas.at[place].add(d))[0][0] for d in (1e-5, -1e-5))
    assert abs((ahead - behind) / 2e-5 - found[place]) < 1e-7


GOLDEN_REPORT = (2.49885911495, 8.93984562273, 2.62563568828)
GOLDEN_CHANGE = (
  (6.066150968e-4, -6.111877991e-4, -6.027843071e-4),
  (-6.161640853e-4, 6.156618876e-4, 6.158830686e-4),
)


def golden_steps():
  """Two exact steps on the smooth network: what the second reports, and alphas."""
  weights, alphas, _, (first, second, third) = network_point(seed=7)
  strategy = darts.darts(
    lambda key: weights,
    lambda key: alphas,
    network,
    network,
    derive=np.asarray,
    num_steps=2,
    steps_per_epoch=1,
  )
  state = strategy.init(jax.random.key(0))
  state, _ = strategy.step(state, first, second)
  state, info = strategy.step(state, second, third)
  found = info.train_loss, info.valid_loss, info.gradient_norm
  return np.array(found), strategy.derive(state) - alphas


def test_golden_steps():
  """Every default counts; another number here is another method: say so in the commit.

  The change of alphas is Adam's: the first step's has the sign of the gradient alone,
  the second's the ratio of both gradients.
  """
  reported, change = golden_steps()
  np.testing.assert_allclose(reported, GOLDEN_REPORT, rtol=1e-9)
  np.testing.assert_allclose(change, GOLDEN_CHANGE, rtol=1e-7)


def make(order="2", **options):
  return darts.darts(
    lambda key: jax.random.normal(key, (5,)),
    lambda key: jax.random.normal(key, (3,)),
    quadratic_train,
    quadratic_valid,
    derive=lambda alphas: np.argsort(alphas),
    order=order,
    num_steps=4,
    steps_per_epoch=2,
    momentum=MOMENTUM,
    weight_decay=DECAY,
    **options,
  )


def test_two_steps_against_numpy():
  """Cosine by epoch, clipping, momentum, decay; Adam with coupled decay on alphas."""
  options = dict(
    learning_rate=0.5,
    final_learning_rate=0.1,
    clip_norm=1.0,
    alpha_learning_rate=0.02,
    alpha_weight_decay=0.3,
  )
  strategy = make(**options)
  state = strategy.init(jax.random.key(0))
  weights, alphas = np.array(state.weights), np.array(state.alphas)
  velocity, first, second = np.zeros(5), np.zeros(3), np.zeros(3)
  for number, rate in enumerate((0.5, 0.5, 0.3)):
    train, valid = 1.0 + number, 2.0 - number
    state, info = jax.jit(strategy.step)(state, train, valid)
    gradient = by_hand(weights, alphas, velocity, rate, train, valid) + 0.3 * alphas
    first = 0.5 * first + 0.5 * gradient
    second = 0.999 * second + 0.001 * gradient**2
    t = number + 1
    mean, square = first / (1 - 0.5**t), second / (1 - 0.999**t)
    alphas = alphas - 0.02 * mean / (np.sqrt(square) + 1e-8)
    gradient = weights - train * (A @ alphas)
    norm = np.linalg.norm(gradient)
    np.testing.assert_allclose(info.gradient_norm, norm)
    gradient = gradient * min(1.0, 1.0 / norm) + DECAY * weights
    velocity = MOMENTUM * velocity + gradient
    weights = weights - rate * velocity
    np.testing.assert_allclose(state.weights, weights, rtol=1e-6)
    np.testing.assert_allclose(state.alphas, alphas, rtol=1e-6)
    assert info.auxiliary == train and info.valid_auxiliary is None
  np.testing.assert_array_equal(strategy.derive(state), np.argsort(alphas))


@pytest.mark.parametrize("order", darts.ORDERS)
def test_a_step_compiles_once_and_equals_its_plain_run(order):
  strategy = make(order)
  step, state = jax.jit(strategy.step), strategy.init(jax.random.key(1))
  for _ in range(2):
    plain = strategy.step(state, 1.0, 2.0)[0]
    state = step(state, 1.0, 2.0)[0]
    for left, right in zip(jax.tree.leaves(plain), jax.tree.leaves(state)):
      np.testing.assert_allclose(left, right, rtol=1e-6)
  assert step._cache_size() == 1


def test_it_solves_the_problem_that_order_one_does_not():
  """With L_valid free of alphas' own term order 1 has no gradient at all."""

  def valid(weights, alphas, batch):
    return 0.5 * jnp.sum((weights - batch * A @ jnp.arange(3.0)) ** 2), None

  def final(order):
    strategy = darts.darts(
      lambda key: jnp.zeros(5),
      lambda key: jnp.zeros(3),
      quadratic_train,
      valid,
      derive=np.asarray,
      order=order,
      num_steps=6000,
      learning_rate=0.1,
      final_learning_rate=0.1,
      weight_decay=0.0,
      alpha_learning_rate=0.02,
      alpha_weight_decay=0.0,
    )

    def body(state, _):
      return strategy.step(state, 1.0, 1.0)[0], None

    run = functools.partial(jax.lax.scan, body, length=6000)
    return strategy.derive(jax.jit(run)(strategy.init(jax.random.key(0)))[0])

  np.testing.assert_allclose(final("2"), np.arange(3.0), atol=0.05)
  np.testing.assert_allclose(final("1"), np.zeros(3), atol=1e-12)


def test_alphas_follow_optax_adam_with_decay():
  """The coupled decay is not AdamW's: it passes through the moments."""
  strategy = make("1", alpha_weight_decay=0.5)
  state = strategy.init(jax.random.key(0))
  moved = strategy.step(state, 1.0, 1.0)[0]
  decoupled = optax.adamw(3e-4, 0.5, 0.999, weight_decay=0.5)
  update, _ = decoupled.update(state.alphas, decoupled.init(state.alphas), state.alphas)
  assert np.abs(moved.alphas - (state.alphas + update)).max() > 1e-5


def test_the_first_step_that_is_not_finite_is_remembered_as_it_was():
  steps = [{"a": jnp.arange(3.0) + number, "b": jnp.ones(2)} for number in range(5)]
  steps[2]["b"] = jnp.array([1.0, jnp.inf])
  steps[3]["a"] = jnp.full(3, jnp.nan)  # and what comes of it changes nothing
  seen, found = darts.watched(steps[0]), []
  for number, alphas in enumerate(steps):
    seen = jax.jit(darts.watch)(seen, alphas, number)
    found.append(seen)
  assert [int(each.step) for each in found] == [-1, -1, 2, 2, 2]
  for each, number in zip(found, (0, 1, 2, 2, 2)):
    jax.tree.map(np.testing.assert_array_equal, each.alphas, steps[number])


@pytest.mark.parametrize(
  "options, match",
  [
    ({"order": "3"}, "order must be one of 1, 2, finite_difference"),
    ({"inner_steps": 0}, "inner_steps must be 1, or more at order 2"),
    ({"order": "1", "inner_steps": 2}, "inner_steps must be 1, or more at order 2"),
  ],
)
def test_what_cannot_run_is_refused(options, match):
  with pytest.raises(InputError, match=match):
    make(**options)
