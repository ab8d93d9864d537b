"""What the programs of a search would do on a TPU, compiled for one that is not here.

  pip install -e '.[tpu-audit]'
  python -m benchmarks.tpu_audit [--devices=v5e,v6e] [--populations=10,100,1000]
  python -m benchmarks.tpu_audit --populations=10 --frames='64 64,128 128'

XLA compiles the population's step in both of its layouts, the controller's round and
the retraining step for the device; nothing is run. One step is compiled by itself, as
XLA's cost analysis counts the body of a loop once; peak memory is that of a whole epoch
on MNIST. The seconds are XLA's own estimate, without the kernels that it has none for.
It takes all bytes that kernels read and write at the bandwidth of the memory, also
those that stay in the chip, so it is an upper bound. Beside it stands the least that
the device could take: the larger of the arithmetic of the children's own layers at the
peak rate, and of Adam's traffic for their weights (28 bytes each) at the peak
bandwidth. The controller is all loops: its arithmetic is counted in the traced program.
"""

import argparse
import dataclasses
import functools
import itertools
import os
import re
import sys
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, SingleDeviceSharding

from nasjax.networks import mlp
from nasjax.spaces import base
from nasjax.spaces.mlp_chain import Dense, MLPChain
from nasjax.strategies.reinforce import reinforce
from nasjax.training import flops, packing, profile, step
from nasjax.training.losses import get_task
from nasjax.training.packing import Program
from nasjax.training.programs import Programs

# This machine computes on its CPU, and libtpu, which is only asked to compile, need not
# look for the host of a TPU.
jax.config.update("jax_platforms", "cpu")
for _name, _value in (
  ("TPU_SKIP_MDS_QUERY", "1"),
  ("TPU_ACCELERATOR_TYPE", "v5litepod-4"),
  ("TPU_WORKER_HOSTNAMES", "localhost"),
):
  os.environ.setdefault(_name, _value)

FEATURES, CLASSES, TRAIN, VALID = 784, 10, 48_000, 12_000
BATCH, RETRAIN_BATCH, EPOCHS = 32, 64, 10
ADAM_BYTES = 28
STATE_BYTES = 16  # a weight, its two moments and its gradient
MEMORY_GB = {"v5e": 16, "v6e": 32}
COLLECTIVES = re.compile(
  r"= \S+ (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)"
)
WINNER = "512 relu - 512 relu - 256 relu - dropout 0.2"
SHAPE = jax.ShapeDtypeStruct


@dataclasses.dataclass
class Row:
  """One program on one device; seconds and counts are those of one step or call.

  Attributes:
    name: which program.
    children: that it trains.
    compile_seconds: on this machine.
    flops: of the program, padding included.
    bytes: that its kernels read and write.
    estimate: seconds, by XLA.
    without: kernels that the estimate leaves out.
    least: seconds, of the arithmetic and the traffic that nothing can avoid.
    peak_gb: memory of the whole epoch (of the call, for the controller).
    collectives: between chips.
    failure: why it could not be compiled.
  """

  name: str
  children: int
  compile_seconds: float = 0.0
  flops: float = 0.0
  bytes: float = 0.0
  estimate: float = 0.0
  without: int = 0
  least: float = 0.0
  peak_gb: float = 0.0
  collectives: int = 0
  failure: str = ""

  def line(self) -> str:
    """A row of the table; empty where there is nothing to say."""
    if self.failure:
      cells = [self.failure] + [""] * 7
    else:
      cells = [
        f"{self.compile_seconds:.1f}",
        f"{self.flops / 1e9:.3g}",
        f"{self.bytes / 1e9:.3g}" if self.bytes else "",
        f"{self.estimate * 1e6:.1f} ({self.without})" if self.estimate else "",
        f"{self.least * 1e6:.1f}" if self.least else "",
        f"{self.estimate / self.least:.1f}" if self.least else "",
        f"{self.peak_gb:.2f}",
        str(self.collectives),
      ]
    return "| " + " | ".join([self.name, str(self.children), *cells]) + " |"


HEADER = (
  "| program | children | compile s | GFLOP | GB moved "
  "| estimated µs (kernels without) | least µs | ratio | peak GB | collectives |\n"
  + "|---" * 10
  + "|"
)


def _data(rows: int, valid: int) -> step.DeviceData:
  return step.DeviceData(
    SHAPE((rows, FEATURES), jnp.float32),
    SHAPE((rows,), jnp.int32),
    SHAPE((valid, FEATURES), jnp.float32),
    SHAPE((valid,), jnp.int32),
  )


def _arguments(program: Program, width: int, steps: int, batch: int, data) -> tuple:
  """Shapes of an epoch's arguments."""
  lead = (width,) if width else ()
  sizes = [FEATURES, *program.widths, CLASSES]
  weights = [
    {
      "kernel": SHAPE((*lead, i, o), jnp.float32),
      "bias": SHAPE((*lead, o), jnp.float32),
    }
    for i, o in zip(sizes[:-1], sizes[1:])
  ]
  slots = None
  if program.frame:
    one = mlp.slots_of((Dense(1, "relu"),), program.frame)
    slots = jax.tree.map(
      lambda leaf: SHAPE((*lead, *np.shape(leaf)), np.asarray(leaf).dtype), one
    )
  rates = SHAPE((steps,), jnp.float32)
  return (
    step.TrainState(weights, weights, weights),
    slots,
    SHAPE((*lead, steps), jnp.uint32),
    SHAPE((steps, batch), jnp.int32),
    step.Schedule(rates, rates),
    data,
  )


def _compile(row: Row, lower, *, step_only: bool) -> Row:
  """Compiles and enters what XLA says; memory or costs."""
  start = time.perf_counter()
  try:
    compiled = lower().compile()
  except jax.errors.JaxRuntimeError as error:
    used = re.search(r"Used (\S+) of (\S+) hbm", str(error))
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    row.failure = "does not fit" + (f": {used[1]} of {used[2]}" if used else "")
    return row
  if step_only:
    row.compile_seconds = time.perf_counter() - start
    costs = compiled.cost_analysis()
    row.flops, row.bytes = costs.get("flops", 0.0), costs.get("bytes accessed", 0.0)
    # A kernel without an estimate counts as minus one second.
    seconds = costs.get("optimal_seconds", 0.0)
    row.without = max(0, int(np.ceil(-seconds)))
    row.estimate = seconds + row.without
    row.collectives = len(COLLECTIVES.findall(compiled.as_text()))
  memory = compiled.memory_analysis()
  row.peak_gb = (
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    + memory.temp_size_in_bytes
    - memory.alias_size_in_bytes
  ) / 1e9
  return row


class Audit:
  """The programs on one kind of device."""

  def __init__(self, name: str, chips: int) -> None:
    self.profile = profile.GIVEN[f"tpu-{name}"]
    devices = topologies.get_topology_desc(f"{name}:2x2", "tpu").devices
    self.mesh = Mesh(np.array(devices[:chips]), ("population",))
    self.memory_gb = MEMORY_GB[name]
    self.chips = chips
    self.space = MLPChain()

  def epoch(self, name, program, members, *, batch=BATCH, chains=()) -> Row:
    """One program of a population, or (no members) of one child."""
    row = Row(name, members or 1)
    width = -(-members // self.chips) * self.chips
    sizes = [FEATURES, *program.widths, CLASSES]
    weights = sum((i + 1) * o for i, o in zip(sizes[:-1], sizes[1:]))
    state = STATE_BYTES * weights * max(width, 1) / self.chips / 1e9
    if state > self.memory_gb:  # XLA would say so too, after many minutes
      row.failure = (
        f"does not fit: {state:.0f} GB of {self.memory_gb}, trained in parts"
      )
      return row
    task = get_task("multiclass", label_smoothing=0.0 if members else 0.1)
    mesh = self.mesh if members else None
    # One step on few rows, so that nothing done once an epoch hides it; then an epoch.
    for steps, rows, valid in ((1, 512, 8), (TRAIN // batch, TRAIN, VALID)):
      data = _data(rows, valid)
      programs = Programs(task, data, CLASSES, mesh)
      arguments = _arguments(program, width, steps, batch, data)
      if not members:
        arguments = self._on_one_chip(arguments)
      lower = functools.partial(programs.lower, program, width, *arguments)
      _compile(row, lower, step_only=steps == 1)
      if row.failure:
        return row
    row.least = self.least(chains, batch) / self.chips
    return row

  def _on_one_chip(self, shapes):
    """The shapes, placed: that is how a program learns what it is compiled for."""
    place = SingleDeviceSharding(self.mesh.devices[0])
    return jax.tree.map(lambda s: SHAPE(s.shape, s.dtype, sharding=place), shapes)

  def least(self, chains, batch: int) -> float:
    """Seconds that one step of the chains takes at the peaks of one device."""
    work = params = 0
    for layers in chains:
      first, *rest = mlp.dense_widths(layers)
      forward = mlp.flops(layers, FEATURES, CLASSES)
      work += (3 * forward - 2 * FEATURES * first) * batch
      params += mlp.num_params(layers, FEATURES, CLASSES)
    return max(
      work / self.profile.flops, ADAM_BYTES * params / self.profile.memory_bandwidth
    )

  def draw(self, members: int) -> list:
    """The layers of so many chains, drawn from the space's prior."""
    draws = jax.vmap(lambda key: base.sample(self.space, key))(
      jax.random.split(jax.random.key(0), members)
    )
    return [self.space.layers(np.asarray(genotype)) for genotype in draws]

  def population(self, members: int) -> list[Row]:
    """Both layouts of a population."""
    chains = self.draw(members)
    whole = (self.space.max_width,) * (self.space.length - 1)
    padded = self.epoch("padded", Program(None, whole), members, chains=chains)
    steps = EPOCHS * (TRAIN // BATCH)
    cost = packing.CostModel(
      self.profile, FEATURES, CLASSES, BATCH, steps, EPOCHS * VALID, vmapped=True
    )
    plan = packing.make_plan(chains, (), cost, "bucketed", whole)
    groups = [
      self.epoch(
        "frame " + " ".join(map(str, group.program.widths)),
        group.program,
        len(group.members),
        chains=[chains[i] for i in group.members],
      )
      for group in plan.groups
    ]
    total = Row("bucketed, all frames", members)
    for name in ("compile_seconds", "flops", "bytes", "estimate", "without", "least"):
      setattr(total, name, sum(getattr(group, name) for group in groups))
    total.peak_gb = max(group.peak_gb for group in groups)
    total.failure = next((g.failure for g in groups if g.failure), "")
    return [padded, *groups, total]

  def controller(self, members: int) -> list[Row]:
    """Asking for a population and learning from it, on one chip."""
    strategy = reinforce(self.space, population=members, max_evaluations=10 * members)
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(strategy.init, key)
    genotypes, _ = jax.eval_shape(strategy.ask, key, state)
    scores = SHAPE((members,), jnp.float32)
    rows = []
    for name, function, arguments in (
      ("controller, ask", strategy.ask, (key, state)),
      ("controller, tell", strategy.tell, (key, state, genotypes, scores)),
    ):
      lower = functools.partial(jax.jit(function).lower, *self._on_one_chip(arguments))
      row = _compile(Row(name, members), lower, step_only=True)
      row.flops, row.bytes, row.estimate = flops.count(function, *arguments), 0, 0
      rows.append(row)
    return rows

  def retraining(self) -> Row:
    """The step of the winner's retraining, on one chip."""
    layers = self.space.layers(self.space.parse(WINNER))
    return self.epoch(
      "retraining", Program(layers, None), 0, batch=RETRAIN_BATCH, chains=[layers]
    )


def _rows(audit: Audit, populations: list[int], frames: str) -> Iterator[Row]:
  if frames:
    for members, text in itertools.product(populations, frames.split(",")):
      program = Program(None, tuple(int(width) for width in text.split()))
      yield audit.epoch(f"frame {text}", program, members)
    return
  yield audit.retraining()
  for members in populations:
    yield from audit.controller(members)
    yield from audit.population(members)


def main() -> int:
  """Prints a Markdown table a device."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
  parser.add_argument("--devices", default="v5e,v6e")
  parser.add_argument("--populations", default="10,100,1000")
  parser.add_argument("--chips", type=int, default=1, choices=(1, 2, 4))
  parser.add_argument("--frames", default="", help="these alone, as '64 64,128 128'")
  options = parser.parse_args()
  populations = [int(number) for number in options.populations.split(",")]
  for device in options.devices.split(","):
    if device not in MEMORY_GB:
      parser.error(f"unknown device {device!r}; there are {', '.join(MEMORY_GB)}")
    audit = Audit(device, options.chips)
    print(
      f"\nTPU {device}, {options.chips} chip(s), jax {jax.__version__}:\n\n{HEADER}"
    )
    for row in _rows(audit, populations, options.frames):
      print(row.line(), flush=True)
  return 0


if __name__ == "__main__":
  sys.exit(main())
