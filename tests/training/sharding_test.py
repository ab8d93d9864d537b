"""Populations over eight virtual devices, in a process that has them."""

import os
import subprocess
import sys
import textwrap

SCRIPT = """
import jax, numpy as np
from nasjax.data import embedded
from nasjax.spaces.mlp_chain import MLPChain
from nasjax.training.losses import get_task
from nasjax.training.population import device_data, population_trainer
from nasjax.training.programs import Programs
from nasjax.training.step import Hyper

space = MLPChain(widths=(4, 8), max_layers=4)
archs = ["8 relu", "4 tanh - dropout 0.2 - 8 elu", "8 relu - 4 sigmoid", "4 elu",
         "8 tanh - 8 tanh", "4 relu - dropout 0.2", "8 elu - 4 relu - 8 relu"]
genotypes = np.stack([space.parse(arch) for arch in archs])  # 7: one dummy is added
data = embedded.load("iris")
hlo = []
compile = Programs._compile

def spy(self, program, width, arguments):
  compiled = compile(self, program, width, arguments)
  hlo.append((width, compiled.run.as_text()))
  return compiled

Programs._compile = spy

def train(genotypes, devices):
  trainer = population_trainer(
    space, get_task(data.task), device_data(data.train, data.valid), 3, epochs=3,
    batch_size=16, layout="padded", num_devices=devices)
  return trainer(jax.random.key(0), genotypes, Hyper(0.01, 9))

assert len(jax.devices()) == 8
sharded = train(genotypes, 8)
(width, text), = hlo
assert width == 8
for name in ("all-reduce", "all-gather", "all-to-all", "collective-permute",
             "reduce-scatter"):
  assert name not in text, name
assert "num_partitions=8" in text
for i, child in enumerate(sharded):
  (alone,) = train(genotypes[i : i + 1], 1)  # the same width on its device
  np.testing.assert_array_equal(child.curve, alone.curve)
  np.testing.assert_array_equal(child.valid_loss, alone.valid_loss)
  for a, b in zip(jax.tree.leaves(child.weights), jax.tree.leaves(alone.weights)):
    np.testing.assert_array_equal(a, b)
print("equal")
"""


def test_sharded_equals_unsharded_bit_for_bit_without_a_collective():
  flags = "--xla_force_host_platform_device_count=8"
  finished = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(SCRIPT)],
    env={**os.environ, "XLA_FLAGS": flags},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert finished.returncode == 0, finished.stderr[-2000:]
  assert finished.stdout.strip() == "equal"
