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
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nasjax.core import counter
from nasjax.core import keys as keys_lib
from nasjax.core.types import InputError
from nasjax.networks import mlp
from nasjax.spaces.mlp_chain import Layer, MLPChain
from nasjax.training import packing
from nasjax.training import profile as profile_lib
from nasjax.training.losses import Task
from nasjax.training.packing import LAYOUTS, Group, Layout, Plan, Program
from nasjax.training.step import (
  DeviceData,
  EarlyStopping,
  EpochResult,
  Hyper,
  Schedule,
  epoch_batches,
  judge,
  make_epoch,
  ravel,
  start,
  unravel,
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
  """

  layers: tuple[Layer, ...]
  weights: mlp.Weights | None
  curve: np.ndarray
  valid_loss: np.ndarray
  epochs_run: int
  best_epoch: int
  seconds: float
  failure: str | None


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

  Returns:
    `train(key, genotypes [P, D], hyper, load=None, on_child=None, on_plan=None) ->
    list[Child]`. `load(layers, fresh)` may replace a child's fresh weights (one-shot);
    `on_child(i, child)` is called as each child is done, in the order in which they
    are; `on_plan(plan)` before the first starts. Compiled programs are kept between
    calls.

  Raises:
    InputError: for a layout, a batch size or a number of epochs that cannot be.
  """
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
  programs = _Programs(space, task, data, num_outputs)
  cost: packing.CostModel | None = None

  def plan(chains: list[tuple[Layer, ...]], steps: int) -> Plan:
    nonlocal cost
    if cost is None:
      # One kind of program leaves nothing to weigh, so any profile will do.
      given = device_profile
      if given is None and layout in ("exact", "padded"):
        given = profile_lib.DeviceProfile(5e10, 1e10, 1e-5, 0.4, 0.1)
      cost = packing.CostModel(
        profile=given or profile_lib.load_or_measure(),
        num_features=data.x_train.shape[1],
        num_outputs=num_outputs,
        batch_size=min(batch_size, num_rows),
        train_steps=steps,
        valid_rows=epochs * data.x_valid.shape[0],
      )
    whole = (space.max_width,) * (space.length - 1)
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
    the_plan = plan(layers, epochs * num_steps)
    if on_plan:
      on_plan(the_plan)
    return _run(programs, the_plan, work, layout, on_child)

  return train


def _run(
  programs: "_Programs",
  plan: Plan,
  work: _Round,
  layout: Layout,
  on_child: OnChild | None,
) -> list[Child]:
  """Runs the groups of a plan, several at once, and gives the children in order."""
  vmapped = layout == "padded" or jax.default_backend() != "cpu"
  jobs: list[Group] = []
  for group in plan.groups:
    if vmapped and group.program.frame:
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

  children: dict[int, Child] = {}
  # Worker threads also when there is one: the main thread only waits, so Ctrl-C is
  # answered at once.
  workers = concurrent.futures.ThreadPoolExecutor(_cores())
  try:
    running = [
      workers.submit(_train_group, programs, job, work, vmapped) for job in jobs
    ]
    for future in concurrent.futures.as_completed(running):
      for i, child in future.result():
        children[i] = child
        if on_child:
          on_child(i, child)
  finally:
    work.cancelled.set()
    workers.shutdown(wait=False, cancel_futures=True)
  return [children[i] for i in range(len(work.layers))]


def _cores() -> int:
  """Cores that this process may use."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


class _Programs:
  """The compiled programs of one trainer."""

  def __init__(
    self, space: MLPChain, task: Task, data: DeviceData, num_outputs: int
  ) -> None:
    self.data = data
    self.sizes = (data.x_train.shape[1], num_outputs)
    self._space, self._task = space, task
    self._lock = threading.Lock()
    self._compiled: dict[Any, concurrent.futures.Future] = {}
    self.judge = jax.jit(functools.partial(judge, task))

  def known(self) -> set[Program]:
    """Programs compiled before."""
    with self._lock:
      return {
        program
        for (program, *_), future in self._compiled.items()
        if future.done() and future.exception() is None
      }

  def get(self, program: Program, vmapped: bool, *arguments: Any) -> Callable:
    """The compiled epoch of a program; the first who asks compiles it.

    Args:
      program: which.
      vmapped: over the leading axis of state, slots and seed.
      *arguments: those of the epoch, for their shapes.
    """
    key = (program, arguments[0].weights.shape)
    with self._lock:
      mine = key not in self._compiled
      if mine:
        self._compiled[key] = concurrent.futures.Future()
      future = self._compiled[key]
    if mine:
      try:
        epoch = self._epoch(program)
        if vmapped:
          epoch = self._of_population(epoch)
        future.set_result(jax.jit(epoch).lower(*arguments).compile())
      except BaseException as error:
        future.set_exception(error)
        with self._lock:
          del self._compiled[key]
    return future.result()

  def _epoch(self, program: Program) -> Callable:
    """`epoch(state, slots, seeds, rows, schedule, data)`; see `step.make_epoch`.

    Exact programs have no slots.
    """
    features, outputs = self.sizes
    sizes = [features, *program.widths, outputs]
    template = [
      {
        "kernel": jax.ShapeDtypeStruct((i, o), np.float32),
        "bias": jax.ShapeDtypeStruct((o,), np.float32),
      }
      for i, o in zip(sizes[:-1], sizes[1:])
    ]

    def epoch(state, slots, *rest):
      def apply(weights, x, seed):
        if program.layers is not None:
          return mlp.apply(weights, program.layers, x, seed)
        return mlp.apply_framed(weights, slots, x, seed)

      return make_epoch(apply, self._task, template)(state, *rest)

    return epoch

  def _of_population(self, epoch: Callable) -> Callable:
    """The same for a population, which judges itself: outputs would be large."""

    def judged(state, slots, seeds, rows, schedule, data):
      state, losses, outputs = epoch(state, slots, seeds, rows, schedule, data)
      return state, judge(self._task, losses, outputs, data.y_valid)

    return jax.vmap(judged, in_axes=(0, 0, 0, None, None, None))


def _train_group(
  programs: _Programs, group: Group, work: _Round, vmapped: bool
) -> list[tuple[int, Child]]:
  """Trains the children of one group together: as one vmapped program, or one child."""
  members = np.array(group.members)
  num_epochs = len(work.batches)
  try:
    trainer = _GroupTrainer(programs, group.program, members, work, vmapped)
    trainer.run()
    return [(int(i), trainer.child(row)) for row, i in enumerate(members)]
  except jax.errors.JaxRuntimeError as error:  # out of memory, for one
    reason = str(error).splitlines()[0][:200]
    nothing = np.full(num_epochs, np.nan, np.float32)
    return [
      (int(i), Child(work.layers[i], None, nothing, nothing, 0, 0, 0.0, reason))
      for i in members
    ]


class _GroupTrainer:
  """The epochs of one group."""

  def __init__(
    self,
    programs: _Programs,
    program: Program,
    members: np.ndarray,
    work: _Round,
    vmapped: bool,
  ) -> None:
    self._programs, self._program, self._work = programs, program, work
    self._members, self._vmapped = members, vmapped and program.frame is not None
    self._book = EarlyStopping(len(members), len(work.batches), work.hyper)
    self._template: mlp.Weights = []
    self._best: Any = None  # [N], or [P, N] when vmapped
    self.seconds = 0.0

  def _initial(self, row: int) -> np.ndarray:
    """`[N]` weights of one member before training."""
    work, sizes = self._work, self._programs.sizes
    i = self._members[row]
    weights = mlp.init(work.init_seeds[i], work.layers[i], *sizes)
    if work.load:
      weights = work.load(work.layers[i], weights)
    if self._program.frame:
      weights = mlp.pad(weights, work.layers[i], self._program.frame, sizes[1])
    self._template = weights
    return ravel(weights)

  def run(self) -> None:
    """Trains until every member is done."""
    work, rows = self._work, np.arange(len(self._members))
    flat = np.stack([self._initial(row) for row in range(len(rows))])
    slots = None
    if self._program.frame:
      each = [mlp.slots_of(work.layers[i], self._program.frame) for i in self._members]
      slots = jax.tree.map(lambda *leaves: np.stack(leaves), *each)
    step = np.arange(work.schedule.first.size, dtype=np.uint32)
    seeds = counter.fold(work.dropout_seeds[self._members, None], step[None])
    if not self._vmapped:
      flat, slots, seeds = jax.tree.map(lambda leaf: leaf[0], (flat, slots, seeds))
    num_epochs, num_steps = work.schedule.first.shape

    def inputs(epoch: int):
      now = slice(epoch * num_steps, (epoch + 1) * num_steps)
      schedule = jax.tree.map(lambda sizes: sizes[epoch], work.schedule)
      return slots, seeds[..., now], work.batches[epoch], schedule, data

    data, state = self._programs.data, start(flat)
    program = self._programs.get(self._program, self._vmapped, state, *inputs(0))
    begin = time.perf_counter()
    for epoch in range(num_epochs):
      active = rows[self._book.active]
      if work.cancelled.is_set() or not len(active):
        break
      state, *measured = program(state, *inputs(epoch))
      if self._vmapped:
        (result,) = measured
      else:
        result = self._programs.judge(*measured, data.y_valid)
      result = EpochResult(*(np.asarray(v).reshape(-1)[active] for v in result))
      better = active[self._book.record(active, result)]
      if not self._vmapped:
        self._best = state.weights if len(better) else self._best
      elif self._best is None:
        self._best = state.weights
      elif len(better):
        self._best = _replace_rows(self._best, state.weights, np.isin(rows, better))
    self.seconds = (time.perf_counter() - begin) / len(rows)

  def child(self, row: int) -> Child:
    """What a member's training left."""
    book, layers = self._book, self._work.layers[self._members[row]]
    failed, epochs_run = bool(book.diverged[row]), int(book.epochs_run[row])
    weights = None
    if not failed and self._best is not None:
      flat = np.asarray(self._best[row] if self._vmapped else self._best)
      weights = unravel(flat, self._template)
      if self._program.frame:
        weights = mlp.cut(weights, layers)
    return Child(
      layers=layers,
      weights=weights,
      curve=book.curve[row],
      valid_loss=book.valid_loss[row],
      epochs_run=epochs_run,
      best_epoch=int(book.best_epoch[row]),
      seconds=self.seconds,
      failure=f"diverged in epoch {epochs_run}" if failed else None,
    )


@jax.jit
def _replace_rows(old: jax.Array, new: jax.Array, which: jax.Array) -> jax.Array:
  return jnp.where(which[:, None], new, old)


def device_data(train: Sequence, valid: Sequence) -> DeviceData:
  """Puts `(x, y)` of the two splits on the device, once."""
  return DeviceData(*map(jnp.asarray, (*train, *valid)))
