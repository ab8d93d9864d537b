"""A process that waits for another, and says what became of it.

JAX's runtime ends every process of a job from C++ when one of them is lost, and no
Python of theirs runs any more. Who started them is still there to say how to go on.
This module imports no JAX: it answers at once and holds no device.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

VARIABLE = "NASJAX_SUPERVISED"  # of a process that is waited for: the one that waits
LOST = 75  # EX_TEMPFAIL of sysexits.h: trying again may well succeed
_POLL_SECONDS = 1.0


def is_supervised() -> bool:
  """Whether another process waits for this one."""
  return VARIABLE in os.environ


def supervise(command: Sequence[str]) -> int:
  """Runs a command to its end and gives its status.

  SIGTERM is passed on. Ctrl-C reaches both by itself: they are of one process group.

  Args:
    command: as `subprocess` takes it.

  Returns:
    The command's status; `LOST`, after a line on stderr that says what to do, when a
    signal ended it.
  """
  # A thread that answers signals for a process which computes (`core.interrupts`) would
  # end this one in the middle of the other's last words.
  wakeup = signal.set_wakeup_fd(-1)
  child = subprocess.Popen(command, env={**os.environ, VARIABLE: str(os.getpid())})
  before = {
    number: signal.signal(number, answer)
    for number, answer in (
      (signal.SIGINT, signal.SIG_IGN),
      (signal.SIGTERM, lambda number, frame: child.terminate()),
    )
  }
  try:
    status = child.wait()
  finally:
    for number, answer in before.items():
      signal.signal(number, answer)
    signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
  if status >= 0:
    return status
  how = {
    -signal.SIGABRT: "was ended because another process of this job was lost",
    -signal.SIGKILL: "was killed",
  }.get(status, f"was ended by {signal.Signals(-status).name}")
  print(
    f"error: this process {how}; the same commands go on from the last whole round",
    file=sys.stderr,
    flush=True,
  )
  return LOST


def end_with_supervisor() -> None:
  """From now on this process ends, as by SIGTERM, when the one that waits is gone."""
  waiting = int(os.environ[VARIABLE])

  def watch() -> None:
    while os.getppid() == waiting:
      time.sleep(_POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)

  threading.Thread(target=watch, name="supervisor", daemon=True).start()
