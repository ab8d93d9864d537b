"""Ray: a cluster that is there, or a local one that starts and ends with the caller.

Ray is an extra (`pip install -e ".[cluster]"`). Its workers get the files of this
checkout: by path from a local Ray, sent along to a cluster. What they write they write
to paths that the machines must share.
"""

import contextlib
import importlib.util
import os
import pathlib
import socket
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from nasjax.core.types import InputError

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_PROBE_SECONDS = 10.0
_NOT_SENT = [".git", ".venv", "runs", "*.egg-info", "__pycache__"]


def installed() -> bool:
  """Whether Ray is."""
  return importlib.util.find_spec("ray") is not None


def check() -> None:
  """Refuses what needs Ray where there is none.

  Raises:
    InputError: with what to install.
  """
  if not installed():
    raise InputError('Ray is not installed; pip install -e ".[cluster]"')


def _check_answers(address: str) -> None:
  """Refuses a `host:port` where nobody listens: Ray itself tries for minutes."""
  host, _, port = address.rpartition(":")
  if "/" in address or not port.isdigit():
    return
  try:
    with socket.create_connection((host, int(port)), _PROBE_SECONDS):
      return
  except (OSError, OverflowError) as error:
    raise InputError(f"no Ray cluster at {address!r}: {error}") from None


@contextlib.contextmanager
def connected(
  address: str = "", variables: Mapping[str, str] = MappingProxyType({}), **options: Any
) -> Iterator[Any]:
  """The module `ray`, connected; as it is, if this process is connected already.

  Args:
    address: of a cluster, "auto" for the one of this machine; empty for a local Ray,
      which listens on 127.0.0.1 and ends on leaving.
    variables: of the workers' environment.
    **options: of `ray.init`, for a local Ray.

  Raises:
    InputError: Ray is not installed, or nothing answers at the address.
  """
  check()
  # It asks for leave to report usage; nothing here reports.
  os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
  # Else it hides the accelerators from tasks that have not asked for one.
  os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
  # Else whatever runs beside its workers starves them: a local Ray makes them nice.
  os.environ.setdefault("RAY_worker_niceness", "0")
  import ray

  if ray.is_initialized():  # a task of a sweep, or a user's own session
    yield ray
    return
  common: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
  environment: dict[str, Any] = {"env_vars": dict(variables)}
  if address:
    environment |= {"working_dir": str(_ROOT), "excludes": _NOT_SENT}
    _check_answers(address)
    try:
      ray.init(address=address, runtime_env=environment, **common)
    except (ConnectionError, ValueError) as error:
      said = (str(error).splitlines() or ["no answer"])[0]
      raise InputError(f"no Ray cluster at {address!r}: {said}") from None
  else:
    paths = [str(_ROOT), os.environ.get("PYTHONPATH", "")]
    environment["env_vars"]["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    ray.init(
      runtime_env=environment,
      include_dashboard=False,
      _node_ip_address="127.0.0.1",
      **common,
      **options,
    )
  try:
    yield ray
  finally:
    ray.shutdown()
