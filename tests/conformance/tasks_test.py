"""What every task keeps, run over the table of all of them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nasjax.training.losses import TASKS, get_task


class Case(NamedTuple):
  """What a task is tried on.

  Attributes:
    targets: `[N]`.
    perfect: outputs `[N, C]` that are right.
    classes: the targets that there are; none without classes.
  """

  targets: Any
  perfect: Any
  classes: tuple[int, ...] = ()


N = 7
LABELS = np.arange(N, dtype=np.int32)
VALUES = np.linspace(-1.5, 2.0, N, dtype=np.float32)
EYES = 40 * np.eye(3, dtype=np.float32) - 20
MEMBERS = {
  "binary": Case(LABELS % 2, EYES[LABELS % 2, 1:2], (0, 1)),
  "multiclass": Case(LABELS % 3, EYES[LABELS % 3], (0, 1, 2)),
  "regression": Case(VALUES, VALUES[:, None]),
}
CLASSIFIERS = [name for name, case in MEMBERS.items() if case.classes]
# Finite float32 all of them, and so are the gradients there.
SIZES = (0.0, 1.0, 1e4, 1e30)


def outputs_of(name, size):
  """Outputs `[N, C]` of both signs, as large as that."""
  shape = MEMBERS[name].perfect.shape
  signs = np.random.default_rng(0).choice([-1.0, 0.3, 1.0], shape)
  return jnp.float32(size * signs)


def test_every_task_is_in_the_table():
  assert set(MEMBERS) == set(TASKS)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", MEMBERS)
def test_a_loss_is_one_number_an_example_and_not_negative(name, size):
  task, outputs = get_task(name, 0.2), outputs_of(name, size)
  for function in (task.loss, task.train_loss):
    loss = function(outputs, MEMBERS[name].targets)
    assert loss.shape == (N,) and loss.dtype == jnp.float32
    assert bool((loss >= 0).all())
  metric = task.metric(outputs, MEMBERS[name].targets)
  assert metric.shape == () and metric.dtype == jnp.float32 and float(metric) <= 1


@pytest.mark.parametrize("name", MEMBERS)
def test_perfect_outputs_have_metric_one_and_the_least_loss(name):
  task, case = get_task(name), MEMBERS[name]
  assert float(task.metric(case.perfect, case.targets)) == 1.0
  np.testing.assert_allclose(task.loss(case.perfect, case.targets), 0.0, atol=1e-6)
  assert float(task.metric(-case.perfect, case.targets)) < 1.0
  assert float(task.loss(-case.perfect, case.targets).mean()) > 1.0


@pytest.mark.parametrize("name", MEMBERS)
def test_jit_equals_no_jit(name):
  task, targets = get_task(name, 0.2), MEMBERS[name].targets
  for function in (task.loss, task.train_loss, task.metric):
    for size in (1.0, 1e6):
      outputs = outputs_of(name, size)
      eager, compiled = function(outputs, targets), jax.jit(function)(outputs, targets)
      assert eager.dtype == compiled.dtype
      np.testing.assert_allclose(compiled, eager, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("name", MEMBERS)
def test_gradients_are_finite_and_downhill_at_extreme_outputs(name, smoothing):
  task, targets = get_task(name, smoothing), MEMBERS[name].targets
  slope_of = jax.jit(jax.grad(lambda z: task.train_loss(z, targets).sum()))
  for size in SIZES:
    slope = slope_of(outputs_of(name, size))
    assert bool(jnp.isfinite(slope).all()) and bool((slope != 0).any())
  start = outputs_of(name, 1.0)
  lower = task.train_loss(start - 0.1 * slope_of(start), targets).sum()
  assert float(lower) < float(task.train_loss(start, targets).sum())


@pytest.mark.parametrize("name", MEMBERS)
def test_an_example_is_judged_by_itself(name):
  task, case = get_task(name, 0.2), MEMBERS[name]
  outputs = outputs_of(name, 1.0)
  for function in (task.loss, task.train_loss):
    alone = [function(outputs[i : i + 1], case.targets[i : i + 1]) for i in range(N)]
    together = function(outputs, case.targets)
    np.testing.assert_allclose(together, jnp.concatenate(alone), rtol=1e-6)
  turned = task.metric(outputs[::-1], case.targets[::-1])
  np.testing.assert_allclose(turned, task.metric(outputs, case.targets), rtol=1e-6)


@pytest.mark.parametrize("name", MEMBERS)
def test_without_smoothing_the_train_loss_is_the_loss(name):
  task, outputs = get_task(name), outputs_of(name, 1.0)
  np.testing.assert_array_equal(
    task.train_loss(outputs, MEMBERS[name].targets),
    task.loss(outputs, MEMBERS[name].targets),
  )


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_smoothing_mixes_in_the_loss_of_every_class(name):
  case, outputs = MEMBERS[name], outputs_of(name, 2.0)
  task = get_task(name, 0.2)
  assert task.mean_loss is not None
  each = [task.loss(outputs, jnp.full(N, k, jnp.int32)) for k in case.classes]
  mean = jnp.stack(each).mean(0)
  np.testing.assert_allclose(task.mean_loss(outputs), mean, rtol=1e-5)
  np.testing.assert_allclose(
    task.train_loss(outputs, case.targets),
    0.8 * task.loss(outputs, case.targets) + 0.2 * mean,
    rtol=1e-5,
  )
