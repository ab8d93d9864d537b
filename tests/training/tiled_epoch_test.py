"""An epoch in tiles against the exact program's, on chains of several tiles a layer."""

import jax
import numpy as np
import pytest

from nasjax.networks import mlp, tiled
from nasjax.spaces.mlp_chain import Dense, Dropout
from nasjax.training import step
from nasjax.training.losses import TASKS
from nasjax.training.packing import TILED, Program
from nasjax.training.population import device_data
from nasjax.training.programs import Programs

F, ROWS, VALID, B = 70, 40, 9, 8
CHAINS = [
  (Dense(130, "elu"), Dropout(0.3), Dense(8, "tanh"), Dense(100, "relu")),
  (Dense(16, "sigmoid"), Dense(70, "tanh"), Dropout(0.2)),
]


@pytest.mark.parametrize("layers", CHAINS)
@pytest.mark.parametrize("name", ["multiclass", "binary", "regression"])
def test_weights_moments_and_outputs_are_those_of_the_exact_program(layers, name):
  task, outputs = TASKS[name], 3 if name == "multiclass" else 1
  random = np.random.default_rng(0)

  def split(rows):
    x = random.normal(size=(rows, F)).astype(np.float32)
    if name == "regression":
      return x, random.normal(size=rows).astype(np.float32)
    return x, random.integers(0, max(outputs, 2), rows).astype(np.int32)

  data = device_data(split(ROWS), split(VALID))
  programs = Programs(task, data, outputs, whole_frame=(130,) * 4)
  bounds = programs.bounds
  exact = mlp.init(np.uint32(1), layers, F, outputs)
  batches = np.asarray(step.epoch_batches(jax.random.key(0), ROWS, B, 2))
  schedule = step.Hyper(0.01, 2).schedule(2, batches.shape[1])
  plain, in_tiles = step.start(exact), step.start(tiled.pack(exact, bounds))
  chain = tiled.map_of(layers, bounds)
  for epoch in range(2):  # the second starts from moments that are not zero
    seeds = np.arange(batches.shape[1], dtype=np.uint32) + 10 * epoch
    rates = jax.tree.map(lambda sizes, e=epoch: sizes[e], schedule)
    rest = (seeds, batches[epoch], rates, data)
    run = programs.get(Program(layers, None), 0, plain, None, *rest).run
    plain, losses, expected = run(plain, None, *rest)
    run = programs.get(TILED, 0, in_tiles, chain, *rest).run
    in_tiles, tiled_losses, got = run(in_tiles, chain, *rest)
    np.testing.assert_allclose(tiled_losses, losses, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)
  for part, exact_part in zip(in_tiles, plain):
    for a, b in zip(tiled.cut(part, layers, bounds), exact_part, strict=True):
      np.testing.assert_allclose(a["kernel"], b["kernel"], atol=1e-4)
      np.testing.assert_allclose(a["bias"], b["bias"], atol=1e-4)


def test_tiles_that_a_chain_does_not_have_stay_zero():
  layers = CHAINS[1]
  random = np.random.default_rng(0)
  x = random.normal(size=(ROWS, F)).astype(np.float32)
  y = random.integers(0, 3, ROWS).astype(np.int32)
  data = device_data((x, y), (x[:VALID], y[:VALID]))
  programs = Programs(TASKS["multiclass"], data, 3, whole_frame=(130,) * 4)
  exact = mlp.init(np.uint32(1), layers, F, 3)
  batches = np.asarray(step.epoch_batches(jax.random.key(0), ROWS, B, 1))[0]
  rates = jax.tree.map(lambda s: s[0], step.Hyper(0.01, 2).schedule(1, len(batches)))
  state = step.start(tiled.pack(exact, programs.bounds))
  rest = (np.zeros(len(batches), np.uint32), batches, rates, data)
  chain = tiled.map_of(layers, programs.bounds)
  after, _, _ = programs.get(TILED, 0, state, chain, *rest).run(state, chain, *rest)
  _, used = tiled.count_tiles((16, 70), F)
  kernels = np.asarray(after.weights.kernels)
  assert kernels[: used * tiled.TILE].any() and not kernels[used * tiled.TILE :].any()
