"""The planner's cost model beside the clock: expected and measured seconds of an epoch.

  python -m benchmarks.cost_model

Trains chains of several shapes, exact, framed and in tiles, on every core at once, and
prints what `training.packing` expects of each; then the factors that fit best (those of
`packing.IN_TURN` were found like this), and what the time goes to.
"""

import argparse
import queue
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import nnls

from nasjax.networks import mlp, tiled
from nasjax.spaces.mlp_chain import Dense, Layer
from nasjax.training import packing, profile, step
from nasjax.training.losses import get_task
from nasjax.training.packing import CostModel, Parts, Program
from nasjax.training.population import device_data
from nasjax.training.programs import Programs


class Shape(NamedTuple):
  """Features, classes, rows of an epoch, validation rows, batch size."""

  features: int
  classes: int
  rows: int
  valid_rows: int
  batch_size: int


SHAPES = {
  "mnist_32": Shape(784, 10, 6400, 1600, 32),
  "mnist_128": Shape(784, 10, 12800, 3200, 128),
  "mnist validation": Shape(784, 10, 1280, 12000, 32),
  "digits": Shape(64, 10, 1150, 287, 32),
  "wine": Shape(11, 3, 3136, 784, 32),
}
CHAINS = (
  (16,),
  (128,),
  (512,),
  (256, 256),
  (32, 512),
  (512, 32),
  (512, 512, 512),
  (8, 8, 8, 8),
  (512, 128, 128, 8),
  (64, 256, 32, 64, 256, 16),
  (256, 512, 32, 32, 128, 64, 256),
)
_ACTIVATIONS = ("relu", "tanh", "elu", "sigmoid")


class Measured(NamedTuple):
  """One program: where it ran, what it took, and what was expected."""

  shape: str
  program: Program
  widths: tuple[int, ...]
  seconds: float
  compile_seconds: float
  cost: CostModel

  @property
  def expected(self) -> float:
    """Seconds of the epoch."""
    return self.cost.child_seconds(self.program, self.widths)


def main() -> int:
  """Prints the tables."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
  parser.add_argument("--shapes", default=",".join(SHAPES), help="which, by comma")
  parser.add_argument("--chains", type=int, default=len(CHAINS), help="how many")
  options = parser.parse_args()
  shapes = options.shapes.split(",")
  if unknown := set(shapes) - SHAPES.keys():
    parser.error(f"unknown shape {min(unknown)!r}; there are {', '.join(SHAPES)}")
  start = time.perf_counter()
  here = profile.measure()
  print(f"Profile, in {time.perf_counter() - start:.1f} s: {here}\n")
  print("| shape | units | exact, ms: measured | expected | framed | expected", end="")
  print(" | in tiles | expected | compile, s: exact | expected", end="")
  print(" | framed | expected | in tiles | expected |")
  print("|---|---|" + 12 * "---:|")
  found: list[Measured] = []
  for name in shapes:
    for widths in CHAINS[: options.chains]:
      each = list(_measure(name, widths, here))
      found += each
      runs = [f"{1e3 * one.seconds:.2f} | {1e3 * one.expected:.2f}" for one in each]
      compiles = [
        f"{one.compile_seconds:.2f} | {one.cost.compile_seconds(one.program):.2f}"
        for one in each
      ]
      units = " ".join(map(str, widths))
      print(f"| {name} | {units} | {' | '.join(runs + compiles)} |", flush=True)
  print()
  _fit(found)
  _breakdown(found)
  _first_layers()
  return 0


def _measure(
  name: str, widths: tuple[int, ...], here: profile.DeviceProfile
) -> Iterator[Measured]:
  """The exact program of a chain, the framed one of its own shape, the tiled one."""
  shape = SHAPES[name]
  random = np.random.default_rng(0)

  def split(count):
    x = random.normal(size=(count, shape.features)).astype(np.float32)
    return x, random.integers(0, shape.classes, count).astype(np.int32)

  data = device_data(split(shape.rows), split(shape.valid_rows))
  task = get_task("multiclass")
  programs = Programs(task, data, shape.classes, whole_frame=(512,) * 7)
  layers: tuple[Layer, ...] = tuple(
    Dense(width, _ACTIVATIONS[i % 4]) for i, width in enumerate(widths)
  )
  (batches,) = step.epoch_batches(
    jax.random.key(0), shape.rows, shape.batch_size, epochs=1
  )
  steps = len(batches)
  schedule = jax.tree.map(lambda s: s[0], step.Hyper(1e-3, 1).schedule(1, steps))
  cost = CostModel(
    here, shape.features, shape.classes, shape.batch_size, steps, shape.valid_rows
  )
  weights = mlp.init(0, layers, shape.features, shape.classes)
  seeds = jnp.zeros(steps, jnp.uint32)
  for program in (Program(layers, None), Program(None, widths), packing.TILED):
    state: Any = step.start(weights)
    slots: Any = None
    if program.frame:
      state = step.start(mlp.pad(weights, layers, widths, shape.classes))
      slots = mlp.slots_of(layers, widths)
    elif program == packing.TILED:
      state = step.start(tiled.pack(weights, programs.bounds))
      slots = tiled.map_of(layers, programs.bounds)
    rest = jax.tree.map(jnp.asarray, (slots, seeds, batches, schedule, data))
    start = time.process_time()
    run = programs.get(program, 0, state, *rest).run
    compile_seconds = time.process_time() - start
    # A tiled program takes over the memory of its state.
    states: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for _ in range(profile.cores()):
      states.put(jax.tree.map(jnp.array, state))

    def epoch(run=run, rest=rest, states=states):
      after, losses, _ = run(states.get(), *rest)
      states.put(after)
      return losses

    seconds = profile.seconds_of(epoch, repeats=7)
    yield Measured(name, program, widths, seconds, compile_seconds, cost)


def _fit(found: Sequence[Measured]) -> None:
  """How far off the model is, and the factors that would be best."""
  seconds = np.array([one.seconds for one in found])
  expected = np.array([one.expected for one in found])
  print(_quality("Expected over measured", expected / seconds))
  promised = np.array([one.cost.promised(one.program, one.widths) for one in found])
  factors, _ = nnls(promised / seconds[:, None], np.ones(len(seconds)))
  print(_quality("With the factors below", promised @ factors / seconds))
  print("\n| part | factor | best here |\n|---|---:|---:|")
  for part, factor, best in zip(Parts._fields, packing.IN_TURN, factors):
    print(f"| {part} | {factor:.2f} | {best:.2f} |")
  print()


def _quality(what: str, ratios: np.ndarray) -> str:
  low, middle, high = np.percentile(ratios, [5, 50, 95])
  return f"{what}: median {middle:.2f}, nine of ten between {low:.2f} and {high:.2f}."


def _breakdown(found: Sequence[Measured]) -> None:
  """What the exact programs' time goes to, by shape."""
  print("| exact programs | " + " | ".join(Parts._fields) + " |")
  print("|---|" + "---:|" * len(Parts._fields))
  for name in dict.fromkeys(one.shape for one in found):
    mine = [one for one in found if one.shape == name and one.program.layers]
    parts = np.array([one.cost.parts(one.program) for one in mine]).sum(0)
    print(f"| {name} | " + " | ".join(f"{p:.0%}" for p in parts / parts.sum()) + " |")


def _first_layers(children: int = 10) -> None:
  """What one product for the first layers of all children would gain on this device."""
  print("\n| first layers | one product each, ms | one for all, ms |\n|---|---:|---:|")
  each = jax.jit(lambda x, kernels: [x @ kernel for kernel in kernels])
  together = jax.jit(jnp.matmul)
  for name, width in (("mnist_32", 64), ("mnist_32", 512), ("wine", 512)):
    shape = SHAPES[name]
    x = jnp.ones((shape.batch_size, shape.features))
    kernels = [jnp.ones((shape.features, width)) for _ in range(children)]
    apart = profile.seconds_of(each, x, kernels, repeats=20)
    at_once = profile.seconds_of(together, x, jnp.hstack(kernels), repeats=20)
    times = f"{1e3 * apart:.3f} | {1e3 * at_once:.3f}"
    print(f"| {name}, {children} x {width} | {times} |", flush=True)


if __name__ == "__main__":
  sys.exit(main())
