"""What a search has compiled and believes of the device, as a part of its state.

Plans decide in which program a child runs, and programs differ in the last bits of what
they compute. So that a search which goes on in another process repeats what it would
have done here, its plans depend on this state alone, not on what the process compiled.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from nasjax.spaces.mlp_chain import MLPChain, describe_layers
from nasjax.training.packing import TILED, Plan, Program
from nasjax.training.profile import DeviceProfile

_EXACT, _FRAMED, _TILED = range(3)


class Planned(NamedTuple):
  """Arrays on the host.

  Attributes:
    programs: `[K, 1 + D]` int32, ascending: the kind of each program, then the genotype
      of an exact one, or the widths of a frame and zeros.
    profile: `[6]` float64, the fields of a `DeviceProfile`.
  """

  programs: np.ndarray
  profile: np.ndarray


def begin(space: MLPChain, profile: DeviceProfile) -> Planned:
  """Nothing is compiled yet."""
  values = np.array(dataclasses.astuple(profile), np.float64)
  return Planned(np.zeros((0, 1 + space.length), np.int32), values)


def profile_of(state: Planned) -> DeviceProfile:
  """What the search believes of the device."""
  return DeviceProfile(*map(float, state.profile))


def programs_of(state: Planned, space: MLPChain) -> set[Program]:
  """What it has compiled."""

  def program(kind: int, *numbers: int) -> Program:
    if kind == _EXACT:
      return Program(space.layers(np.array(numbers, np.int32)), None)
    frame = tuple(width for width in numbers if width)
    return Program(None, frame) if kind == _FRAMED else TILED

  return {program(*row) for row in state.programs.tolist()}


def after(state: Planned, plan: Plan, space: MLPChain) -> Planned:
  """The state when the programs of a plan are compiled, too."""
  rows = {tuple(row) for row in state.programs.tolist()}
  for group in plan.groups:
    numbers, program = np.zeros(1 + space.length, np.int32), group.program
    if program.layers is not None:
      numbers[1:] = space.parse(describe_layers(program.layers))
    elif program.frame is not None:
      numbers[: 1 + len(program.frame)] = _FRAMED, *program.frame
    else:
      numbers[0] = _TILED
    rows.add(tuple(numbers.tolist()))
  return state._replace(programs=np.array(sorted(rows), np.int32))
