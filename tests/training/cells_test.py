"""Rows of a search's steps, running statistics, and a derived network that learns."""

import jax
import jax.numpy as jnp
import numpy as np

from nasjax.data.base import Split
from nasjax.networks import cell_cnn
from nasjax.networks.ops import Norms
from nasjax.spaces.conv_cell import ConvCell
from nasjax.training import cells
from nasjax.training.losses import get_task


def test_rows_of_an_epoch():
  train, valid = cells.search_rows(jax.random.key(0), 3, 50, 30, 8)
  assert train.shape == valid.shape == (6, 8)
  assert len(np.unique(train)) == 48 and train.max() < 50  # no row twice in an epoch
  for rows in np.asarray(valid):
    assert len(set(rows.tolist())) == 8 and rows.max() < 30
  assert len(np.unique(valid)) > 20
  other, _ = cells.search_rows(jax.random.key(0), 4, 50, 30, 8)
  assert (np.asarray(other) != np.asarray(train)).any()
  again, _ = cells.search_rows(jax.random.key(0), 3, 50, 30, 8)
  np.testing.assert_array_equal(again, train)
  few, _ = cells.search_rows(jax.random.key(0), 0, 50, 5, 8)
  assert few.shape == (10, 5)  # as large as the smaller set


def test_running_statistics_follow_the_batches():
  x = jnp.asarray(
    np.random.default_rng(0).normal(3.0, 2.0, (2, 4, 4, 200)), jnp.float32
  )

  def apply(x):
    norms = Norms()
    norms(x)
    return cell_cnn.Output(x, x, norms.seen)

  running = cells.initial_statistics(apply, x)
  np.testing.assert_array_equal(running[0][0], np.zeros(2))
  np.testing.assert_array_equal(running[0][1], np.ones(2))
  once = cells.update_statistics(running, apply(x).statistics)
  np.testing.assert_allclose(once[0][0], 0.1 * x.mean((1, 2, 3)), rtol=1e-4)
  for _ in range(100):
    running = cells.update_statistics(running, apply(x).statistics)
  np.testing.assert_allclose(running[0][0], x.mean((1, 2, 3)), rtol=1e-3)
  np.testing.assert_allclose(running[0][1], x.var((1, 2, 3)), rtol=1e-3)


def test_operations_of_the_published_cell():
  space = ConvCell()
  plan = cell_cnn.make_plan((32, 32, 3), 10, channels=36, layers=20)
  found = cells.derived_flops(plan, space.decode(space.parse("DARTS_V2")))
  assert round(found / 2e6) == 528


def test_a_derived_network_learns_and_is_tested_with_running_statistics():
  """Bright against dark images, with every regulariser on."""
  rng = np.random.default_rng(0)
  y = rng.integers(0, 2, 64).astype(np.int32)
  x = rng.normal(0.0, 0.3, (64, 8, 8, 1)) + 2.0 * y[:, None, None, None] - 1.0
  space = ConvCell(1)
  found = space.decode(
    space.parse(
      "Genotype(normal=[('skip_connect', 0), ('sep_conv_3x3', 1)], "
      "normal_concat=range(2, 3), reduce=[('max_pool_3x3', 0), ('skip_connect', 1)], "
      "reduce_concat=range(2, 3))"
    )
  )
  plan = cell_cnn.make_plan((8, 8, 1), 2, channels=4, layers=3, nodes=1)
  recipe = cells.Recipe(
    epochs=12, batch_size=16, learning_rate=0.1, auxiliary_weight=0.0, crop=1, cutout=2
  )
  rows, task = Split(x.astype(np.float32), y), get_task("multiclass")
  losses = []
  for each in cells.train_derived(jax.random.key(0), plan, found, rows, task, recipe):
    losses.append(each.train_loss)
    model = each.weights, each.statistics
  assert each.epoch == len(losses) == 12
  assert losses[-1] < 0.3 * losses[0]
  test = cells.derived_tester(plan, found, task, 24)
  tested = test(model, jnp.asarray(rows.x), jnp.asarray(rows.y))
  assert tested.metric > 0.95
