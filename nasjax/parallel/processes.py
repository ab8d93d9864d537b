"""Several processes of one job, over JAX's own runtime: a TPU slice, a SLURM job.

Process 0 leads: it asks the strategy, keeps the state and writes. The others train what
it sends them on the devices of their own machine. No program spans processes, so none
of them waits for another inside of a round. Messages are trees of arrays in
MessagePack, which runs nothing that it reads, and go through the key-value store of the
coordination service that process 0 keeps for all.
"""

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.serialization
import jax
from jax._src import distributed  # the store has no public name

from nasjax.core import interrupts
from nasjax.core.types import InputError

HEARTBEAT_SECONDS = 60
_START_SECONDS = 300
_END_SECONDS = 8  # after the leader has seen all leave, or when something went wrong:
# that the last words of all processes may be apart
_POLL_MILLISECONDS = 500
_PIECE_BYTES = 16 << 20
_PIECE_MILLISECONDS = 60_000  # the store gives about 80 MB a second on one machine
_STOP = "nasjax/stop"
_LATE, _GONE = "DEADLINE_EXCEEDED", "UNAVAILABLE"


class Place(NamedTuple):
  """Which process this is.

  Attributes:
    coordinator: `host:port` of process 0; None where JAX finds all by itself.
    num_processes: of the job.
    number: of this one.
  """

  coordinator: str | None = None
  num_processes: int | None = None
  number: int | None = None


def parse_place(text: str) -> Place:
  """Reads `auto`, or `HOST:PORT,COUNT,NUMBER`.

  Raises:
    InputError: it is neither.
  """
  if text == "auto":
    return Place()
  try:
    coordinator, count, number = text.split(",")
    place = Place(coordinator, int(count), int(number))
    host, _, port = coordinator.rpartition(":")
    fits = bool(host) and 0 < int(port) < 2**16 and 0 <= int(number) < int(count)
  except ValueError:
    fits = False
  if not fits:
    raise InputError(
      "--config.distributed must be off, auto, or HOST:PORT,COUNT,NUMBER with PORT up "
      f"to 65535 and NUMBER from 0 to COUNT - 1, got {text!r}"
    )
  return place


class Team:
  """The processes of this job, as one of them sees them.

  Attributes:
    number: of this process; 0 leads.
    count: of processes.
  """

  def __init__(self, client: Any, number: int, count: int):
    self.number, self.count = number, count
    self._client = client
    self._sent = [0] * count
    self._received = [0] * count
    self._over: dict[str, Any] | None = None
    threading.Thread(target=self._listen, name="team", daemon=True).start()

  def send(self, to: int, message: Any) -> None:
    """Leaves a message for a process.

    Args:
      to: its number.
      message: a tree of dicts by string, arrays, numbers, strings and None.
    """
    data = flax.serialization.msgpack_serialize(message)
    name = f"nasjax/{self.number}-{to}/{self._sent[to]}"
    self._sent[to] += 1
    starts = range(0, len(data), _PIECE_BYTES)
    with _service():
      for i, start in enumerate(starts, 1):
        piece = data[start : start + _PIECE_BYTES]
        self._client.key_value_set_bytes(f"{name}/{i}", piece)
      # How many there are comes last: who has it finds the others.
      self._client.key_value_set(f"{name}/0", str(len(starts)))

  def receive(self, sender: int) -> Any:
    """The next message of a process, when it comes; None when the job is over.

    Raises:
      KeyboardInterrupt: an interrupt came, here or elsewhere.
    """
    name = f"nasjax/{sender}-{self.number}/{self._received[sender]}"
    with _service():
      while (count := self._get(f"{name}/0")) is None:
        interrupts.check()
        # What ended otherwise interrupts this process, from the thread that heard it.
        if self._over is not None and not self.reason:
          return None
      pieces = [
        self._client.blocking_key_value_get_bytes(f"{name}/{i}", _PIECE_MILLISECONDS)
        for i in range(1, int(count) + 1)
      ]
      for i in range(int(count) + 1):
        self._client.key_value_delete(f"{name}/{i}")
    self._received[sender] += 1
    return flax.serialization.msgpack_restore(b"".join(pieces))

  def take(self, name: str) -> bool:
    """Whether this process is the first of all that asks for a name."""
    with _service():
      return self._client.key_value_increment(f"nasjax/taken/{name}", 1) == 1

  def end(self, reason: str) -> None:
    """Tells all processes that the job is over; whoever says so first is heard.

    Args:
      reason: why it was not done; empty when it was.
    """
    said = json.dumps({"number": self.number, "reason": reason})
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # said already
      self._client.key_value_set(_STOP, said)
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      self._client.key_value_set(f"nasjax/left/{self.number}", "left")

  def wait_for_others(self, seconds: float) -> None:
    """Waits until all others have left a job that is done, some of which may still read
    their data; not longer than that.

    Raises:
      KeyboardInterrupt: an interrupt came.
    """
    until = time.monotonic() + seconds
    for other in range(self.count):
      while self._get(f"nasjax/left/{other}") is None and time.monotonic() < until:
        interrupts.check()

  @property
  def reason(self) -> str:
    """Why another process has ended the job; empty if none has, or it was done."""
    over = self._over
    if over is None or not over["reason"] or over["number"] == self.number:
      return ""
    return f"process {over['number']}: {over['reason']}"

  def _get(self, key: str) -> bytes | None:
    try:
      return self._client.blocking_key_value_get_bytes(key, _POLL_MILLISECONDS)
    except jax.errors.JaxRuntimeError as error:
      if _LATE not in str(error):
        raise
      return None

  def _listen(self) -> None:
    """The thread that hears of the end, and interrupts what is going on then."""
    try:
      while (said := self._get(_STOP)) is None:
        pass
    except jax.errors.JaxRuntimeError:
      return  # the service is gone, and with it this process
    self._over = json.loads(said)
    if self.reason and not interrupts.came():  # else it is at its last words already
      os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def _service() -> Iterator[None]:
  """Where the service is gone JAX is about to end this process; whoever sees it first
  does so, in the same way."""
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    if _GONE in str(error):
      os.abort()
    raise


@contextlib.contextmanager
def joined(place: Place, heartbeat_seconds: int = HEARTBEAT_SECONDS) -> Iterator[Team]:
  """Joins the processes of this job; leaving it ends the job for all.

  To be entered before anything is computed. A process that is lost ends all others,
  from C++, when its heartbeat has been missing for so long: see `supervisor`.

  Args:
    place: which of them this is.
    heartbeat_seconds: of silence after which a process counts as lost.

  Raises:
    InputError: there is no such job here, or not all of its processes came.
  """
  try:
    # It would answer SIGTERM in C++, which is for `core.interrupts` to do.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
      place.coordinator,
      place.num_processes,
      place.number,
      cluster_detection_method="deactivate" if place.coordinator else None,
      initialization_timeout=_START_SECONDS,
      heartbeat_timeout_seconds=heartbeat_seconds,
      shutdown_timeout_seconds=_END_SECONDS,
    )
    jax.local_devices()  # the processes tell each other of theirs
  except (ValueError, RuntimeError) as error:
    if not place.coordinator and isinstance(error, ValueError):
      raise InputError(
        "--config.distributed=auto finds no TPU slice, SLURM job or Open MPI here; "
        "HOST:PORT,COUNT,NUMBER says where processes are"
      ) from None
    line = (str(error).splitlines() or [type(error).__name__])[0][:200]
    raise InputError(f"the processes of this job did not meet ({line})") from None
  state = distributed.global_state
  team = Team(state.client, state.process_id, state.num_processes)
  reason = "it was ended"
  try:
    yield team
    reason = ""
  except InputError as error:
    reason = str(error)
    raise
  except KeyboardInterrupt:
    reason = "it was interrupted"
    raise
  except Exception as error:
    reason = f"{type(error).__name__}: {error}"
    raise
  finally:
    team.end(reason)
    if not reason and team.number == 0:
      team.wait_for_others(_START_SECONDS)
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # others are gone already
      jax.distributed.shutdown()
