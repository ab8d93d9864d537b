"""A population whose children are trained by Ray's workers, each by itself.

The strategy stays here. A child is a task: it runs on any worker of the cluster, and is
run again where its worker is lost, so that a round costs a retry and not itself. Each
runs in a program of its own architecture, so a result depends neither on how many
workers there are nor on which of them had it.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nasjax.core import interrupts
from nasjax.core import keys as keys_lib
from nasjax.core.types import InputError
from nasjax.networks import mlp
from nasjax.spaces.mlp_chain import MLPChain
from nasjax.training import packing
from nasjax.training import planned as planned_lib
from nasjax.training.children import Child, LoadWeights
from nasjax.training.losses import Task
from nasjax.training.packing import Layout
from nasjax.training.population import (
  OnChild,
  OnPlan,
  child_seeds,
  device_data,
  population_trainer,
)
from nasjax.training.profile import ANY, DeviceProfile
from nasjax.training.step import DeviceData, Hyper

_LAYOUTS = ("auto", "exact")
_POLL_SECONDS = 1.0


class _Work(NamedTuple):
  """What a worker makes its trainer of: sent to each once."""

  space: MLPChain
  task: Task
  train: tuple[np.ndarray, np.ndarray]
  valid: tuple[np.ndarray, np.ndarray]
  num_outputs: int
  options: dict[str, Any]


# Of this worker's process, by the name of the work: programs are kept between children.
_TRAINERS: dict[str, Callable[..., list[Child]]] = {}


def train_child(
  name: str,
  work: _Work,
  key_data: np.ndarray,
  genotype: np.ndarray,
  hyper: Hyper,
  weights: mlp.Weights | None,
  before: Child | None,
  keep: bool,
) -> Child:
  """The task: trains one child in this process.

  Args:
    name: of the work, the same for all children of a job.
    work: see `_Work`.
    key_data: of the round's key.
    genotype: `[D]`.
    hyper: of the round.
    weights: to begin with, where they are not fresh ones.
    before: the child as it was paused.
    keep: see `population_trainer`.
  """
  if name not in _TRAINERS:
    _TRAINERS.clear()  # another job's rows are not kept
    _TRAINERS[name] = population_trainer(
      work.space,
      work.task,
      device_data(work.train, work.valid),
      work.num_outputs,
      layout="exact",
      **work.options,
    )
  (child,) = _TRAINERS[name](
    jax.random.wrap_key_data(jnp.asarray(key_data)),
    genotype[None],
    hyper,
    load=None if weights is None else lambda layers, fresh: weights,
    before=() if before is None else (before,),
    keep=keep,
  )
  return child


def ray_trainer(
  ray: Any,
  space: MLPChain,
  task: Task,
  data: DeviceData,
  num_outputs: int,
  *,
  epochs: int,
  batch_size: int,
  layout: Layout = "auto",
  device_profile: DeviceProfile | None = None,
  num_devices: int | None = None,
  memory_limit_gb: float | None = None,
  compute_dtype: str = "float32",
  share_programs: bool = False,
  log: Callable[[str], None] = lambda message: None,
  task_options: Mapping[str, Any] = MappingProxyType({}),
) -> Callable[..., list[Child]]:
  """Builds what `population_trainer` builds, on Ray's workers.

  Its arguments are those of `population_trainer`, and these:

  Args:
    ray: the module, connected (`parallel.ray_cluster`).
    space: the space of the genotypes.
    task: loss and metric.
    data: rows.
    num_outputs: C.
    epochs: T, at most.
    batch_size: B.
    layout: "auto" or "exact": children are not trained together.
    device_profile: what a plan's expected seconds are told by.
    num_devices: not used: a child has one device.
    memory_limit_gb: not used.
    compute_dtype: of activations and gradients.
    share_programs: not used: a worker's processes keep theirs.
    log: not used.
    task_options: of `ray.remote`: what a child takes of a machine (as many run at once
      as the cluster has room for), and how often one is tried whose worker was lost.

  Returns:
    `train`, with the arguments and the results of that of `population_trainer`. A child
    whose worker was lost more often is one that failed.

  Raises:
    InputError: for a layout of children that are trained together.
  """
  del num_devices, memory_limit_gb, share_programs, log
  if layout not in _LAYOUTS:
    raise InputError(
      f"on Ray every child is a program of its own: layout may be "
      f"{' or '.join(_LAYOUTS)}, not {layout}"
    )
  options = dict(epochs=epochs, batch_size=batch_size, compute_dtype=compute_dtype)
  x_train, y_train, x_valid, y_valid = map(np.asarray, data)
  num_rows, num_features = x_train.shape
  shared = ray.put(
    _Work(space, task, (x_train, y_train), (x_valid, y_valid), num_outputs, options)
  )
  name = shared.hex()
  remote = ray.remote(**{"num_cpus": 1, **task_options})(train_child)
  whole = (space.max_width,) * (space.length - 1)

  def plan(layers, num_epochs, num_steps, state) -> packing.Plan:
    cost = packing.CostModel(
      profile=planned_lib.profile_of(state) if state else device_profile or ANY,
      num_features=num_features,
      num_outputs=num_outputs,
      batch_size=min(batch_size, num_rows),
      train_steps=num_epochs * num_steps,
      valid_rows=num_epochs * len(x_valid),
    )
    known = planned_lib.programs_of(state, space) if state else ()
    return packing.make_plan(layers, known, cost, "exact", whole)

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
  ) -> list[Child]:
    genotypes = np.asarray(genotypes, np.int32)
    layers = [space.layers(genotype) for genotype in genotypes]
    num_steps = num_rows // min(batch_size, num_rows)
    done = before[0].epochs_run if before else 0
    if on_plan:
      on_plan(plan(layers, hyper.num_epochs(epochs) - done, num_steps, planned))
    weights: list[mlp.Weights | None] = [None] * len(layers)
    if load:
      (init_key,) = keys_lib.named(key, "init")
      seeds = np.asarray(child_seeds(init_key, genotypes))
      weights = [
        load(chain, mlp.init(seed, chain, num_features, num_outputs))
        for chain, seed in zip(layers, seeds)
      ]
    key_data = np.asarray(jax.random.key_data(key))
    of = {}
    for i, genotype in enumerate(genotypes):
      earlier = before[i] if before else None
      what = key_data, genotype, hyper, weights[i], earlier, keep
      of[remote.remote(name, shared, *what)] = i
    children: dict[int, Child] = {}
    left = list(of)
    try:
      while left:
        ready, left = ray.wait(left, timeout=_POLL_SECONDS)
        interrupts.check()
        for ref in ready:
          i = of[ref]
          try:
            children[i] = ray.get(ref)
          except (
            ray.exceptions.WorkerCrashedError,
            ray.exceptions.OutOfMemoryError,  # Ray ended the worker, not the child
          ):
            children[i] = _lost(layers[i], epochs)
          if on_child:
            on_child(i, children[i])
    finally:
      for ref in left:
        ray.cancel(ref, force=True)
    return [children[i] for i in range(len(layers))]

  return train


def _lost(layers, epochs: int) -> Child:
  nothing = np.full(epochs, np.nan, np.float32)
  reason = "its worker was lost more often than it may be tried again"
  return Child(layers, None, nothing, nothing, 0, 0, 0.0, reason, True)
