"""A population whose children are trained by the processes of a team, a part by each.

The leader plans a round as if it were alone, and shares out the children of the plan;
every process trains its own on the devices of its own machine. A child is trained in
the program of the plan whoever has it, so its result is what one process would find.
What a child that is paused at a rung takes to go on stays where it was trained.
"""

import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from nasjax.core import keys as keys_lib
from nasjax.core.types import InputError
from nasjax.networks import mlp
from nasjax.spaces.mlp_chain import MLPChain
from nasjax.training.children import Child, LoadWeights, Paused
from nasjax.training.losses import Task
from nasjax.training.packing import TILED, Plan
from nasjax.training.planned import Planned
from nasjax.training.population import (
  OnChild,
  OnPlan,
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


class Part(NamedTuple):
  """Children that go to one process together, and their expected seconds."""

  members: tuple[int, ...]
  seconds: float


def parts_of(plan: Plan, widths: Sequence[Sequence[int]]) -> list[Part]:
  """What a plan can be cut into: children, or, where a program is for one architecture
  alone, all that have it, so that it is compiled once.

  Args:
    plan: of a round.
    widths: of the layers of each child.
  """
  parts = []
  for group in plan.groups:
    sizes = [1.0 + sum(i * o for i, o in zip(w, w[1:])) + sum(w) for w in widths]
    if group.program.layers is not None:
      parts.append(Part(group.members, sum(sizes[i] for i in group.members)))
      continue
    for i in group.members:
      # In a frame all children are of one size, in tiles each is of its own.
      size = sizes[i] if group.program == TILED else 1e3 * sum(group.program.widths)
      parts.append(Part((i,), size))
  return parts


def share_out(parts: Sequence[Part], count: int) -> list[list[int]]:
  """The children of each process: the longest part first, to whoever has least to do
  (Graham's rule, at most 4/3 of the best there is).

  Args:
    parts: of a plan.
    count: of processes.
  """
  shares: list[list[int]] = [[] for _ in range(count)]
  seconds = [0.0] * count
  for part in sorted(parts, key=lambda part: (-part.seconds, part.members)):
    least = seconds.index(min(seconds))
    shares[least] += part.members
    seconds[least] += part.seconds
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
    team.send(other, {"identity": identity, "rows": _digest(data)})
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
    names = [genotype.tobytes() for genotype in genotypes]
    shares: list[list[int]] = []

    def share(plan: Plan) -> list[int]:
      if before:
        owned = [owners[name] for name in names]
        shares.extend(
          [i for i, owner in enumerate(owned) if owner == p] for p in range(team.count)
        )
      else:
        widths = [[data.x_train.shape[1], *mlp.dense_widths(c)] for c in layers]
        shares.extend(share_out(parts_of(plan, widths), team.count))
      for other in others:
        work = {
          "key": np.asarray(jax.random.key_data(key)),
          "genotypes": genotypes,
          "hyper": dict(hyper._asdict()),
          "members": np.array(shares[other], np.int32),
          "weights": _loaded(key, shares[other]),
          "epochs_run": before[0].epochs_run if before else 0,
          "keep": keep,
          "wants_weights": wants_weights,
          "planned": None if planned is None else dict(planned._asdict()),
        }
        team.send(other, work)
      return shares[0]

    def _loaded(key, members):
      if load is None:
        return None
      (init_key,) = keys_lib.named(key, "init")
      seeds = np.asarray(child_seeds(init_key, genotypes))
      features = data.x_train.shape[1]
      return {
        str(i): load(layers[i], mlp.init(seeds[i], layers[i], features, num_outputs))
        for i in members
      }

    mine = inner(
      key, genotypes, hyper, load, on_child, on_plan, before, keep, planned, share
    )
    children = dict(zip(shares[0], mine, strict=True))
    for other in others:
      found = team.receive(other)
      for i, child in zip(shares[other], found["children"], strict=True):
        children[i] = _unpacked(layers[i], child)
        if on_child:
          on_child(i, children[i])
    owners.clear()
    if keep:
      owners.update((names[i], p) for p in range(team.count) for i in shares[p])
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
      "it was started with other flags or versions than process 0: all of them must be "
      "equal but for the number in --config.distributed"
    )
  if first["rows"] != _digest(data):
    raise InputError(
      "it has read other rows than process 0: the data of all machines must be equal"
    )
  paused: dict[bytes, Child] = {}
  while (work := team.receive(0)) is not None:
    genotypes, members = np.asarray(work["genotypes"]), work["members"].tolist()
    weights, planned = work["weights"], work["planned"]
    before: list[Child] = []
    if work["epochs_run"]:
      nothing = _elsewhere(epochs, work["epochs_run"])
      before = [paused.get(genotype.tobytes(), nothing) for genotype in genotypes]
    load = None
    if weights is not None:
      by_layers = {space.layers(genotypes[int(i)]): w for i, w in weights.items()}
      load = _loader(by_layers)
    children = inner(
      jax.random.wrap_key_data(jnp.asarray(work["key"])),
      genotypes,
      Hyper(**work["hyper"]),
      load=load,
      before=before,
      keep=work["keep"],
      planned=None if planned is None else Planned(**planned),
      share=lambda plan, members=members: members,
    )
    paused = {genotypes[i].tobytes(): child for i, child in zip(members, children)}
    packed = [_packed(child, work["wants_weights"]) for child in children]
    team.send(0, {"children": packed})


def _loader(by_layers: dict[Any, mlp.Weights]) -> LoadWeights:
  return lambda layers, fresh: by_layers[layers]


def _digest(data: DeviceData) -> int:
  digest = 0
  for part in data:
    digest = zlib.crc32(np.ascontiguousarray(part).tobytes(), digest)
  return digest


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
