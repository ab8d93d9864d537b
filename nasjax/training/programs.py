"""The compiled epochs of one trainer: built from `step`, kept by program and width."""

import concurrent.futures
import functools
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nasjax.core.types import InputError
from nasjax.networks import mlp
from nasjax.networks.mlp import Frame
from nasjax.networks.tiled import Bounds
from nasjax.training.losses import Task
from nasjax.training.packing import TILED, Program
from nasjax.training.step import (
  WHOLE_PASS_ROWS,
  DeviceData,
  judge,
  judge_alone,
  make_epoch,
)
from nasjax.training.tiled_epoch import make_tiled_epoch

_FEWEST_VALID_ROWS = 512
MOST_TILE_BYTES = 2**28
"""Of a state in tiles, which has room for the largest chain of the space."""


class Compiled(NamedTuple):
  """A compiled epoch.

  Attributes:
    run: `(state, slots, seeds, rows, schedule, data) -> ...`, see `step.make_epoch`.
    bytes: of memory on one device while it runs: arguments, results, scratch.
    seconds: that its compilation took.
  """

  run: Callable
  bytes: int
  seconds: float


# Of trainers that share theirs: the last so many of this process.
_SHARED: dict[Any, Compiled] = {}
_MOST_SHARED = 64


class Programs:
  """Compiles on demand, once, from any thread.

  Attributes:
    data: rows on the first device.
    sizes: (F, C).
    judge: the program that judges an epoch of one child.
    mesh: over which populations are sharded; None for one device.
    bounds: of the space's chains, for the tiled program.
    one_population: a lock, held while a vmapped population is trained.
  """

  def __init__(
    self,
    task: Task,
    data: DeviceData,
    num_outputs: int,
    mesh: Mesh | None = None,
    compute_dtype: Any = None,
    whole_frame: Frame = (1,),
    share: bool = False,
  ) -> None:
    self.sizes = (data.x_train.shape[1], num_outputs)
    features, outputs = self.sizes
    self.bounds = Bounds(features, max(whole_frame), len(whole_frame), outputs)
    self.judge = functools.partial(judge_alone, task)
    self.mesh = mesh
    self.data = data
    self._task, self._dtype, self._share = task, compute_dtype, share
    self._lock = threading.Lock()
    self.one_population = threading.Lock()
    self._compiled: dict[Any, concurrent.futures.Future[Compiled]] = {}

  @functools.cached_property
  def data_everywhere(self) -> DeviceData:
    """The rows on every device of the mesh."""
    if self.mesh is None:
      return self.data
    return jax.device_put(self.data, NamedSharding(self.mesh, PartitionSpec()))

  @property
  def on_one_cpu(self) -> bool:
    """Whether children take turns: a vmapped product is slow there."""
    return jax.default_backend() == "cpu" and self.mesh is None

  @property
  def can_tile(self) -> bool:
    """Whether the tiled program can be used: on one CPU, in float32, in a space whose
    largest chain is not huge."""
    small = self.bounds.bytes < MOST_TILE_BYTES
    return self.on_one_cpu and self._dtype is None and small

  def known(self) -> set[Program]:
    """Programs compiled before."""
    with self._lock:
      return {
        program
        for (program, _), future in self._compiled.items()
        if future.done() and future.exception() is None
      }

  def has(self, program: Program, width: int) -> bool:
    """Whether a population of that width need not be compiled."""
    with self._lock:
      future = self._compiled.get((program, width))
      return future is not None and future.done()

  def fitting(self, program: Program, width: int) -> int:
    """The width of the smallest compiled population that holds so many, if it is less
    than twice as wide; else the width itself, which must be compiled."""
    with self._lock:
      widths = [w for p, w in self._compiled if p == program and width <= w < 2 * width]
    return min(widths, default=width)

  def get(self, program: Program, width: int, *arguments: Any) -> Compiled:
    """The compiled epoch of a program; the first who asks compiles it.

    Args:
      program: which.
      width: P of a population, vmapped over the leading axis of state, slots and
        seeds; 0 for one child without that axis.
      *arguments: those of the epoch, for their shapes.
    """
    with self._lock:
      mine = (program, width) not in self._compiled
      if mine:
        self._compiled[program, width] = concurrent.futures.Future()
      future = self._compiled[program, width]
    if mine:
      try:
        future.set_result(self._compile(program, width, arguments))
      except BaseException as error:
        future.set_exception(error)
        with self._lock:
          del self._compiled[program, width]
    return future.result()

  def lower(self, program: Program, width: int, *arguments: Any, **options: Any):
    """The program traced and lowered, not compiled; `options` of `Traced.lower`."""
    epoch = self._epoch(program, width)
    if width:
      epoch = self._of_population(epoch)
    options_of_jit: Any = {}
    if width or program == TILED:
      # A population fills the memory: its state is replaced, not held twice. That of a
      # tiled program has room for the largest chain and would be copied every epoch.
      options_of_jit["donate_argnums"] = 0
    if width and self.mesh is not None:
      split = NamedSharding(self.mesh, PartitionSpec("population"))
      whole = NamedSharding(self.mesh, PartitionSpec())
      options_of_jit["in_shardings"] = (split, split, split, whole, whole, whole)
      options_of_jit["out_shardings"] = split
    if jax.process_count() > 1:  # there JAX refuses arrays of the host, even for shapes
      arguments = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype), arguments
      )
    return jax.jit(epoch, **options_of_jit).trace(*arguments).lower(**options)

  def _compile(self, program: Program, width: int, arguments: tuple) -> Compiled:
    shapes = tuple((np.shape(leaf), leaf.dtype) for leaf in jax.tree.leaves(arguments))
    what = (program, width, shapes, self._task, self.bounds, self.mesh, self._dtype)
    if self._share and what in _SHARED:
      return _SHARED[what]
    start = time.perf_counter()
    compiled = self.lower(program, width, *arguments).compile()
    memory = compiled.memory_analysis()
    names = ("argument_size_in_bytes", "output_size_in_bytes", "temp_size_in_bytes")
    used = sum(getattr(memory, name, 0) for name in names)
    used -= getattr(memory, "alias_size_in_bytes", 0)
    made = Compiled(compiled, used, time.perf_counter() - start)
    if self._share:
      _SHARED[what] = made
      for oldest in list(_SHARED)[:-_MOST_SHARED]:
        _SHARED.pop(oldest, None)
    return made

  def _epoch(self, program: Program, width: int) -> Callable:
    """`epoch(state, slots, seeds, rows, schedule, data)`; see `step.make_epoch`.

    Exact programs have no slots; a tiled one has a map instead.
    """
    if program == TILED:
      return make_tiled_epoch(self._task, self.bounds)

    def epoch(state, slots, *rest):
      def apply(weights, x, seed):
        if program.layers is not None:
          return mlp.apply(weights, program.layers, x, seed)
        return mlp.apply_framed(weights, slots, x, seed)

      # A thousand children that validate on all rows at once hold more activations
      # than weights.
      together = max(width // (self.mesh.size if self.mesh else 1), 1)
      rows = max(WHOLE_PASS_ROWS // together, _FEWEST_VALID_ROWS)
      return make_epoch(apply, self._task, self._dtype, rows)(state, *rest)

    return epoch

  def _of_population(self, epoch: Callable) -> Callable:
    """The same for a population, which judges itself: outputs would be large."""

    def judged(state, slots, seeds, rows, schedule, data):
      state, losses, outputs = epoch(state, slots, seeds, rows, schedule, data)
      return state, judge(self._task, losses, outputs, data.y_valid)

    return jax.vmap(judged, in_axes=(0, 0, 0, None, None, None))


def population_mesh(num_devices: int | None) -> Mesh | None:
  """The devices of this process as one axis; None when there is but one.

  Raises:
    InputError: when there are not so many.
  """
  devices = jax.local_devices()
  if num_devices is not None and not 1 <= num_devices <= len(devices):
    raise InputError(
      f"mesh.population must be between 1 and {len(devices)}, the devices that there "
      f"are; got {num_devices}"
    )
  devices = devices[:num_devices]
  return Mesh(np.array(devices), ("population",)) if len(devices) > 1 else None
