"""What the programs of a search would do on a TPU, compiled for one that is not here.

  pip install -e '.[tpu-audit]'
  python -m benchmarks.tpu_audit [--devices=v5e,v6e] [--populations=10,100,1000]
  python -m benchmarks.tpu_audit --populations=1000 --programs=padded --chips=4
  python -m benchmarks.tpu_audit --populations=10 --frames='64 64,128 128'

XLA compiles the population's step in both of its layouts, the controller's round, the
retraining step and the exact step of a DARTS search (the paper's supernet on CIFAR-10,
batches of 64) for the device; nothing is run. Compile seconds, peak memory and
collectives are those of a whole epoch on MNIST. One step is compiled by itself for the
rest, as XLA's cost analysis counts the body of a loop once. The seconds are XLA's own
estimate, without the kernels that it has none for.
It takes all bytes that kernels read and write at the bandwidth of the memory, also
those that stay in the chip, so it is an upper bound. Beside it stands the least that
the device could take: the larger of the arithmetic of the children's own layers at the
peak rate, and of Adam's traffic for their weights (28 bytes each) at the peak
bandwidth. The controller is all loops: its arithmetic is counted in the traced program.

A population that does not fit is trained in parts, one after another: its row says so,
the next is that of one part. With `--chips`, a population is sharded over so many and
figures are those of each chip; the programs that run on one of them are left out.
Exits with 1 when a program has a collective.
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
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, SingleDeviceSharding

from nasjax.networks import cell_cnn, mlp, supernet_cnn
from nasjax.spaces import base
from nasjax.spaces.conv_cell import ConvCell
from nasjax.spaces.mlp_chain import Dense, MLPChain
from nasjax.strategies.darts import darts
from nasjax.strategies.reinforce import reinforce
from nasjax.training import cells, flops, packing, profile, step
from nasjax.training.losses import get_task
from nasjax.training.packing import Program
from nasjax.training.population import DTYPES
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
STATE_BYTES = 12  # a weight and its two moments
GRADIENT_BYTES = 4
BEST_BYTES = 8  # the weights of its best epoch so far and their replacement
MEMORY_GB = {"v5e": 16.9, "v6e": 33.5}  # what XLA lets a program have
SHARE = 0.9  # of it that a trainer lets a population have
COLLECTIVES = re.compile(
  r" (?:all-reduce|all-gather|reduce-scatter|all-to-all|ragged-all-to-all"
  r"|collective-permute|collective-broadcast)(?:-start)?\("
)
PROGRAMS = ("retraining", "darts", "controller", "padded", "bucketed")
# Of the DARTS search: images, classes, channels, cells, nodes; rows of a batch.
SUPERNET, SEARCH_BATCH = ((32, 32, 3), 10, 16, 8, 4), 64
WINNER = "512 relu - 512 relu - 256 relu - dropout 0.2"
SHAPE = jax.ShapeDtypeStruct


@dataclasses.dataclass
class Row:
  """One program on one device; seconds and counts are those of one step or call.

  Attributes:
    name: which program.
    children: that it trains.
    compile_seconds: of the whole epoch (of the call, for the controller), here.
    flops: of the program, padding included.
    bytes: that its kernels read and write.
    estimate: seconds, by XLA.
    without: kernels that the estimate leaves out.
    least: seconds, of the arithmetic and the traffic that nothing can avoid.
    peak_gb: memory of the whole epoch.
    collectives: between chips, in the whole epoch.
    failure: why the population is trained in parts.
    parts: how many of these the population is trained in.
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
  parts: int = 1

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


def _timed(lower) -> tuple[Any, float]:
  """Compiled, and the seconds that it took."""
  start = time.perf_counter()
  compiled = lower().compile()
  return compiled, time.perf_counter() - start


def _enter_memory(row: Row, lower, chips: int = 1):
  """Compiles a whole epoch or call, and enters what it holds; what was compiled."""
  compiled, row.compile_seconds = _timed(lower)
  if chips > 1:  # on one there is none, and libtpu 0.0.52 cannot print all programs
    row.collectives = len(COLLECTIVES.findall(compiled.as_text()))
  memory = compiled.memory_analysis()
  row.peak_gb = (
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    + memory.temp_size_in_bytes
    - memory.alias_size_in_bytes
  ) / 1e9
  return compiled


def _enter_costs(row: Row, compiled) -> None:
  """Enters what one compiled step does."""
  costs = compiled.cost_analysis()
  row.flops, row.bytes = costs.get("flops", 0.0), costs.get("bytes accessed", 0.0)
  # A kernel without an estimate counts as minus one second.
  seconds = costs.get("optimal_seconds", 0.0)
  row.without = max(0, int(np.ceil(-seconds)))
  row.estimate = seconds + row.without


class Audit:
  """The programs on one kind of device."""

  def __init__(self, name: str, chips: int) -> None:
    self.name, self.profile = name, profile.GIVEN[f"tpu-{name}"]
    devices = topologies.get_topology_desc(f"{name}:2x2", "tpu").devices
    self.mesh = Mesh(np.array(devices[:chips]), ("population",))
    self.chips = chips
    self.space = MLPChain()
    self.whole = (self.space.max_width,) * (self.space.length - 1)

  def epoch(self, name, program, members, *, batch=BATCH, chains=()) -> Row:
    """One program of a population, or (no members) of one child."""
    row = Row(name, members or 1)
    width = -(-members // self.chips) * self.chips
    sizes = [FEATURES, *program.widths, CLASSES]
    weights = sum((i + 1) * o for i, o in zip(sizes[:-1], sizes[1:]))
    each_gb = weights * max(width, 1) / self.chips / 1e9
    limit = SHARE * MEMORY_GB[self.name]
    task = get_task("multiclass", label_smoothing=0.0 if members else 0.1)
    mesh = self.mesh if members else None

    def lower(steps: int, rows: int, valid: int):
      data = _data(rows, valid)
      programs = Programs(task, data, CLASSES, mesh)
      arguments = _arguments(program, width, steps, batch, data)
      if not members:
        arguments = self._on_one_chip(arguments)
      return programs.lower(program, width, *arguments)

    needed = (STATE_BYTES + BEST_BYTES + GRADIENT_BYTES) * each_gb
    # As a trainer decides: XLA would take minutes to say that the state does not fit.
    if (STATE_BYTES + BEST_BYTES) * each_gb <= limit or width <= self.chips:
      try:
        whole_epoch = functools.partial(lower, TRAIN // batch, TRAIN, VALID)
        _enter_memory(row, whole_epoch, self.chips)
        needed = row.peak_gb + BEST_BYTES * each_gb
      except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) or width <= self.chips:
          raise
        sizes = re.findall(r"[\d.]+G", str(error))
        row.failure = "does not fit, " + " of ".join(sizes[:2])
        needed = max(needed, 1.01 * limit)
    if needed > limit and width > self.chips:
      row.parts = int(np.ceil(needed / limit))
      row.failure = row.failure or f"would take {needed:.1f} GB of {limit:.1f}"
      row.failure += f": trained in {row.parts} parts"
      return row
    # Few rows, so that nothing done once an epoch hides the step.
    _enter_costs(row, _timed(lambda: lower(1, 512, 8))[0])
    row.least = self.least(chains, batch) / self.chips
    return row

  def in_parts(self, name, program, members, *, chains=()) -> list[Row]:
    """A population's row; before it, those of populations that did not fit."""
    row = self.epoch(name, program, members, chains=chains)
    rows, parts = [row], 1
    while row.failure:
      parts *= row.parts
      some = -(-members // parts)
      row = self.epoch(f"{name}, one of {parts}", program, some, chains=chains[:some])
      rows.append(row)
    row.parts = parts
    return rows

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

  def padded(self, members: int) -> list[Row]:
    """A population in the frame of the whole space."""
    program = Program(None, self.whole)
    return self.in_parts("padded", program, members, chains=self.draw(members))

  def bucketed(self, members: int) -> Iterator[Row]:
    """A population in the frames that the planner opens, and their sum."""
    chains = self.draw(members)
    steps = EPOCHS * (TRAIN // BATCH)
    cost = packing.CostModel(
      self.profile, FEATURES, CLASSES, BATCH, steps, EPOCHS * VALID, vmapped=True
    )
    plan = packing.make_plan(chains, (), cost, "bucketed", self.whole)
    total = Row("bucketed, all frames", members)
    for group in plan.groups:
      rows = self.in_parts(
        "frame " + " ".join(map(str, group.program.widths)),
        group.program,
        len(group.members),
        chains=[chains[i] for i in group.members],
      )
      yield from rows
      for name in ("flops", "bytes", "estimate", "without", "least"):
        done = getattr(total, name) + rows[-1].parts * getattr(rows[-1], name)
        setattr(total, name, done)
      total.compile_seconds += rows[-1].compile_seconds
      total.collectives += rows[-1].collectives
      total.peak_gb = max(total.peak_gb, rows[-1].peak_gb)
    yield total

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
      row = Row(name, members, flops=flops.count(function, *arguments))
      _enter_memory(row, lower)
      rows.append(row)
    return rows

  def retraining(self) -> Row:
    """The step of the winner's retraining, on one chip."""
    layers = self.space.layers(self.space.parse(WINNER))
    return self.epoch(
      "retraining", Program(layers, None), 0, batch=RETRAIN_BATCH, chains=[layers]
    )

  def search_step(self, dtype: str) -> Row:
    """The exact second-order step of a DARTS search, on one chip."""
    plan = cell_cnn.make_plan(*SUPERNET)
    form = supernet_cnn.Form(stacked=True, dtype=dtype)
    loss = cells.supernet_loss(plan, get_task("multiclass"), form)
    strategy = darts(
      lambda key: supernet_cnn.init(np.uint32(0), plan),
      lambda key: supernet_cnn.init_alphas(key, plan.nodes),
      loss,
      loss,
      ConvCell(plan.nodes).derive,
      num_steps=1,
    )
    batch = cells.Batch(
      SHAPE((SEARCH_BATCH, *plan.image), jnp.float32),
      SHAPE((SEARCH_BATCH,), jnp.int32),
    )
    state = jax.eval_shape(strategy.init, jax.eval_shape(lambda: jax.random.key(0)))
    arguments = self._on_one_chip((state, batch, batch))
    run = jax.jit(strategy.step, donate_argnums=0)
    row = Row(f"DARTS step, {dtype}", 1)
    compiled = _enter_memory(row, functools.partial(run.lower, *arguments))
    _enter_costs(row, compiled)
    row.least = flops.count(strategy.step, *arguments) / self.profile.flops
    return row


def _rows(
  audit: Audit, populations: list[int], programs: list[str], frames: str
) -> Iterator[Row]:
  if frames:
    for members, text in itertools.product(populations, frames.split(",")):
      program = Program(None, tuple(int(width) for width in text.split()))
      yield from audit.in_parts(f"frame {text}", program, members)
    return
  if audit.chips == 1:
    if "retraining" in programs:
      yield audit.retraining()
    if "darts" in programs:
      yield from map(audit.search_step, DTYPES)
  for members in populations:
    if "controller" in programs and audit.chips == 1:
      yield from audit.controller(members)
    for layout in ("padded", "bucketed"):
      if layout in programs:
        yield from getattr(audit, layout)(members)


def main() -> int:
  """Prints a Markdown table a device; 1 when there is a collective."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
  parser.add_argument("--devices", default="v5e,v6e")
  parser.add_argument("--populations", default="10,100,1000")
  parser.add_argument("--programs", default=",".join(PROGRAMS))
  parser.add_argument("--chips", type=int, default=1, choices=(1, 2, 4))
  parser.add_argument("--frames", default="", help="these alone, as '64 64,128 128'")
  options = parser.parse_args()
  programs = options.programs.split(",")
  if not set(programs) <= set(PROGRAMS):
    parser.error(f"unknown program in {options.programs!r}; there are {PROGRAMS}")
  populations = [int(number) for number in options.populations.split(",")]
  collectives = 0
  for device in options.devices.split(","):
    if device not in MEMORY_GB:
      parser.error(f"unknown device {device!r}; there are {', '.join(MEMORY_GB)}")
    audit = Audit(device, options.chips)
    print(
      f"\nTPU {device}, {options.chips} chip(s), jax {jax.__version__}:\n\n{HEADER}"
    )
    for row in _rows(audit, populations, programs, options.frames):
      print(row.line(), flush=True)
      collectives += row.collectives
  return 1 if collectives else 0


if __name__ == "__main__":
  sys.exit(main())
