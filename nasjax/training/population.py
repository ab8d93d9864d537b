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
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import psutil

from nasjax.core import counter, interrupts
from nasjax.core import keys as keys_lib
from nasjax.core.types import InputError
from nasjax.networks import mlp, tiled
from nasjax.spaces.mlp_chain import Layer, MLPChain
from nasjax.training import packing
from nasjax.training import planned as planned_lib
from nasjax.training import profile as profile_lib
from nasjax.training.children import Child, LoadWeights, Round, exact_of
from nasjax.training.kept_children import KeptChildren, Shelf
from nasjax.training.losses import Task
from nasjax.training.packing import LAYOUTS, TILED, Group, Layout, Plan, Program
from nasjax.training.programs import MOST_TILE_BYTES, Programs, population_mesh
from nasjax.training.step import DeviceData, Hyper, TrainState, epoch_batches
from nasjax.training.vmapped import train_together

DTYPES = ("float32", "bfloat16")
OnChild = Callable[[int, Child], None]
OnPlan = Callable[[Plan], None]
Takes = Callable[[Group], bool]


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
  share_programs: bool = False,
  kept: KeptChildren | None = None,
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
    device_profile: what the planner believes of the device; None for `profile_for`.
    num_devices: over how many devices a vmapped population is sharded; None for all.
    memory_limit_gb: what a vmapped population may take of each device; None for nine
      tenths of what is free. What does not fit is trained in parts.
    compute_dtype: "float32", or "bfloat16" for activations and gradients.
    share_programs: keep compiled programs for other trainers in this process whose rows
      have the same shapes. Where there are several kinds of program the plan then
      depends on what was run before.
    kept: where children are kept as they are done, and found by a job that goes on.
      Those of one vmapped program are found together or not at all: with fewer beside
      it a child's last bits may differ.
    log: called with a line when a population is split or a part of it was kept.

  Returns:
    `train(key, genotypes [P, D], hyper, load=None, on_child=None, on_plan=None,
    before=(), keep=False, planned=None, share=None) -> list[Child]`.
    `load(layers, fresh)` may replace a child's fresh weights (one-shot);
    `on_child(i, child)` is called as each child is done, in the order in which they
    are; `on_plan(plan)` before the first starts. `before` are children of the same key
    and as many epochs that are to be trained on, from where they were paused, or, where
    that was not kept, from the start, which gives the same. `keep` keeps it, if it
    takes less than a quarter of the free memory. Compiled programs are kept between
    calls; a plan knows of those, or, where `planned` is given, of what that says.
    `share(plan, vmapped)` gives the part of it that may be trained here, and a function
    that is asked, when the turn of a job has come, whether nobody else has taken it;
    the results are of what was trained here, in the order of the genotypes.

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
  whole = (space.max_width,) * (space.length - 1)
  programs = Programs(
    task,
    data,
    num_outputs,
    population_mesh(num_devices),
    None if compute_dtype == "float32" else jnp.dtype(compute_dtype),
    whole,
    share_programs,
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

  @functools.cache
  def profile() -> profile_lib.DeviceProfile:
    return device_profile or profile_for(layout)

  def plan(
    chains: list[tuple[Layer, ...]],
    num_epochs: int,
    steps: int,
    state: planned_lib.Planned | None,
  ) -> Plan:
    cost = packing.CostModel(
      profile=planned_lib.profile_of(state) if state else profile(),
      num_features=data.x_train.shape[1],
      num_outputs=num_outputs,
      batch_size=min(batch_size, num_rows),
      train_steps=num_epochs * steps,
      valid_rows=num_epochs * data.x_valid.shape[0],
      vmapped=vmapped,
      tiled=programs.can_tile,
    )
    known = planned_lib.programs_of(state, space) if state else programs.known()
    return packing.make_plan(chains, known, cost, layout, whole)

  def train(
    key: jax.Array,
    genotypes: np.ndarray,
    hyper: Hyper,
    load: LoadWeights | None = None,
    on_child: OnChild | None = None,
    on_plan: OnPlan | None = None,
    before: Sequence[Child] = (),
    keep: bool = False,
    planned: planned_lib.Planned | None = None,
    share: Callable[[Plan, bool], tuple[Plan, Takes]] | None = None,
  ) -> list[Child]:
    init_key, train_key, batch_key = keys_lib.named(key, "init", "train", "batches")
    genotypes = np.asarray(genotypes, np.int32)
    layers = [space.layers(genotype) for genotype in genotypes]
    batches_TSB = np.asarray(epoch_batches(batch_key, num_rows, batch_size, epochs))
    batches = [jnp.asarray(rows) for rows in batches_TSB]
    num_steps = batches[0].shape[0]
    state_bytes = 12 * sum(
      mlp.num_params(chain, data.x_train.shape[1], num_outputs) for chain in layers
    )
    done = before[0].epochs_run if before else 0
    the_plan = plan(layers, hyper.num_epochs(epochs) - done, num_steps, planned)
    if on_plan:
      on_plan(the_plan)
    takes: Takes | None = None
    if share:
      the_plan, takes = share(the_plan, vmapped)
    mine = [i for group in the_plan.groups for i in group.members]
    if not all(before[i].paused and before[i].epochs_run for i in mine if before):
      before = ()
    work = Round(
      layers=layers,
      init_seeds=np.asarray(child_seeds(init_key, genotypes)),
      dropout_seeds=np.asarray(child_seeds(train_key, genotypes)),
      batches=batches,
      hyper=hyper,
      schedule=hyper.schedule(epochs, num_steps),
      load=load,
      before=list(before) or [None] * len(layers),
      keep=keep and state_bytes < psutil.virtual_memory().available / 4,
      cancelled=threading.Event(),
    )
    together = functools.partial(train_together, programs, work, limit, log)
    one_program = together if vmapped else None
    jobs = _jobs(the_plan, vmapped)
    shelf = None
    if kept:
      programs_of = {
        i: f"{job.program} {len(job.members)}" for job in jobs for i in job.members
      }
      shelf = kept.shelf(key, genotypes, layers, programs_of, hyper, done)
      if there := sum(len(job.members) for job in jobs if shelf.has(job.members)):
        log(f"{there} of {len(mine)} children were done before, and kept")
    found = _run(programs, jobs, work, one_program, takes, shelf, on_child)
    return [found[i] for i in sorted(found)]

  return train


def profile_for(layout: Layout) -> profile_lib.DeviceProfile:
  """What a planner believes of this device: measured, or read from the user's cache
  folder; where the layout leaves nothing to weigh, nothing is measured."""
  if layout in ("exact", "padded", "tiled"):
    return profile_lib.ANY
  return profile_lib.load_or_measure()


@jax.jit
def child_seeds(key: jax.Array, genotypes: jax.Array) -> jax.Array:
  """`[P]` uint32."""
  return jax.vmap(counter.seed)(keys_lib.for_genotypes(key, genotypes))


def _free_bytes() -> float:
  """Nine tenths of the memory that one device has free."""
  stats = jax.local_devices()[0].memory_stats()
  if stats and "bytes_limit" in stats:
    return 0.9 * (stats["bytes_limit"] - stats.get("bytes_in_use", 0))
  return 0.9 * psutil.virtual_memory().available / jax.local_device_count()


def _jobs(plan: Plan, vmapped: bool) -> list[Group]:
  """What is trained at once: a framed program's children where it is vmapped, else one
  child."""
  jobs: list[Group] = []
  for group in plan.groups:
    if vmapped and group.program.frame:
      jobs.append(group)
    else:
      jobs += [Group(group.program, (i,)) for i in group.members]
  return jobs


def _run(
  programs: Programs,
  jobs: list[Group],
  work: Round,
  together: Callable[[Group], Iterator[tuple[int, Child]]] | None,
  takes: Takes | None,
  shelf: Shelf | None,
  on_child: OnChild | None,
) -> dict[int, Child]:
  """Runs jobs, several at once, and gives their children by number."""
  # What is there already comes first, before another process takes it. Then the first
  # of every program before the rest, the longest first: so a program is compiled by the
  # time that others want it, and no long one is left to the end.
  num_features = programs.data.x_train.shape[1]
  seen: set[Program] = set()
  rank = []
  for job in jobs:
    widths = mlp.dense_widths(work.layers[job.members[0]])
    size = packing.products(job.program, widths, num_features)
    there = shelf is not None and shelf.has(job.members)
    rank.append((not there, job.program in seen, -size))
    if not there:
      seen.add(job.program)
  jobs = [jobs[i] for i in sorted(range(len(jobs)), key=rank.__getitem__)]

  def train(job: Group) -> list[tuple[int, Child]]:
    if takes and not takes(job):
      return []
    if shelf and (there := shelf.get(job.members)):
      return there
    try:
      if together and job.program.frame:
        with programs.one_population:  # each may take all the memory there is
          made = list(together(job))
      else:
        made = [(i, train_alone(programs, work, job.program, i)) for i in job.members]
    except jax.errors.JaxRuntimeError as error:  # out of memory, for one
      reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
      nothing = np.full(len(work.batches), np.nan, np.float32)
      return [
        (i, Child(work.layers[i], None, nothing, nothing, 0, 0, 0.0, reason, True))
        for i in job.members
      ]
    if shelf and not work.cancelled.is_set():  # then they may not be at their end
      shelf.put(made)
    return made

  children: dict[int, Child] = {}
  # Worker threads also when there is one: the main thread only waits, so Ctrl-C is
  # answered at once.
  workers = concurrent.futures.ThreadPoolExecutor(profile_lib.cores())
  try:
    running = [workers.submit(train, job) for job in jobs]
    left = set(running)
    while left:
      done, left = concurrent.futures.wait(
        left, 1.0, concurrent.futures.FIRST_COMPLETED
      )
      for future in done:
        for i, child in future.result():
          children[i] = child
          if on_child:
            on_child(i, child)
      interrupts.check()
  finally:
    work.cancelled.set()
    workers.shutdown(wait=False, cancel_futures=True)
  return children


def train_alone(programs: Programs, work: Round, program: Program, i: int) -> Child:
  """Trains child i by itself, in a program that is not vmapped."""
  layers, seeds, bounds = work.layers[i], work.step_seeds(i), programs.bounds
  slots: Any = None
  if program.frame:
    slots = mlp.slots_of(layers, program.frame)
  elif program == TILED:
    slots = tiled.map_of(layers, bounds)
  state, book = work.state(i, program, bounds), work.book([i])
  num_epochs, data = len(work.batches), programs.data
  best, better, me = work.best(i), None, np.array([0])
  epoch_of = programs.get(program, 0, state, slots, *work.inputs(0, seeds), data).run
  begin = time.perf_counter()
  for epoch in range(book.epochs_run[0], num_epochs):
    if work.cancelled.is_set() or not book.active[0]:
      break
    inputs = work.inputs(epoch, seeds)
    state, losses, outputs = epoch_of(state, slots, *inputs, data)
    if book.record(me, programs.judge(losses, outputs, data.y_valid))[0]:
      better = state.weights
      if program == TILED:  # the next epoch takes over the memory of a tiled state
        best, better = exact_of(better, layers, program, bounds), None
  seconds = time.perf_counter() - begin
  if better is not None:
    best = exact_of(better, layers, program, bounds)
  kept = None
  if work.keep:
    kept = TrainState(*(exact_of(part, layers, program, bounds) for part in state))
  return work.child(i, book, 0, best, kept, seconds)


def device_data(train: Sequence, valid: Sequence) -> DeviceData:
  """Puts `(x, y)` of the two splits on the device, once."""
  return DeviceData(*map(jnp.asarray, (*train, *valid)))
