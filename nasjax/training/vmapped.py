"""Children of one framed program, trained as one vmapped population."""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nasjax.networks import mlp
from nasjax.training.children import Child, Round, exact_of
from nasjax.training.packing import Group
from nasjax.training.programs import Programs
from nasjax.training.step import EpochResult, TrainState


def train_together(
  programs: Programs,
  work: Round,
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
  template = work.state(members[0], program, programs.bounds)
  num_weights = sum(leaf.size for leaf in jax.tree.leaves(template.weights))
  all_seeds = np.stack([work.step_seeds(i) for i in members])
  each = [mlp.slots_of(work.layers[i], program.frame) for i in members]
  all_slots = jax.tree.map(lambda *leaves: np.stack(leaves), *each)
  num_epochs, data = len(work.batches), programs.data_everywhere

  def arguments(epoch: int):
    slots = jax.tree.map(lambda leaf: leaf[current], all_slots)
    return slots, *work.inputs(epoch, all_seeds[current]), data

  shapes = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct((width, *leaf.shape), np.float32), template
  )
  # Beside the program: the best weights and their replacement; on a CPU, where the
  # host's memory is the device's, also the initial state.
  copies = 5 if jax.default_backend() == "cpu" else 2
  copy_bytes = 4 * num_weights * width / devices
  needed, most, why = (3 + copies) * copy_bytes, -(-len(members) // devices), ""
  if needed > limit and most > 1 and not part_width:
    # A TPU's compiler takes minutes to find out that the state alone is too large: it
    # is not asked, and the gradient is counted too.
    needed += copy_bytes
  else:
    try:
      compiled = programs.get(program, width, shapes, *arguments(0))
      needed = 0 if part_width else compiled.bytes + copies * copy_bytes
    except jax.errors.JaxRuntimeError as error:  # it counts for itself
      if "RESOURCE_EXHAUSTED" not in str(error) or most == 1:
        raise
      needed, why = 2 * limit, "do not fit on the device"
  parts = min(math.ceil(needed / limit), most)
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

  state, best = _gather(programs, work, group, current)
  book = work.book(list(group.members))
  kept: list[mlp.Weights | None] = [None] * len(members)
  seconds = 0.0
  for epoch in range(book.epochs_run.min(), num_epochs):
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
  paused: list[TrainState | None] = [None] * len(members)
  if work.keep:  # whoever can be trained on is there to the end
    _keep(paused, state, current)
  bounds = programs.bounds
  for row, i in enumerate(group.members):
    layers, mine, last = work.layers[i], kept[row], paused[row]
    exact = None if mine is None else exact_of(mine, layers, program, bounds)
    if last is not None:
      last = TrainState(*(exact_of(part, layers, program, bounds) for part in last))
    yield i, work.child(i, book, row, exact, last, seconds)


def _gather(
  programs: Programs, work: Round, group: Group, current: np.ndarray
) -> tuple[TrainState, Any]:
  """The states `[width, ...]` of a group's children where training begins or goes on,
  and the best weights so far; None where there are none."""
  program, bounds = group.program, programs.bounds

  def stacked(one: Callable[[int], Any]) -> Any:
    first = one(group.members[current[0]])
    whole = jax.tree.map(
      lambda leaf: np.empty((len(current), *leaf.shape), np.float32), first
    )
    for row, member in enumerate(current):
      part = one(group.members[member])
      jax.tree.map(lambda all_, leaf, row=row: all_.__setitem__(row, leaf), whole, part)
    return whole

  state = stacked(lambda i: work.state(i, program, bounds))
  if all(work.best(i) is None for i in group.members):
    return state, None
  return state, stacked(lambda i: work.best_form(i, program, bounds))


def _keep(kept: list[Any], best: Any, current: np.ndarray) -> None:
  """Brings weights or states `[P, ...]` of the current children to the host."""
  if best is None:
    return
  host = jax.tree.map(np.asarray, best)
  # A dummy repeats a member and is not looked at: the first row of each counts.
  for row in reversed(range(len(current))):
    # A view would hold on to all of them.
    kept[current[row]] = jax.tree.map(lambda leaf, row=row: leaf[row].copy(), host)


@jax.jit
def _replace_rows(old: Any, new: Any, which: jax.Array) -> Any:
  """Pytrees `[P, ...]`: the rows of `new` where `which [P]`, else those of `old`."""

  def one(old, new):
    return jnp.where(which.reshape(-1, *[1] * (new.ndim - 1)), new, old)

  return jax.tree.map(one, old, new)
