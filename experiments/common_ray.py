"""What a Ray task takes of a machine, and where the cluster is."""

import dataclasses
from typing import Any

from nasjax.core.config import field
from nasjax.core.types import InputError


@dataclasses.dataclass(frozen=True)
class RayConfig:
  """Of a Ray task; see `nasjax.parallel.ray_cluster`."""

  address: str = field(
    "", "of a cluster, or auto; empty for a local one", matters=False
  )
  cpus: float = field(1.0, "cores of a task", matters=False)
  gpus: float = field(0.0, "GPUs of a task, or a part of one", matters=False)
  tpus: float = field(0.0, "TPU chips of a task", matters=False)
  retries: int = field(3, "of a task whose worker was lost", matters=False)

  def check(self) -> None:
    """Refuses amounts below zero.

    Raises:
      InputError: naming the field.
    """
    for name in ("cpus", "gpus", "tpus", "retries"):
      if getattr(self, name) < 0:
        raise InputError(
          f"config.ray.{name} must not be negative, got {getattr(self, name)}"
        )

  def options(self) -> dict[str, Any]:
    """Of `ray.remote`."""
    resources = {"TPU": self.tpus} if self.tpus else None
    return {
      "num_cpus": self.cpus,
      "num_gpus": self.gpus,
      "resources": resources,
      "max_retries": self.retries,
    }

  def check_room(self, ray: Any) -> None:
    """Refuses what no machine of a cluster has room for: it would wait forever.

    Raises:
      InputError: with what is wanted and what there is.
    """
    wanted = {"CPU": self.cpus, "GPU": self.gpus, "TPU": self.tpus}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(all(node.get(k, 0) >= v for k, v in wanted.items()) for node in nodes):
      return
    largest = {k: max((node.get(k, 0) for node in nodes), default=0) for k in wanted}
    shown = ", ".join(f"{v:g} {k}" for k, v in wanted.items() if v)
    there = ", ".join(f"{v:g} {k}" for k, v in largest.items())
    raise InputError(
      f"a Ray task wants {shown}; no machine of the cluster has it ({there})"
    )
