import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nasjax.core.types import InputError
from nasjax.training import step
from nasjax.training.losses import TASKS, get_task

HYPER = step.Hyper(0.05, 100)


def linear(weights, x, seed):
  del seed
  return x @ weights["w"]


def train(apply, w0, batches, data, hyper):
  """A child's epochs, as `training.population` runs them: book and kept weights."""
  task = TASKS["regression"]
  weights = {"w": np.asarray(w0, np.float32)}
  epoch = jax.jit(step.make_epoch(apply, task))
  num_epochs, num_steps, _ = batches.shape
  schedule = hyper.schedule(num_epochs, num_steps)
  book, kept = step.EarlyStopping(1, num_epochs, hyper), weights
  state = step.start(weights)
  for e in range(num_epochs):
    if not book.active[0]:
      break
    now = jax.tree.map(lambda sizes, e=e: sizes[e], schedule)
    seeds = np.zeros(num_steps, np.uint32)
    state, losses, outputs = epoch(state, seeds, batches[e], now, data)
    judged = step.judge(task, losses, outputs, data.y_valid)
    if book.record(np.array([0]), judged)[0]:
      kept = jax.tree.map(np.asarray, state.weights)
  return book, kept


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
  book, kept = train(linear, w0, batches, data, HYPER)
  w, losses = numpy_adam(w0.astype(float), batches, data, 0.05)
  np.testing.assert_allclose(book.valid_loss[0], losses, rtol=1e-4)
  assert np.argmin(losses) == 4  # still falling, so the last weights are the best
  np.testing.assert_allclose(kept["w"], w, atol=1e-5)
  total = np.var(np.asarray(data.y_valid))
  np.testing.assert_allclose(book.curve[0], 1 - np.array(losses) / total, atol=1e-4)


def test_the_rate_falls_linearly_to_its_last_value():
  schedule = step.Hyper(0.1, 9, max_epochs=2, final_rate=0.0).schedule(4, 5)
  t = np.arange(1, 11)
  rate = schedule.first.reshape(-1)[:10] * (1 - 0.9**t)
  np.testing.assert_allclose(rate, 0.1 * (1 - (t - 1) / 10), rtol=1e-5)
  root = schedule.second.reshape(-1)[:10]
  np.testing.assert_allclose(root, 1 / np.sqrt(1 - 0.999**t), rtol=1e-5)


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

  def apply(weights, x, seed):
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
  hyper = step.Hyper(1.0, patience, **options)
  return train(scripted(losses), np.zeros(1), batches, data, hyper)


def test_early_stopping_restores_the_best_epoch():
  book, kept = run_script([5.0, 3.0, 4.0, 3.5, 3.2, 1.0], patience=3)
  assert book.epochs_run[0] == 5  # three epochs without less than 3.0
  np.testing.assert_allclose(book.valid_loss[0, :5], [5, 3, 4, 3.5, 3.2], rtol=1e-5)
  assert np.isnan(book.valid_loss[0, 5]) and np.isnan(book.curve[0, 5])
  assert book.best_epoch[0] == 2
  np.testing.assert_allclose(kept["w"], -2.0, atol=1e-4)  # after epoch 2
  book, kept = run_script([5.0, 3.0, 4.0, 3.5, 3.2, 1.0], patience=4)
  assert book.epochs_run[0] == 6
  np.testing.assert_allclose(kept["w"], -6.0, atol=1e-2)


def test_the_last_weights_and_fewer_epochs_on_request():
  losses = [5.0, 3.0, 4.0, 3.5]
  book, kept = run_script(losses, patience=9, max_epochs=3, restore_best=False)
  assert book.epochs_run[0] == 3
  np.testing.assert_allclose(kept["w"], -3.0, atol=1e-2)


def test_divergence_stops_and_is_told():
  book, _ = run_script([5.0, np.inf, 1.0, 1.0], patience=3)
  assert book.diverged[0] and book.epochs_run[0] == 2
  assert not run_script([5.0, 4.0], patience=3)[0].diverged[0]


def test_the_metric_may_decide_and_the_loss_breaks_its_ties():
  book = step.EarlyStopping(2, 4, step.Hyper(1.0, 2, monitor_metric=True))
  metrics = [(0.5, 0.9), (0.7, 0.9), (0.7, 0.9)]
  losses = [(1.0, 1.0), (1.0, 1.0), (0.9, 1.0)]
  better = [
    book.record(np.arange(2), step.EpochResult(np.zeros(2), *map(np.array, each)))
    for each in zip(losses, metrics)
  ]
  assert np.stack(better).tolist() == [[True, True], [True, False], [True, False]]
  assert book.best_epoch.tolist() == [3, 1] and book.active.tolist() == [True, False]
  book.record(np.array([0]), step.EpochResult([0.0], [1.0], [0.1]))  # the other is done
  assert book.epochs_run.tolist() == [4, 3] and not book.active.any()


def test_large_validation_sets_are_cut_into_pieces():
  x = jnp.arange(step.WHOLE_PASS_ROWS + 7.0)[:, None]
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
  p = np.exp(np.asarray(outputs)) / np.exp(np.asarray(outputs)).sum(1, keepdims=True)
  cross_entropy, pull = jax.vjp(
    lambda z: TASKS["multiclass"].loss(z, jnp.array([1, 1])), outputs
  )
  np.testing.assert_allclose(cross_entropy, -np.log(p[:, 1]), rtol=1e-5)
  np.testing.assert_allclose(pull(jnp.ones(2))[0], p - [0, 1], atol=1e-6)
  assert float(TASKS["multiclass"].metric(outputs, jnp.array([1, 1]))) == 0.5
  with pytest.raises(InputError, match="unknown task"):
    get_task("ranking")


@pytest.mark.parametrize("name, classes", [("binary", 1), ("multiclass", 3)])
def test_smoothed_labels_are_least_loss_at_the_smoothed_probabilities(name, classes):
  task = get_task(name, label_smoothing=0.3)
  if classes == 1:  # log odds of 1 - s + s / 2
    best = jnp.log(jnp.array([[0.85 / 0.15]]))
  else:
    best = jnp.log(jnp.array([[0.1, 0.8, 0.1]]))
  y = jnp.array([1])
  slope = jax.grad(lambda z: task.train_loss(z, y).sum())(best)
  np.testing.assert_allclose(slope, 0.0, atol=1e-6)
  # What is reported is the loss against the label itself.
  np.testing.assert_allclose(task.loss(best, y), get_task(name).loss(best, y))
  np.testing.assert_allclose(
    get_task(name).train_loss(best, y), get_task(name).loss(best, y)
  )


def test_large_logits_cancel_exactly():
  equal, y = jnp.full((2, 3), 1e8), jnp.array([0, 2])
  task = TASKS["multiclass"]
  np.testing.assert_allclose(task.loss(equal, y), np.log(3), rtol=1e-6)
  np.testing.assert_allclose(task.mean_loss(equal), np.log(3), rtol=1e-6)


def test_regression_has_no_labels_to_smooth():
  z, y = jnp.array([[0.5]]), jnp.array([2.0])
  smoothed = get_task("regression", label_smoothing=0.3).train_loss(z, y)
  assert float(smoothed[0]) == 2.25
  with pytest.raises(InputError, match="label smoothing"):
    get_task("binary", label_smoothing=1.0)
