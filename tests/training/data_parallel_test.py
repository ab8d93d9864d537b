"""A batch over eight virtual devices, in a process that has them."""

import os
import pathlib
import subprocess
import sys
import textwrap

import pytest

from nasjax.core.types import InputError
from nasjax.training import data_parallel

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = """
import contextlib, io
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_disable_most_optimizations", True)
import run
from nasjax.data.base import Split
from nasjax.networks import cell_cnn, supernet_cnn
from nasjax.spaces.conv_cell import ConvCell
from nasjax.strategies import darts
from nasjax.training import cells, data_parallel
from nasjax.training.losses import get_task

assert len(jax.devices()) == 8
rng, task, space = np.random.default_rng(0), get_task("multiclass"), ConvCell(1)
plan = cell_cnn.make_plan((8, 8, 1), 3, channels=2, layers=3, nodes=1)
rows = Split(rng.normal(size=(16, 8, 8, 1)).astype(np.float32),
             (np.arange(16) % 3).astype(np.int32))
halves = jnp.roll(jnp.arange(16), 8)  # every device has other rows of the alphas' batch

def loss(weights, alphas, batch):
  # Two operations mixed, and a mean over the batch as a normalisation has it.
  x = batch.x.reshape(len(batch.y), -1) @ weights
  x = x - x.mean(0, keepdims=True)
  mix = jax.nn.softmax(alphas)
  logits = mix[0] * jnp.tanh(x) + mix[1] * x
  return task.loss(logits, batch.y).mean(), task.metric(logits, batch.y)

strategy = darts.darts(
  lambda key: 0.1 * jax.random.normal(key, (64, 3)), lambda key: jnp.zeros(2),
  loss, loss, np.asarray, num_steps=2)

def search(placement):
  state = placement.put(strategy.init(jax.random.key(0)))
  batches = cells.search_batches(2, placement)
  data = placement.put(cells.Batch(*rows))
  batch = batches(jax.random.key(1), data, jnp.arange(16))
  step = cells.search_step(strategy.step, placement)
  if placement.devices > 1:
    assert batch.x.addressable_shards[0].data.shape == (2, 8, 8, 1)
    compiled = step.lower(state, batch, batch).compile()
    assert "all-reduce" in compiled.as_text()
  found = step(state, batch, batch)
  if placement.devices > 1:
    assert all(part.sharding.is_fully_replicated for part in jax.tree.leaves(found))
  return jax.device_get(found)

def supernet(placement):
  # An exact second-order step: the gradient as Adam keeps it, and all that moves.
  # A normal and a reduction cell are enough.
  small = plan._replace(cells=plan.cells[:2])
  loss = cells.supernet_loss(small, task, supernet_cnn.Form(stacked=True))
  strategy = darts.darts(
    lambda key: supernet_cnn.init(np.uint32(0), small),
    lambda key: supernet_cnn.init_alphas(key, 1),
    loss, loss, space.derive, order="2", num_steps=1)
  state = placement.put(strategy.init(jax.random.key(0)))
  data, batches = placement.put(cells.Batch(*rows)), cells.search_batches(0, placement)
  train, valid = (
    batches(jax.random.key(1), data, order) for order in (jnp.arange(16), halves))
  step = cells.search_step(strategy.step, placement)
  if placement.devices > 1:
    step = step.lower(state, train, valid).compile()
    assert "all-reduce" in step.as_text()
  state, info = jax.device_get(step(state, train, valid))
  return state.adam[1].mu, state, info

def retrain(placement):
  found = space.decode(space.parse(
    "Genotype(normal=[('skip_connect', 0), ('dil_conv_3x3', 1)], normal_concat=[2], "
    "reduce=[('max_pool_3x3', 0), ('skip_connect', 1)], reduce_concat=[2])"))
  recipe = cells.Recipe(epochs=1, batch_size=8, auxiliary_weight=0.0, crop=1, cutout=2)
  (last,) = cells.train_derived(
    jax.random.key(2), plan, found, rows, task, recipe, placement)
  return jax.device_get((last.weights, last.statistics, last.train_loss))

for work in (search, supernet, retrain):
  sharded, alone = (work(data_parallel.over(count)) for count in (8, 1))
  for a, b in zip(jax.tree.leaves(sharded), jax.tree.leaves(alone), strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)
  if work is supernet:
    for a, b in zip(*(jax.tree.leaves(found[0]) for found in (sharded, alone))):
      assert np.abs(b).max() > 1e-3
      np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())

said = io.StringIO()
with contextlib.redirect_stderr(said):
  status = run.main(["--experiment=darts_digits", "--smoke", "--workdir=nowhere",
                     "--config.strategy.batch_size=60"])
assert status == 2, said.getvalue()
assert "--config.strategy.batch_size: the 8 devices of --config.mesh.data" in (
  said.getvalue())
print("equal")
"""


def test_a_shared_batch_gives_what_one_device_gives():
  flags = "--xla_force_host_platform_device_count=8"
  finished = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(SCRIPT)],
    env={**os.environ, "XLA_FLAGS": flags},
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert finished.returncode == 0, finished.stderr[-2000:]
  assert finished.stdout.strip() == "equal"


def test_devices_that_are_not_there_are_refused():
  assert data_parallel.over(1).mesh is None
  for number in (0, 99):
    with pytest.raises(InputError, match=f"must be between 1 and .* got {number}"):
      data_parallel.over(number)
