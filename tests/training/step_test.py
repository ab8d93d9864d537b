import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nasjax.core.types import InputError
from nasjax.training import step
from nasjax.training.losses import TASKS, get_task

HYPER = step.Hyper(0.05, 100).as_arrays()


def linear(weights, x, key):
  del key
  return x @ weights["w"]


def problem(seed=0, rows=24):
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(rows, 3)).astype(np.float32)
  y = (x @ np.array([1.0, -2.0, 0.5]) + 0.1 * rng.normal(size=rows)).astype(np.float32)
  return step.DeviceData(*map(jnp.asarray, (x[:16], y[:16], x[16:], y[16:])))


def numpy_adam(w, batches, data, learning_rate):
  """Adam on the mean squared error, in float64, from the paper's algorithm 1."""
  x, y = np.asarray(data.x_train, float), np.asarray(data.y_train, float)
  m = v = np.zeros_like(w)
  t, history = 0, []
  for epoch in np.asarray(batches):
    for rows in epoch:
      residual = x[rows] @ w - y[rows, None]
      g = 2 * x[rows].T @ residual / len(rows)
      t += 1
      m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
      m_hat, v_hat = m / (1 - 0.9**t), v / (1 - 0.999**t)
      w = w - learning_rate * m_hat / (np.sqrt(v_hat) + step.ADAM_EPSILON)
    residual = np.asarray(data.x_valid) @ w - np.asarray(data.y_valid)[:, None]
    history.append(float((residual**2).mean()))
  return w, history


def test_training_equals_numpy():
  data, w0 = problem(), np.zeros((3, 1), np.float32)
  batches = step.epoch_batches(jax.random.key(0), 16, 4, 5)
  train = jax.jit(step.make_train(linear, TASKS["regression"]))
  result = train({"w": w0}, jax.random.key(1), batches, data, HYPER)
  w, losses = numpy_adam(w0.astype(float), batches, data, 0.05)
  np.testing.assert_allclose(result.valid_loss, losses, rtol=1e-4)
  assert np.argmin(losses) == 4  # still falling, so the last weights are the best
  np.testing.assert_allclose(result.weights["w"], w, atol=1e-5)
  total = np.var(np.asarray(data.y_valid))
  np.testing.assert_allclose(result.curve, 1 - np.array(losses) / total, atol=1e-4)


def test_batches_cover_distinct_rows_and_do_not_depend_on_the_number_of_epochs():
  few = np.asarray(step.epoch_batches(jax.random.key(0), 10, 3, 2))
  many = np.asarray(step.epoch_batches(jax.random.key(0), 10, 3, 4))
  assert few.shape == (2, 3, 3) and (many[:2] == few).all()
  for epoch in many:
    assert len(np.unique(epoch)) == 9
  assert (many[0] != many[1]).any()
  assert step.epoch_batches(jax.random.key(0), 5, 32, 1).shape == (1, 1, 5)


def scripted(losses):
  """A network whose validation loss follows a script: weights count the epochs."""
  script = jnp.asarray(losses, jnp.float32)

  def apply(weights, x, key):
    # one step an epoch, whose gradient is 1: Adam moves by the learning rate, 1
    epoch = jnp.round(-weights["w"][0]).astype(jnp.int32)
    value = jnp.where(x[:, :1] > 0, jnp.sqrt(script[jnp.maximum(epoch - 1, 0)]), 0.0)
    return value + jnp.where(x[:, :1] > 0, 0.0, weights["w"][0])

  return apply


def run_script(losses, patience, **options):
  # training rows (x = 0): output w, target chosen so that the gradient is positive
  data = step.DeviceData(
    jnp.zeros((2, 1)), jnp.full(2, -1000.0), jnp.ones((2, 1)), jnp.zeros(2)
  )
  batches = step.epoch_batches(jax.random.key(0), 2, 2, len(losses))
  train = jax.jit(step.make_train(scripted(losses), TASKS["regression"]))
  hyper = step.Hyper(1.0, patience, **options).as_arrays()
  return train({"w": jnp.zeros(1)}, jax.random.key(0), batches, data, hyper)


def test_early_stopping_restores_the_best_epoch():
  result = run_script([5.0, 3.0, 4.0, 3.5, 3.2, 1.0], patience=3)
  assert int(result.epochs_run) == 5  # three epochs without less than 3.0
  np.testing.assert_allclose(result.valid_loss[:5], [5, 3, 4, 3.5, 3.2], rtol=1e-5)
  assert np.isnan(result.valid_loss[5]) and np.isnan(result.curve[5])
  np.testing.assert_allclose(result.weights["w"], -2.0, atol=1e-4)  # after epoch 2
  patient = run_script([5.0, 3.0, 4.0, 3.5, 3.2, 1.0], patience=4)
  assert int(patient.epochs_run) == 6
  np.testing.assert_allclose(patient.weights["w"], -6.0, atol=1e-2)


def test_the_last_weights_and_fewer_epochs_on_request():
  losses = [5.0, 3.0, 4.0, 3.5]
  result = run_script(losses, patience=9, max_epochs=3, restore_best=False)
  assert int(result.epochs_run) == 3
  np.testing.assert_allclose(result.weights["w"], -3.0, atol=1e-2)


def test_divergence_stops_and_is_told():
  result = run_script([5.0, np.inf, 1.0, 1.0], patience=3)
  assert bool(result.diverged) and int(result.epochs_run) == 2
  assert not bool(run_script([5.0, 4.0], patience=3).diverged)


def test_large_validation_sets_are_cut_into_pieces():
  x = jnp.arange(step._WHOLE_PASS_ROWS + 7.0)[:, None]
  np.testing.assert_allclose(step.predict(lambda part: part * 2, x), x * 2)


def test_scores_of_a_curve():
  curve = jnp.array([0.5, 0.8, 0.6, jnp.nan])
  assert float(step.epoch_weighted(curve)) == pytest.approx((0.5 + 1.6 + 1.8) / 6)
  assert float(step.best_epoch(curve)) == pytest.approx(0.8)
  assert float(step.last_epoch(curve)) == pytest.approx(0.6)
  one = jnp.array([0.4, jnp.nan])
  nothing = jnp.full(3, jnp.nan)
  for score in step.SCORES.values():
    assert float(score(one)) == pytest.approx(0.4)
    assert np.isnan(score(nothing))
    both = score(jnp.stack([curve, curve[::-1]]))
    assert both.shape == (2,)


def test_tasks_by_hand():
  logits = jnp.array([[2.0], [-1.0], [0.5]])
  y = jnp.array([1, 0, 0])
  p = 1 / (1 + np.exp(-np.array([2.0, -1.0, 0.5])))
  expected = -np.log(np.where(np.array(y) == 1, p, 1 - p))
  np.testing.assert_allclose(TASKS["binary"].loss(logits, y), expected, rtol=1e-5)
  assert float(TASKS["binary"].metric(logits, y)) == pytest.approx(2 / 3)
  targets = jnp.array([1.0, 2.0, 3.0])
  assert float(TASKS["regression"].metric(targets[:, None], targets)) == 1.0
  assert float(TASKS["regression"].metric(jnp.full((3, 1), 2.0), targets)) == 0.0
  outputs = jnp.array([[1.0, 2.0], [3.0, 0.0]])
  assert float(TASKS["multiclass"].metric(outputs, jnp.array([1, 1]))) == 0.5
  with pytest.raises(InputError, match="unknown task"):
    get_task("ranking")
