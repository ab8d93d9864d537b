"""Data parallelism: a batch is shared out over devices, the weights are on all of them.

Programs stay those of one device; where their values are decides what XLA makes of
them. A gradient becomes a sum over devices (an all-reduce), as do the means of a batch
normalisation: what is computed is what one device would have computed, up to rounding.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nasjax.core.types import InputError


class Placement(NamedTuple):
  """Where values are.

  Attributes:
    mesh: devices as one axis, "data"; None for one device, where nothing is moved.
  """

  mesh: Mesh | None = None

  @property
  def devices(self) -> int:
    """How many share a batch."""
    return self.mesh.size if self.mesh else 1

  def put(self, tree: Any) -> Any:
    """Host arrays, or arrays of one device, on every device."""
    if self.mesh is None:
      return jax.device_put(tree)
    return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec()))

  def whole(self, tree: Any) -> Any:
    """Inside a program: arrays that every device has."""
    return self._constrain(tree, PartitionSpec())

  def split(self, tree: Any, axis: int = 0) -> Any:
    """Inside a program: arrays of whose `axis` every device has its part."""
    return self._constrain(tree, PartitionSpec(*[None] * axis, "data"))

  def _constrain(self, tree: Any, spec: PartitionSpec) -> Any:
    if self.mesh is None:
      return tree
    return jax.lax.with_sharding_constraint(tree, NamedSharding(self.mesh, spec))


ONE_DEVICE = Placement()


def over(num_devices: int | None) -> Placement:
  """Over so many devices, or over all.

  Raises:
    InputError: when there are not so many.
  """
  devices = jax.local_devices()
  if num_devices is not None and not 1 <= num_devices <= len(devices):
    raise InputError(
      f"must be between 1 and {len(devices)}, the devices that there are; got "
      f"{num_devices}"
    )
  devices = devices[:num_devices]
  return Placement(Mesh(np.array(devices), ("data",)) if len(devices) > 1 else None)
