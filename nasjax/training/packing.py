"""How a round's chains become compiled programs: what to compile, who runs in what.

Four kinds of program train the same child to the same result:

* exact: made for one architecture. No wasted arithmetic, one compilation each.
* framed: made for a frame (`networks.mlp`). It serves every chain that fits, at the
  price of the frame's arithmetic; one compilation for all of them.
* the space's own frame, as wide and as deep as it goes: one compilation for everything.
* tiled: walks over tiles of weights (`networks.tiled`). One compilation for everything,
  little wasted arithmetic, two to eight times the exact program's time; on a CPU.

On a table of a thousand rows a compilation takes longer than a child's training; on
MNIST it is noise, and a padded product is not. So a cost model decides, child by child,
from the shapes, the rows and the device (`profile`), knowing what is compiled already.
Choosing which programs to open for which children is facility location; the local
search here opens or closes, one after another, whatever saves most.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from nasjax.networks.mlp import Frame, dense_widths, place
from nasjax.networks.tiled import TILE, count_tiles, num_tiles
from nasjax.spaces.mlp_chain import Layer
from nasjax.training.profile import DeviceProfile

Layout = Literal["auto", "exact", "bucketed", "padded", "tiled"]
LAYOUTS = ("auto", "exact", "bucketed", "padded", "tiled")

# A frame that is compiled now also serves later rounds; counting half of its compile
# time is where the total of simulated searches is lowest (and flat around it).
_FRAME_SHARE = 0.5
_CACHE_BYTES = 2 * 2**20
_SMALLEST_SLOT = 64  # below it a product costs its launch, not its arithmetic


class Parts(NamedTuple):
  """What a child's training consists of; seconds of each, or factors on them.

  Attributes:
    products: of the training steps.
    adam_cached: Adam's traffic out of a cache; it also computes a root and a quotient.
    adam: likewise out of memory.
    activations: reading every unit's value of every row, steps and validation.
    framed_activations: likewise where the activation is traced.
    kernels: launches for every layer of a step.
    turns: those for every tile of a step.
    batch_rows: reading the rows of the steps, wherever they are.
    validation: products of the validation passes.
    valid_rows: reading their rows, one after the other.
  """

  products: float
  adam_cached: float
  adam: float
  activations: float
  framed_activations: float
  kernels: float
  turns: float
  batch_rows: float
  validation: float
  valid_rows: float


IN_TURN = Parts(0.9, 2.5, 0.65, 18, 50, 5.5, 11, 6, 0.8, 3)
"""Times what the profile's rates promise, on a CPU whose cores train a child each;
fitted by `python -m benchmarks.cost_model` (`benchmarks/RESULTS.md`)."""

VMAPPED = Parts(1, 1, 1, 8, 16, 7, 0, 0, 1, 0)
"""Likewise of a population on an accelerator, whose children share the rows."""

_FRAMED_COMPILE = 1.6  # times the compile time of an exact layer
_TILED_COMPILE = 6  # such layers
_TURNS = 5  # of a step beside those for every tile


class Program(NamedTuple):
  """A program that is, or could be, compiled.

  Attributes:
    layers: the one architecture of an exact program, else None.
    frame: the frame of a framed program, else None. The tiled program has neither.
  """

  layers: tuple[Layer, ...] | None
  frame: Frame | None

  @property
  def widths(self) -> tuple[int, ...]:
    """Units of its dense layers or slots."""
    return self.frame or tuple(dense_widths(self.layers or ()))


TILED = Program(None, None)


def products(program: Program, widths: Sequence[int], num_features: int) -> int:
  """Multiplications of one row through the hidden layers of a child in a program: by
  this the children of a round are put in order, the longest first."""
  sizes = [num_features, *(program.frame or widths)]
  return sum(i * o for i, o in zip(sizes[:-1], sizes[1:]))


class Group(NamedTuple):
  """Children that run in one program: their indices in the population."""

  program: Program
  members: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Plan:
  """A round's groups and what they are expected to cost.

  Attributes:
    groups: every child is in exactly one of them.
    num_new: how many of the programs must be compiled.
    compile_seconds: expected, summed over programs.
    run_seconds: expected, summed over children.
  """

  groups: tuple[Group, ...]
  num_new: int
  compile_seconds: float
  run_seconds: float

  @property
  def num_framed(self) -> int:
    """Children that run in framed programs."""
    return sum(len(group.members) for group in self.groups if group.program.frame)

  @property
  def num_tiled(self) -> int:
    """Children that run in the tiled program."""
    return sum(len(g.members) for g in self.groups if g.program == TILED)

  def only(self, members: Iterable[int]) -> "Plan":
    """The groups of some children, at the whole plan's expectations."""
    wanted = set(members)
    left = [
      group._replace(members=tuple(i for i in group.members if i in wanted))
      for group in self.groups
    ]
    return dataclasses.replace(self, groups=tuple(g for g in left if g.members))

  def describe(self) -> str:
    """One line for the log."""
    framed = sum(1 for group in self.groups if group.program.frame)
    children = sum(len(group.members) for group in self.groups)
    exact = children - self.num_framed - self.num_tiled
    kinds = {
      f"{exact} exact": exact,
      f"{self.num_framed} in {framed} framed programs": framed,
      f"{self.num_tiled} in tiles": self.num_tiled,
    }
    where = ", ".join(kind for kind, there in kinds.items() if there)
    return (
      f"{children} children: {where}; "
      f"{self.num_new} of {len(self.groups)} programs to compile "
      f"(about {self.compile_seconds:.1f} s of compiling, {self.run_seconds:.1f} s "
      f"of training)"
    )


@dataclasses.dataclass(frozen=True)
class CostModel:
  """Seconds of compiling and of running a chain on this data.

  Attributes:
    profile: of the device.
    num_features: F.
    num_outputs: C.
    batch_size: B.
    train_steps: of all epochs together.
    valid_rows: seen in all epochs together.
    vmapped: the children of a framed program are one population (accelerators), whose
      kernels are launched once for all; else each runs by itself.
    tiled: whether the tiled program can be used.
  """

  profile: DeviceProfile
  num_features: int
  num_outputs: int
  batch_size: int
  train_steps: int
  valid_rows: int
  vmapped: bool = False
  tiled: bool = False

  def compile_seconds(self, program: Program) -> float:
    """Expected time to trace and compile a program."""
    layers = (len(program.widths) + 1) * (_FRAMED_COMPILE if program.frame else 1.0)
    if program == TILED:
      layers = _TILED_COMPILE
    return self.profile.compile_base + self.profile.compile_layer * layers

  def shared_seconds(self, program: Program) -> float:
    """Expected time of what the children of a group need once, every epoch run."""
    shared = self.vmapped and program.frame
    return self.parts(program).kernels if shared else 0.0

  def child_seconds(self, program: Program, widths: Sequence[int] = ()) -> float:
    """Expected time that each child adds to its group, every epoch run.

    Args:
      program: that it runs in.
      widths: of its layers; only the tiled program depends on them.
    """
    return sum(self.parts(program, widths)) - self.shared_seconds(program)

  def parts(self, program: Program, widths: Sequence[int] = ()) -> Parts:
    """Expected seconds of one child by itself, every epoch run."""
    factors = VMAPPED if self.vmapped else IN_TURN
    promised = self.promised(program, widths)
    return Parts(*(factor * seconds for factor, seconds in zip(factors, promised)))

  def promised(self, program: Program, widths: Sequence[int] = ()) -> Parts:
    """The same if everything ran at the profile's rates."""
    profile, tiled = self.profile, program == TILED
    sizes = [self.num_features, *(widths if tiled else program.widths)]
    turns = 0
    if tiled:
      out_tiles, tiles = count_tiles(widths, self.num_features)
      turns = out_tiles + tiles + _TURNS
      sizes = [TILE * num_tiles(size) for size in sizes]
    units = sum(sizes[1:])
    sizes.append(self.num_outputs)
    products = [i * o for i, o in zip(sizes[:-1], sizes[1:])]
    params = sum(products) + sum(sizes[1:])
    train_rows = self.train_steps * self.batch_size
    # Forward, weight gradient, and the input's gradient of all layers but the first
    # (a tiled program has that too).
    per_row = 2 * (3 * sum(products) - (0 if tiled else products[0]))
    # Weight, gradient and two moments: what does not stay in a cache of two megabytes
    # comes from memory at every step. Adam reads all four and writes three.
    cached = 16 * params < _CACHE_BYTES and not self.vmapped
    adam = 28 * params * self.train_steps
    values = 4 * units * (2 * train_rows + self.valid_rows)
    traced = program.layers is None
    row = 4 * self.num_features
    return Parts(
      products=train_rows * per_row / profile.flops,
      adam_cached=adam * cached / profile.bandwidth,
      adam=adam * (not cached) / profile.memory_bandwidth,
      activations=values * (not traced) / profile.bandwidth,
      framed_activations=values * traced / profile.bandwidth,
      kernels=self.train_steps * (0 if tiled else len(sizes) - 1) * profile.launch,
      turns=self.train_steps * turns * profile.launch,
      batch_rows=row * train_rows / profile.memory_bandwidth,
      validation=self.valid_rows * 2 * sum(products) / profile.flops,
      valid_rows=row * self.valid_rows / profile.memory_bandwidth,
    )


def round_up(widths: Sequence[int], largest: int) -> Frame:
  """Slots for those widths in coarse steps: 64, 256, 1024, ..., at most `largest`.

  Also for a TPU, whose tiles have 128 lanes: by `benchmarks/tpu_audit.py` a frame of
  64s is estimated at 0.6 of one of 128s, so there is nothing to fill up.
  """
  slots = []
  for width in widths:
    slot = _SMALLEST_SLOT
    while slot < width:
      slot *= 4
    slots.append(max(width, min(slot, largest)))
  return tuple(slots)


def make_plan(
  chains: Sequence[tuple[Layer, ...]],
  known: Iterable[Program],
  cost: CostModel,
  layout: Layout,
  whole_frame: Frame,
) -> Plan:
  """Plans a round.

  Args:
    chains: the layers of each child.
    known: programs compiled before.
    cost: what things cost here.
    layout: "exact", "bucketed", "padded" and "tiled" allow one kind of program only;
      "auto" takes whatever is cheapest.
    whole_frame: the frame that holds the whole space.
  """
  known = set(known)
  exact = [Program(chain, None) for chain in chains]
  if layout == "exact":
    choice = exact
  elif layout == "padded":
    choice = [Program(None, whole_frame)] * len(chains)
  elif layout == "tiled":
    choice = [TILED] * len(chains)
  else:
    choice = _cheapest(exact, known, cost, whole_frame, layout == "auto")
  members: dict[Program, list[int]] = {}
  for i, program in enumerate(choice):
    members.setdefault(program, []).append(i)
  new = [program for program in members if program not in known]
  return Plan(
    groups=tuple(Group(program, tuple(found)) for program, found in members.items()),
    num_new=len(new),
    compile_seconds=sum(map(cost.compile_seconds, new)),
    run_seconds=sum(
      cost.child_seconds(program, dense_widths(chain))
      for program, chain in zip(choice, chains)
    )
    + sum(map(cost.shared_seconds, members)),
  )


def _cheapest(
  exact: list[Program],
  known: set[Program],
  cost: CostModel,
  whole_frame: Frame,
  exact_allowed: bool,
) -> list[Program]:
  """The local search of facility location; one program per child."""
  shapes = sorted({program.widths for program in exact})
  index = [shapes.index(program.widths) for program in exact]
  count = np.bincount(index, minlength=len(shapes))
  largest = max(whole_frame)
  frames = {round_up(shape, largest) for shape in shapes} | {whole_frame}
  frames |= {shape for shape, n in zip(shapes, count) if n > 1}
  frames |= {program.frame for program in known if program.frame}
  candidates = [Program(None, frame) for frame in sorted(frames)]
  candidates += [TILED] * (cost.tiled and exact_allowed)

  def seconds(program: Program, shape: tuple[int, ...]) -> float:
    fits = program == TILED or place(shape, program.widths)
    return cost.child_seconds(program, shape) if fits else np.inf

  run = np.array([[seconds(p, shape) for shape in shapes] for p in candidates])
  run = run[:, index]
  shared = np.array([cost.shared_seconds(program) for program in candidates])
  opening = shared + [
    0.0 if program in known else cost.compile_seconds(program) * _FRAME_SHARE
    for program in candidates
  ]
  if exact_allowed:
    alone = np.array([cost.child_seconds(program) for program in exact])
    alone += [0.0 if p in known else cost.compile_seconds(p) for p in exact]
  else:
    alone = np.full(len(exact), 1e9)  # any frame is better
  opened: list[int] = []
  while True:
    options = np.vstack([alone, run[opened]])
    now = options.min(0)
    by_opening = np.maximum(now - run, 0.0).sum(1) - opening
    by_opening[opened] = 0.0
    by_closing = [
      opening[c] - (np.delete(options, 1 + i, 0).min(0) - now).sum()
      for i, c in enumerate(opened)
    ]
    saved = max(by_opening.max(), *by_closing, 0.0)
    if saved <= 1e-9:
      break
    if saved in by_closing:
      del opened[by_closing.index(saved)]
    else:
      opened.append(int(by_opening.argmax()))
  best = options.argmin(0)
  return [candidates[opened[b - 1]] if b else exact[i] for i, b in enumerate(best)]
