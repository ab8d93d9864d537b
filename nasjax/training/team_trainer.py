"""A population whose children are trained by the processes of a team, a part by each.

The leader plans a round as if it were alone, and every process trains a part of the
plan on the devices of its own machine. Where children take turns a process takes the
longest that nobody has; where they are trained together they are shared out before. A
child is trained in the program of the plan whoever has it, so its result is what one
process would find.
What a child that is paused at a rung takes to go on stays where it was trained.
"""

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from nasjax.core import keys as keys_lib
from nasjax.core import trees
from nasjax.core.types import InputError
from nasjax.networks import mlp
from nasjax.spaces.mlp_chain import Layer, MLPChain
from nasjax.training import packing
from nasjax.training.children import Child, LoadWeights, Paused
from nasjax.training.losses import Task
from nasjax.training.packing import Group, Plan
from nasjax.training.planned import Planned
from nasjax.training.population import (
  OnChild,
  OnPlan,
  Takes,
  child_seeds,
  population_trainer,
)
from nasjax.training.step import DeviceData, Hyper, TrainState


class Team(Protocol):
  """What this needs of `parallel.processes.Team`."""

  number: int
  count: int

  def send(self, to: int, message: Any) -> None:
    """Leaves a message for a process."""

  def receive(self, sender: int) -> Any:
    """The next message of a process; None when the job is over."""

  def take(self, name: str) -> bool:
    """Whether this process is the first of all that asks for a name."""


def share_out(
  plan: Plan, chains: Sequence[tuple[Layer, ...]], num_features: int, count: int
) -> list[list[int]]:
  """The children of each process: the longest first, to whoever has least to do
  (Graham's rule, at most 4/3 of the best there is).

  Those of a program for one architecture alone stay together: it is compiled once.

  Args:
    plan: of a round.
    chains: `[P]` layers of each child.
    num_features: F.
    count: of processes.
  """
  parts = []
  for group in plan.groups:
    each = [(i,) for i in group.members]
    for members in [group.members] if group.program.layers is not None else each:
      widths = mlp.dense_widths(chains[members[0]])
      size = packing.products(group.program, widths, num_features)
      parts.append((-size * len(members), members))
  shares: list[list[int]] = [[] for _ in range(count)]
  busy = [0] * count
  for size, members in sorted(parts):
    least = busy.index(min(busy))
    shares[least] += members
    busy[least] -= size
  return [sorted(share) for share in shares]


def team_trainer(
  team: Team,
  space: MLPChain,
  task: Task,
  data: DeviceData,
  num_outputs: int,
  *,
  epochs: int,
  batch_size: int,
  identity: str = "",
  wants_weights: bool = True,
  **options: Any,
) -> Callable[..., list[Child]]:
  """Builds what `population_trainer` builds, over the processes of a team.

  To be called by the leader, while the others are in `serve` with the same arguments.

  Args:
    team: the processes.
    space: see `population_trainer`, as are the others.
    task: loss and metric.
    data: rows.
    num_outputs: C.
    epochs: T, at most.
    batch_size: B.
    identity: of the job; the other processes must have the same.
    wants_weights: whether trained weights are sent to the leader; else those of the
      children of other processes are None.
    **options: of `population_trainer`.

  Returns:
    `train`, with the arguments and the results of that of `population_trainer`.
  """
  inner = population_trainer(
    space, task, data, num_outputs, epochs=epochs, batch_size=batch_size, **options
  )
  others = range(1, team.count)
  for other in others:
    team.send(other, {"identity": identity, "rows": trees.digest(data)})
  num_features, rounds = data.x_train.shape[1], [0]
  owners: dict[bytes, int] = {}  # of children that are paused

  def train(
    key: jax.Array,
    genotypes: np.ndarray,
    hyper: Hyper,
    load: LoadWeights | None = None,
    on_child: OnChild | None = None,
    on_plan: OnPlan | None = None,
    before: Sequence[Child] = (),
    keep: bool = False,
    planned: Planned | None = None,
  ) -> list[Child]:
    genotypes = np.asarray(genotypes, np.int32)
    layers = [space.layers(genotype) for genotype in genotypes]
    number, rounds[0] = rounds[0], rounds[0] + 1
    sent: list[Sequence[int] | None] = []  # the children of each process

    def share(plan: Plan, vmapped: bool) -> tuple[Plan, Takes]:
      if before:
        owner = [owners[genotype.tobytes()] for genotype in genotypes]
        of = [[i for i, o in enumerate(owner) if o == p] for p in range(team.count)]
        sent.extend(of)
      elif vmapped or load:
        sent.extend(share_out(plan, layers, num_features, team.count))
      else:
        sent.extend([None] * team.count)
      for other in others:
        members = sent[other]
        work = {
          "number": number,
          "key": np.asarray(jax.random.key_data(key)),
          "genotypes": genotypes,
          "hyper": dict(hyper._asdict()),
          "members": None if members is None else np.array(members, np.int32),
          "weights": loaded(members or ()) if load else None,
          "epochs_run": before[0].epochs_run if before else 0,
          "keep": keep,
          "wants_weights": wants_weights,
          "planned": None if planned is None else dict(planned._asdict()),
        }
        team.send(other, work)
      return _part(team, number, plan, sent[0])

    def loaded(members: Sequence[int]) -> dict[str, mlp.Weights]:
      assert load is not None
      (init_key,) = keys_lib.named(key, "init")
      seeds = np.asarray(child_seeds(init_key, genotypes))
      return {
        str(i): load(
          layers[i], mlp.init(seeds[i], layers[i], num_features, num_outputs)
        )
        for i in members
      }

    children: dict[int, Child] = {}
    owner_of: dict[int, int] = {}

    def finish(i: int, child: Child, process: int = 0) -> None:
      children[i], owner_of[i] = child, process
      if on_child:
        on_child(i, child)

    inner(key, genotypes, hyper, load, finish, on_plan, before, keep, planned, share)
    for other in others:
      for i, child in team.receive(other)["children"].items():
        finish(int(i), _unpacked(layers[int(i)], child), other)
    owners.clear()
    if keep:
      owners.update(
        (genotypes[i].tobytes(), process) for i, process in owner_of.items()
      )
    return [children[i] for i in range(len(layers))]

  return train


def serve(
  team: Team,
  space: MLPChain,
  task: Task,
  data: DeviceData,
  num_outputs: int,
  *,
  epochs: int,
  batch_size: int,
  identity: str = "",
  **options: Any,
) -> None:
  """Trains what the leader sends, until the job is over.

  Args:
    team: the processes.
    space: see `population_trainer`, as are the others.
    task: loss and metric.
    data: rows.
    num_outputs: C.
    epochs: T, at most.
    batch_size: B.
    identity: of the job.
    **options: of `population_trainer`.

  Raises:
    InputError: this process is of another job than the leader, or has read other rows.
  """
  inner = population_trainer(
    space, task, data, num_outputs, epochs=epochs, batch_size=batch_size, **options
  )
  first = team.receive(0)
  if first is None:
    return
  if first["identity"] != identity:
    raise InputError(
      "it was started with other flags, versions or devices than process 0: all must "
      "be equal but for the number in --config.distributed"
    )
  if first["rows"] != trees.digest(data):
    raise InputError(
      "it has read other rows than process 0: the data of all machines must be equal"
    )
  paused: dict[bytes, Child] = {}
  while (work := team.receive(0)) is not None:
    genotypes, members = np.asarray(work["genotypes"]), work["members"]
    weights, planned = work["weights"], work["planned"]
    before: list[Child] = []
    if work["epochs_run"]:
      nothing = _elsewhere(epochs, work["epochs_run"])
      before = [paused.get(genotype.tobytes(), nothing) for genotype in genotypes]
    load = None
    if weights is not None:
      by_layers = {space.layers(genotypes[int(i)]): w for i, w in weights.items()}
      load = _loader(by_layers)
    children: dict[int, Child] = {}
    inner(
      jax.random.wrap_key_data(jnp.asarray(work["key"])),
      genotypes,
      Hyper(**work["hyper"]),
      load=load,
      on_child=children.__setitem__,
      before=before,
      keep=work["keep"],
      planned=None if planned is None else Planned(**planned),
      share=functools.partial(_share, team, work["number"], members),
    )
    paused = {genotypes[i].tobytes(): child for i, child in children.items()}
    wants_weights = work["wants_weights"]
    packed = {str(i): _packed(c, wants_weights) for i, c in children.items()}
    team.send(0, {"children": packed})


def _share(team, number, members, plan: Plan, vmapped: bool) -> tuple[Plan, Takes]:
  del vmapped  # the leader has looked at it
  return _part(team, number, plan, members)


def _part(
  team: Team, number: int, plan: Plan, members: Sequence[int] | None
) -> tuple[Plan, Takes]:
  """What a process trains of a plan: those members, or, where it is not said who trains
  whom, whatever it takes before others do."""
  if members is not None:
    return plan.only(members), lambda job: True
  first = {group.program: group.members[0] for group in plan.groups}
  taken: dict[int, bool] = {}
  lock = threading.Lock()

  def takes(job: Group) -> bool:
    # Who compiles the program of one architecture has all its children.
    one = job.program.layers is not None
    i = first[job.program] if one else job.members[0]
    with lock:
      if i not in taken:
        taken[i] = team.take(f"{number}/{i}")
      return taken[i]

  return plan, takes


def _loader(by_layers: dict[Any, mlp.Weights]) -> LoadWeights:
  return lambda layers, fresh: by_layers[layers]


def _elsewhere(epochs: int, epochs_run: int) -> Child:
  """A child that another process trains on."""
  nothing = np.full(epochs, np.nan, np.float32)
  return Child((), None, nothing, nothing, epochs_run, 0, 0.0, None)


# Of a child that another process has: its state is there.
_THERE = Paused(TrainState({}, {}, {}), np.zeros(2))


def _packed(child: Child, wants_weights: bool) -> dict[str, Any]:
  fields = child._asdict()
  for name in ("layers", "stopped_at_rung", "bracket"):  # known, or not yet
    del fields[name]
  fields["paused"] = child.paused is not None
  fields["weights"] = child.weights if wants_weights else None
  return fields


def _unpacked(layers: Any, fields: dict[str, Any]) -> Child:
  there = fields.pop("paused")
  return Child(layers=layers, **fields, paused=_THERE if there else None)
