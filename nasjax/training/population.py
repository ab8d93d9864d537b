"""Training a population of chains, behind one function whatever the layout.

`training.packing` plans which program each child runs in; here the programs are
compiled, kept, and run. On a CPU children take turns, as many at once as there are
cores, and the others compile meanwhile; on an accelerator the children of a framed
program are vmapped, and those that are done leave it when that pays.

A child's result depends on its genotype, its key and its initial weights, never on the
layout (up to rounding), on its neighbours or on their order.
"""

import concurrent.futures
import functools
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import psutil

from nasjax.core import counter
from nasjax.core import keys as keys_lib
from nasjax.core.types import InputError
from nasjax.networks import mlp, tiled
from nasjax.spaces.mlp_chain import Layer, MLPChain
from nasjax.training import packing
from nasjax.training import profile as profile_lib
from nasjax.training.losses import Task
from nasjax.training.packing import LAYOUTS, TILED, Group, Layout, Plan, Program
from nasjax.training.programs import MOST_TILE_BYTES, Programs, population_mesh
from nasjax.training.step import (
  DeviceData,
  EarlyStopping,
  EpochResult,
  Hyper,
  Schedule,
  TrainState,
  epoch_batches,
  start,
)


class Child(NamedTuple):
  """One trained child, on the host.

  Attributes:
    layers: its hidden layers.
    weights: exact weights of its best epoch; None when it failed.
    curve: `[T]` validation metric by epoch, NaN where none was run.
    valid_loss: `[T]` likewise.
    epochs_run: how many epochs ran.
    best_epoch: which of them was the best, from 1; 0 when none was.
    seconds: run time, compilation apart (a vmapped program's time is shared out
      equally).
    failure: why it failed, in a few words; None when it did not.
    stopped: it stopped by itself, out of patience or because it failed.
    stopped_at_rung: it was not among the best there, see `training.rungs`.
  """

  layers: tuple[Layer, ...]
  weights: mlp.Weights | None
  curve: np.ndarray
  valid_loss: np.ndarray
  epochs_run: int
  best_epoch: int
  seconds: float
  failure: str | None
  stopped: bool = False
  stopped_at_rung: bool = False


DTYPES = ("float32", "bfloat16")
LoadWeights = Callable[[tuple[Layer, ...], mlp.Weights], mlp.Weights]
OnChild = Callable[[int, Child], None]
OnPlan = Callable[[Plan], None]


class _Round(NamedTuple):
  """What all groups of one round share."""

  layers: list[tuple[Layer, ...]]
  init_seeds: np.ndarray  # [P] uint32
  dropout_seeds: np.ndarray  # [P] uint32
  batches: list[jax.Array]  # T of [S, B]
  schedule: Schedule  # [T, S]
  hyper: Hyper
  load: LoadWeights | None
  cancelled: threading.Event

  def inputs(self, epoch: int, seeds: np.ndarray) -> tuple[Any, ...]:
    """The rows, the dropout seeds `[..., S]` and the rates of one epoch."""
    num_steps = self.schedule.first.shape[1]
    now = slice(epoch * num_steps, (epoch + 1) * num_steps)
    schedule = jax.tree.map(lambda sizes: sizes[epoch], self.schedule)
    return seeds[..., now], self.batches[epoch], schedule

  def step_seeds(self, i: int) -> np.ndarray:
    """`[T * S]` uint32: a child's dropout seed of every step."""
    step = np.arange(self.schedule.first.size, dtype=np.uint32)
    return counter.fold(self.dropout_seeds[i], step)

  def weights(self, i: int, program: Program, bounds: tiled.Bounds) -> Any:
    """A child's weights before training, in the form of the program."""
    sizes = bounds.features, bounds.outputs
    weights = mlp.init(self.init_seeds[i], self.layers[i], *sizes)
    if self.load:
      weights = self.load(self.layers[i], weights)
    if program.frame:
      return mlp.pad(weights, self.layers[i], program.frame, bounds.outputs)
    return tiled.pack(weights, bounds) if program == TILED else weights


def population_trainer(
  space: MLPChain,
  task: Task,
  data: DeviceData,
  num_outputs: int,
  *,
  epochs: int,
  batch_size: int,
  layout: Layout = "auto",
  device_profile: profile_lib.DeviceProfile | None = None,
  num_devices: int | None = None,
  memory_limit_gb: float | None = None,
  compute_dtype: str = "float32",
  log: Callable[[str], None] = lambda message: None,
) -> Callable[..., list[Child]]:
  """Builds the function that trains any population of the space on these rows.

  Args:
    space: the space of the genotypes.
    task: loss and metric.
    data: rows on the device.
    num_outputs: C.
    epochs: T, at most.
    batch_size: B.
    layout: see `training.packing`.
    device_profile: what the planner believes of the device; measured (or read from the
      user's cache folder) when the plan first needs one.
    num_devices: over how many devices a vmapped population is sharded; None for all.
    memory_limit_gb: what a vmapped population may take of each device; None for nine
      tenths of what is free. What does not fit is trained in parts.
    compute_dtype: "float32", or "bfloat16" for activations and gradients.
    log: called with a line when a population is split.

  Returns:
    `train(key, genotypes [P, D], hyper, load=None, on_child=None, on_plan=None) ->
    list[Child]`. `load(layers, fresh)` may replace a child's fresh weights (one-shot);
    `on_child(i, child)` is called as each child is done, in the order in which they
    are; `on_plan(plan)` before the first starts. Compiled programs are kept between
    calls.

  Raises:
    InputError: for a layout, a batch size, a number of epochs or of devices, or a type
      that cannot be.
  """
  if compute_dtype not in DTYPES:
    raise InputError(
      f"unknown compute_dtype {compute_dtype!r}; there are {', '.join(DTYPES)}"
    )
  if layout not in LAYOUTS:
    raise InputError(f"unknown layout {layout!r}; there are {', '.join(LAYOUTS)}")
  if epochs < 1 or batch_size < 1:
    raise InputError(
      f"epochs and batch_size must be positive, got {epochs} and {batch_size}"
    )
  num_rows = data.x_train.shape[0]
  make_batches = jax.jit(lambda key: epoch_batches(key, num_rows, batch_size, epochs))
  make_seeds = jax.jit(
    lambda key, genotypes: jax.vmap(counter.seed)(
      keys_lib.for_genotypes(key, genotypes)
    )
  )
  whole = (space.max_width,) * (space.length - 1)
  programs = Programs(
    task,
    data,
    num_outputs,
    population_mesh(num_devices),
    None if compute_dtype == "float32" else jnp.dtype(compute_dtype),
    whole,
  )
  limit = memory_limit_gb * 1e9 if memory_limit_gb else _free_bytes()
  # On a CPU a vmapped product is slow, so children take turns; anywhere else, and over
  # several devices, all of them are one program.
  vmapped = layout == "padded" or not programs.on_one_cpu
  if layout == "tiled" and not programs.can_tile:
    raise InputError(
      "the layout tiled is for one CPU, float32 and a space whose largest chain takes "
      f"less than {MOST_TILE_BYTES >> 20} MiB"
    )
  profile = device_profile
  if profile is None and layout in ("exact", "padded", "tiled"):
    profile = profile_lib.ANY  # one kind of program leaves nothing to weigh

  def plan(chains: list[tuple[Layer, ...]], num_epochs: int, steps: int) -> Plan:
    nonlocal profile
    profile = profile or profile_lib.load_or_measure()
    cost = packing.CostModel(
      profile=profile,
      num_features=data.x_train.shape[1],
      num_outputs=num_outputs,
      batch_size=min(batch_size, num_rows),
      train_steps=num_epochs * steps,
      valid_rows=num_epochs * data.x_valid.shape[0],
      vmapped=vmapped,
      tiled=programs.can_tile,
    )
    return packing.make_plan(chains, programs.known(), cost, layout, whole)

  def train(
    key: jax.Array,
    genotypes: np.ndarray,
    hyper: Hyper,
    load: LoadWeights | None = None,
    on_child: OnChild | None = None,
    on_plan: OnPlan | None = None,
  ) -> list[Child]:
    init_key, train_key, batch_key = keys_lib.named(key, "init", "train", "batches")
    genotypes = np.asarray(genotypes, np.int32)
    layers = [space.layers(genotype) for genotype in genotypes]
    batches = [jnp.asarray(rows) for rows in np.asarray(make_batches(batch_key))]
    num_steps = batches[0].shape[0]
    work = _Round(
      layers=layers,
      init_seeds=np.asarray(make_seeds(init_key, genotypes)),
      dropout_seeds=np.asarray(make_seeds(train_key, genotypes)),
      batches=batches,
      hyper=hyper,
      schedule=hyper.schedule(epochs, num_steps),
      load=load,
      cancelled=threading.Event(),
    )
    the_plan = plan(layers, hyper.num_epochs(epochs), num_steps)
    if on_plan:
      on_plan(the_plan)
    together = functools.partial(train_together, programs, work, limit, log)
    return _run(programs, the_plan, work, together if vmapped else None, on_child)

  return train


def _free_bytes() -> float:
  """Nine tenths of the memory that one device has free."""
  stats = jax.devices()[0].memory_stats()
  if stats and "bytes_limit" in stats:
    return 0.9 * (stats["bytes_limit"] - stats.get("bytes_in_use", 0))
  return 0.9 * psutil.virtual_memory().available / len(jax.devices())


def _run(
  programs: Programs,
  plan: Plan,
  work: _Round,
  together: Callable[[Group], Iterator[tuple[int, Child]]] | None,
  on_child: OnChild | None,
) -> list[Child]:
  """Runs the groups of a plan, several at once, and gives the children in order."""
  jobs: list[Group] = []
  for group in plan.groups:
    if together and group.program.frame:
      jobs.append(group)
    else:
      jobs += [Group(group.program, (i,)) for i in group.members]
  # The first of every program before the rest, the longest first: then a program is
  # compiled by the time that others want it, and no long one is left to the end.
  seen: set[Program] = set()
  rank = []
  for job in jobs:
    rank.append((job.program in seen, -sum(job.program.widths)))
    seen.add(job.program)
  jobs = [jobs[i] for i in sorted(range(len(jobs)), key=rank.__getitem__)]

  def train(job: Group) -> list[tuple[int, Child]]:
    try:
      if together and job.program.frame:
        with programs.one_population:  # each may take all the memory there is
          return list(together(job))
      return [(i, train_alone(programs, work, job.program, i)) for i in job.members]
    except jax.errors.JaxRuntimeError as error:  # out of memory, for one
      reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
      nothing = np.full(len(work.batches), np.nan, np.float32)
      return [
        (i, Child(work.layers[i], None, nothing, nothing, 0, 0, 0.0, reason))
        for i in job.members
      ]

  children: dict[int, Child] = {}
  # Worker threads also when there is one: the main thread only waits, so Ctrl-C is
  # answered at once.
  workers = concurrent.futures.ThreadPoolExecutor(profile_lib.cores())
  try:
    running = [workers.submit(train, job) for job in jobs]
    for future in concurrent.futures.as_completed(running):
      for i, child in future.result():
        children[i] = child
        if on_child:
          on_child(i, child)
  finally:
    work.cancelled.set()
    workers.shutdown(wait=False, cancel_futures=True)
  return [children[i] for i in range(len(work.layers))]


def train_alone(programs: Programs, work: _Round, program: Program, i: int) -> Child:
  """Trains child i by itself, in a program that is not vmapped."""
  layers, seeds = work.layers[i], work.step_seeds(i)
  slots: Any = None
  if program.frame:
    slots = mlp.slots_of(layers, program.frame)
  elif program == TILED:
    slots = tiled.map_of(layers, programs.bounds)
  state = start(work.weights(i, program, programs.bounds))
  num_epochs, data = len(work.batches), programs.data
  book = EarlyStopping(1, num_epochs, work.hyper)
  best, me = None, np.array([0])
  epoch_of = programs.get(program, 0, state, slots, *work.inputs(0, seeds), data).run
  begin = time.perf_counter()
  for epoch in range(num_epochs):
    if work.cancelled.is_set() or not book.active[0]:
      break
    inputs = work.inputs(epoch, seeds)
    state, losses, outputs = epoch_of(state, slots, *inputs, data)
    if book.record(me, programs.judge(losses, outputs, data.y_valid))[0]:
      # The next epoch takes over the memory of a tiled state.
      best = state.weights
      if program == TILED:
        best = tiled.cut(best, layers, programs.bounds)
  seconds = time.perf_counter() - begin
  best = jax.tree.map(np.asarray, best)
  return _child(layers, program, book, 0, best, seconds)


def train_together(
  programs: Programs,
  work: _Round,
  limit: float,
  log: Callable[[str], None],
  group: Group,
  part_width: int | None = None,
) -> Iterator[tuple[int, Child]]:
  """Trains the children of a group as one vmapped population.

  It is filled up to a multiple of the devices, and to the width of one that is compiled
  and hardly larger; it is cut into parts of one width, before any weights are made,
  when it would take more memory than the limit. Children that are done leave it between
  epochs when half of it has, and when what that saves is longer than a compilation.
  """
  program, members = group.program, np.array(group.members)
  assert program.frame is not None
  devices = programs.mesh.size if programs.mesh else 1
  width = -(-len(members) // devices) * devices
  # For a part, what was too wide is compiled by now.
  width = part_width or programs.fitting(program, width)
  current = np.resize(np.arange(len(members)), width)  # repeats are dummies
  template = work.weights(members[0], program, programs.bounds)
  num_weights = sum(leaf.size for leaf in jax.tree.leaves(template))
  all_seeds = np.stack([work.step_seeds(i) for i in members])
  each = [mlp.slots_of(work.layers[i], program.frame) for i in members]
  all_slots = jax.tree.map(lambda *leaves: np.stack(leaves), *each)
  num_epochs, data = len(work.batches), programs.data_everywhere

  def arguments(epoch: int):
    slots = jax.tree.map(lambda leaf: leaf[current], all_slots)
    return slots, *work.inputs(epoch, all_seeds[current]), data

  part = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct((width, *leaf.shape), np.float32), template
  )
  # Beside the program: the best weights and their replacement; on a CPU, where the
  # host's memory is the device's, also the initial state, and what earlier parts kept.
  copy_bytes = 4 * num_weights * width / devices
  copies, kept_bytes = (5, copy_bytes) if jax.default_backend() == "cpu" else (2, 0.0)
  needed, most, why = (3 + copies) * copy_bytes, -(-len(members) // devices), ""
  if needed > limit and most > 1 and not part_width:
    # A TPU's compiler takes minutes to find out that the state alone is too large: it
    # is not asked, and the gradient is counted too.
    needed += copy_bytes
  else:
    try:
      shapes = TrainState(part, part, part)
      compiled = programs.get(program, width, shapes, *arguments(0))
      needed = 0 if part_width else compiled.bytes + copies * copy_bytes
    except jax.errors.JaxRuntimeError as error:  # it counts for itself
      if "RESOURCE_EXHAUSTED" not in str(error) or most == 1:
        raise
      needed, why = 2 * limit, "do not fit on the device"
  room = max(limit - kept_bytes, 1.0)
  parts = min(math.ceil(needed / room), most) if needed > limit else 1
  if parts > 1:
    why = why or (
      f"would take {needed / 1e9:.3g} GB of each device, more than {limit / 1e9:.3g}"
    )
    log(f"{len(members)} children {why}: they are trained in {parts} parts")
    width = -(-most // parts) * devices
    for some in np.array_split(members, parts):
      part_of_it = Group(program, tuple(map(int, some)))
      yield from train_together(programs, work, limit, log, part_of_it, width)
    return

  fresh = jax.tree.map(
    lambda leaf: np.empty((width, *leaf.shape), np.float32), template
  )
  for row, member in enumerate(current):
    weights = work.weights(members[member], program, programs.bounds)
    jax.tree.map(lambda all_, one, row=row: all_.__setitem__(row, one), fresh, weights)
  state = start(fresh)
  book = EarlyStopping(len(members), num_epochs, work.hyper)
  kept: list[mlp.Weights | None] = [None] * len(members)
  best: Any = None
  seconds = 0.0
  for epoch in range(num_epochs):
    if work.cancelled.is_set() or not book.active.any():
      break
    epoch_begin = time.perf_counter()
    state, result = compiled.run(state, *arguments(epoch))
    first = np.unique(current, return_index=True)[1]  # without the dummies
    first = first[book.active[current[first]]]
    result = EpochResult(*(np.asarray(value)[first] for value in result))
    better = np.zeros(width, bool)
    better[first] = book.record(current[first], result)
    if best is None:  # a copy: the next epoch takes over the memory of the state
      best = jax.tree.map(jnp.copy, state.weights)
    elif better.any():
      best = _replace_rows(best, state.weights, better)
    epoch_seconds = time.perf_counter() - epoch_begin
    seconds += epoch_seconds / len(members)
    left = current[first][book.active[current[first]]]
    smaller = programs.fitting(program, -(-len(left) // devices) * devices)
    saved = (num_epochs - epoch - 1) * epoch_seconds * (1 - smaller / width)
    cost = 0.0 if programs.has(program, smaller) else compiled.seconds
    if 0 < 2 * smaller <= width and saved > cost:
      _keep(kept, best, current)
      rows = np.array([np.flatnonzero(current == row)[0] for row in left])
      rows = np.resize(rows, smaller)
      state, best = jax.tree.map(
        lambda leaf, r=rows: np.asarray(leaf)[r], (state, best)
      )
      current, width = current[rows], smaller
      compiled = programs.get(program, width, state, *arguments(0))
  _keep(kept, best, current)
  for row, i in enumerate(members):
    yield int(i), _child(work.layers[i], program, book, row, kept[row], seconds)


def _keep(kept: list[mlp.Weights | None], best: Any, current: np.ndarray) -> None:
  """Brings the best weights `[P, ...]` of the current children to the host."""
  if best is None:
    return
  host = jax.tree.map(np.asarray, best)
  # A dummy repeats a member and is not looked at: the first row of each counts.
  for row in reversed(range(len(current))):
    # A view would hold on to all of them.
    kept[current[row]] = jax.tree.map(lambda leaf, row=row: leaf[row].copy(), host)


def _child(
  layers: tuple[Layer, ...],
  program: Program,
  book: EarlyStopping,
  row: int,
  best: mlp.Weights | None,
  seconds: float,
) -> Child:
  """What a training left, out of a row of the book."""
  failed, epochs_run = bool(book.diverged[row]), int(book.epochs_run[row])
  weights = None
  if not failed and best is not None:
    weights = mlp.cut(best, layers) if program.frame else best
  return Child(
    layers=layers,
    weights=weights,
    curve=book.curve[row],
    valid_loss=book.valid_loss[row],
    epochs_run=epochs_run,
    best_epoch=int(book.best_epoch[row]),
    seconds=seconds,
    failure=f"diverged in epoch {epochs_run}" if failed else None,
    stopped=failed or bool(book.out_of_patience[row]),
  )


@jax.jit
def _replace_rows(old: Any, new: Any, which: jax.Array) -> Any:
  """Pytrees `[P, ...]`: the rows of `new` where `which [P]`, else those of `old`."""

  def one(old, new):
    return jnp.where(which.reshape(-1, *[1] * (new.ndim - 1)), new, old)

  return jax.tree.map(one, old, new)


def device_data(train: Sequence, valid: Sequence) -> DeviceData:
  """Puts `(x, y)` of the two splits on the device, once."""
  return DeviceData(*map(jnp.asarray, (*train, *valid)))
