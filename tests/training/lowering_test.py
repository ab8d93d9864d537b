"""The accelerators' programs lower for them on an install that has neither."""

import jax
import numpy as np
import pytest

from nasjax.data import embedded
from nasjax.networks import mlp
from nasjax.spaces.mlp_chain import MLPChain
from nasjax.strategies.reinforce import reinforce
from nasjax.training import step
from nasjax.training.losses import get_task
from nasjax.training.packing import Program
from nasjax.training.population import device_data
from nasjax.training.programs import Programs

SPACE = MLPChain(widths=(4, 8), max_layers=4)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize("width", [0, 3])
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("frame", [(8, 8), (SPACE.max_width,) * (SPACE.length - 1)])
def test_the_epoch_lowers(platform, width, dtype, frame):
  data = embedded.load("iris")
  rows = device_data(data.train, data.valid)
  programs = Programs(get_task(data.task), rows, 3, compute_dtype=dtype)
  layers = SPACE.layers(SPACE.parse("8 relu - dropout 0.2 - 4 elu"))
  weights = mlp.pad(mlp.init(np.uint32(0), layers, 4, 3), layers, frame, 3)
  state = step.start(weights)
  slots = mlp.slots_of(layers, frame)
  seeds, batches = np.zeros(2, np.uint32), np.zeros((2, 16), np.int32)
  if width:
    state, slots, seeds = jax.tree.map(
      lambda leaf: np.stack([leaf] * width), (state, slots, seeds)
    )
  schedule = step.Schedule(np.ones(2, np.float32), np.ones(2, np.float32))
  lowered = programs.lower(
    Program(None, frame),
    width,
    *(state, slots, seeds, batches, schedule, rows),
    lowering_platforms=(platform,),
  )
  text = lowered.as_text()
  assert "stablehlo.dot_general" in text and "stablehlo.while" in text
  assert ("bf16" in text) == (dtype is not None)
  if width:
    # All children read one batch: their first layers are one product, not a batch of
    # products (which would have batching dimensions).
    name = "bf16" if dtype else "f32"
    firsts = [
      line
      for line in text.splitlines()
      if "dot_general" in line and f"(tensor<16x4x{name}>, tensor<" in line
    ]
    assert firsts and not any("batching_dims" in line for line in firsts)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_the_retraining_step_lowers(platform):
  data = embedded.load("iris")
  rows = device_data(data.train, data.valid)
  programs = Programs(get_task(data.task, label_smoothing=0.1), rows, 3)
  layers = SPACE.layers(SPACE.parse("8 relu - dropout 0.2 - 4 elu"))
  lowered = programs.lower(
    Program(layers, None),
    0,
    step.start(mlp.init(np.uint32(0), layers, 4, 3)),
    None,
    np.zeros(2, np.uint32),
    np.zeros((2, 64), np.int32),
    step.Schedule(np.ones(2, np.float32), np.ones(2, np.float32)),
    rows,
    lowering_platforms=(platform,),
  )
  text = lowered.as_text()
  assert "(tensor<64x4xf32>, tensor<4x8xf32>) -> tensor<64x8xf32>" in text


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_the_controller_round_lowers(platform):
  strategy = reinforce(SPACE, population=3, max_evaluations=6, hidden=8)
  key = jax.random.key(0)
  state = jax.eval_shape(strategy.init, key)
  genotypes, _ = jax.eval_shape(strategy.ask, key, state)
  scores = np.zeros(3, np.float32)
  for function, arguments in (
    (strategy.ask, (key, state)),
    (strategy.tell, (key, state, genotypes, scores)),
  ):
    lowered = jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,))
    assert "stablehlo.while" in lowered.as_text()
