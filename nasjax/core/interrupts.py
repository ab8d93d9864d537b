"""Ctrl-C, and a machine that is taken away, without losing what is being written.

Python raises KeyboardInterrupt between any two instructions of the main thread. In the
middle of a save that leaves half of one, and a thread that waits for the other half; in
a callback of the garbage collector it is printed and lost; and while XLA compiles it is
not raised at all. After `listen`:

* what runs under `held` is finished first;
* an interrupt that was lost is raised again by the next `check`;
* a main thread that does not come to it within `ANSWER_SECONDS`, or is not done with
  its last words `LAST_WORDS_SECONDS` later, is not waited for. Whoever calls `listen`
  has a run that goes on from what it has saved;
* the third signal ends the process at once. Signals that are less than `ONE_SECONDS`
  apart are one: a scheduler sends it to every process of a job, and those that wait
  for others pass it on.

Without `listen` nothing here does anything.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator

STATUS = 130  # what a shell gives a command that Ctrl-C has ended
ANSWER_SECONDS = 8.0
LAST_WORDS_SECONDS = 30.0
ONE_SECONDS = 0.25
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_AT_ONCE = 3  # signals


class _State:
  """Of this process: signals have one handler, so there is one state."""

  def __init__(self) -> None:
    self.waiting = False  # a signal came that no exception has told of for sure
    self.holds = 0
    self.answered = False
    self.last = -float("inf")  # when a signal was answered


_STATE = _State()


def listen() -> None:
  """From now on SIGINT and SIGTERM are answered as the module says.

  To be called in the main thread; a second call changes nothing.
  """
  if signal.getsignal(signal.SIGINT) is _answer:
    return
  heard, told = socket.socketpair()
  told.setblocking(False)
  for number in _SIGNALS:
    signal.signal(number, _answer)
  # What C's handler writes there is read at once, also while the main thread is in XLA.
  signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
  threading.Thread(
    target=_watch, args=(heard, told), name="interrupts", daemon=True
  ).start()


def came() -> bool:
  """Whether a signal has come, answered or not."""
  return _STATE.answered


def check() -> None:
  """Raises an interrupt that came under `held`, or was lost; else does nothing.

  Raises:
    KeyboardInterrupt: unless that is what is being handled already.
  """
  if not _STATE.waiting or _STATE.holds or not _in_main_thread():
    return
  _STATE.waiting = False
  if not isinstance(sys.exc_info()[1], KeyboardInterrupt):
    raise KeyboardInterrupt


@contextlib.contextmanager
def held() -> Iterator[None]:
  """What is inside is finished before an interrupt is raised.

  Raises:
    KeyboardInterrupt: on leaving, if one came meanwhile.
  """
  if not _in_main_thread():
    yield
    return
  _STATE.holds += 1
  try:
    yield
  finally:
    _STATE.holds -= 1
  check()


def _in_main_thread() -> bool:
  return threading.current_thread() is threading.main_thread()


def _answer(number: int, frame: object) -> None:
  del number, frame
  now = time.monotonic()
  again, _STATE.last = now - _STATE.last < ONE_SECONDS, now
  if again:
    return
  _STATE.waiting = _STATE.answered = True
  if not _STATE.holds:
    raise KeyboardInterrupt


def _watch(heard: socket.socket, told: socket.socket) -> None:
  """The thread that ends the process when the main thread does not."""
  del told  # open for as long as this thread runs
  while not set(heard.recv(16)) & set(_SIGNALS):
    pass
  signals, first = 1, time.monotonic()
  last = first
  heard.settimeout(0.2)
  while signals < _AT_ONCE:
    with contextlib.suppress(TimeoutError):
      if set(heard.recv(16)) & set(_SIGNALS):
        now = time.monotonic()
        signals += now - last >= ONE_SECONDS
        last = now
    seconds = time.monotonic() - first
    limit = ANSWER_SECONDS + LAST_WORDS_SECONDS * _STATE.answered
    if seconds > limit and not _STATE.holds:
      break
  os.write(2, b"interrupted; what was recorded is kept\n")
  os._exit(STATUS)
