"""Where processes are, what passes between them, and who waits for them."""

import os
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from nasjax.core.types import InputError
from nasjax.parallel import processes, supervisor


def test_a_place_is_read():
  assert processes.parse_place("auto") == (None, None, None)
  assert processes.parse_place("10.0.0.1:99,4,3") == ("10.0.0.1:99", 4, 3)


@pytest.mark.parametrize(
  "text", ["", "on", "host:1", "host,2,0", "host:x,2,0", "host:1,2,2", ":1,2,0"]
)
def test_what_is_no_place_is_refused(text):
  with pytest.raises(InputError, match="HOST:PORT,COUNT,NUMBER"):
    processes.parse_place(text)


def test_where_jax_finds_no_job_it_says_how_to_name_one(monkeypatch):
  def initialize(*args, **kwargs):
    raise ValueError("coordinator_address should be defined.")

  monkeypatch.setattr(jax.distributed, "initialize", initialize)
  before = jax.config.jax_enable_preemption_service
  joining = processes.joined(processes.parse_place("auto"))
  try:
    with (
      pytest.raises(InputError, match="finds no TPU slice.*HOST:PORT,COUNT"),
      joining,
    ):
      pass
  finally:
    jax.config.update("jax_enable_preemption_service", before)


class Store:
  """The key-value store of a coordination service, as its client shows it."""

  def __init__(self):
    self.values, self.changed = {}, threading.Condition()

  def key_value_set(self, key, value):
    with self.changed:
      if key in self.values:
        raise jax.errors.JaxRuntimeError("ALREADY_EXISTS")
      self.values[key] = value
      self.changed.notify_all()

  key_value_set_bytes = key_value_set

  def key_value_increment(self, key, by):
    with self.changed:
      self.values[key] = self.values.get(key, 0) + by
      return self.values[key]

  def key_value_delete(self, key):
    del self.values[key]

  def blocking_key_value_get_bytes(self, key, milliseconds):
    with self.changed:
      if not self.changed.wait_for(lambda: key in self.values, milliseconds / 1000):
        raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: timed out")
      value = self.values[key]
      return value.encode() if isinstance(value, str) else value


def test_messages_arrive_in_order_and_leave_nothing(monkeypatch):
  monkeypatch.setattr(processes, "_PIECE_BYTES", 100)
  store = Store()
  one, two = (processes.Team(store, number, 2) for number in range(2))
  big = np.arange(200, dtype=np.float32)
  one.send(1, {"a": big, "b": [None, "x", 1.5]})
  one.send(1, {"a": 2})
  assert len(store.values) > 8
  first = two.receive(0)
  np.testing.assert_array_equal(first["a"], big)
  assert first["b"] == [None, "x", 1.5]
  assert two.receive(0) == {"a": 2}
  assert not store.values
  assert [one.take("0/1"), two.take("0/1"), two.take("0/2")] == [True, False, True]


def test_the_first_reason_is_heard_by_all(monkeypatch):
  signals = []
  monkeypatch.setattr(processes.os, "kill", lambda *args: signals.append(args))

  def check():
    if signals:
      raise KeyboardInterrupt

  monkeypatch.setattr(processes.interrupts, "check", check)
  store = Store()
  teams = [processes.Team(store, number, 3) for number in range(3)]
  teams[1].end("no room")
  teams[0].end("")
  for team in (teams[0], teams[2]):
    with pytest.raises(KeyboardInterrupt):
      team.receive(1)
    assert team.reason == "process 1: no room"
  assert signals.count((os.getpid(), signal.SIGTERM)) == 2
  signals.clear()
  assert teams[1].receive(0) is None and teams[1].reason == ""


def test_a_job_that_was_done_interrupts_nobody(monkeypatch):
  monkeypatch.setattr(processes.os, "kill", lambda *args: pytest.fail("interrupted"))
  store = Store()
  teams = [processes.Team(store, number, 2) for number in range(2)]
  teams[0].end("")
  assert teams[1].receive(0) is None and teams[1].reason == ""


def test_who_is_at_its_last_words_is_not_interrupted_again(monkeypatch):
  monkeypatch.setattr(processes.os, "kill", lambda *args: pytest.fail("interrupted"))
  monkeypatch.setattr(processes.interrupts, "came", lambda: True)
  store = Store()
  teams = [processes.Team(store, number, 2) for number in range(2)]
  teams[1].end("it was interrupted")
  deadline = time.monotonic() + 30
  while not teams[0].reason:
    assert time.monotonic() < deadline
    time.sleep(0.01)


def test_the_leader_of_a_job_that_is_done_waits_until_all_have_left():
  store = Store()
  teams = [processes.Team(store, number, 2) for number in range(2)]
  teams[0].end("")
  later = threading.Timer(0.7, teams[1].end, [""])
  later.start()
  teams[0].wait_for_others(60)
  assert "nasjax/left/1" in store.values
  del store.values["nasjax/left/1"]
  teams[0].wait_for_others(0.1)  # who never leaves is not waited for forever


def test_where_the_service_is_gone_a_process_ends_as_jax_ends_it(monkeypatch):
  class Gone(Store):
    def key_value_set(self, key, value):
      raise jax.errors.JaxRuntimeError("UNAVAILABLE: Socket closed")

    key_value_set_bytes = key_value_increment = key_value_set

    def blocking_key_value_get_bytes(self, key, milliseconds):
      raise jax.errors.JaxRuntimeError("UNAVAILABLE: Socket closed")

  ended = []
  monkeypatch.setattr(processes.os, "abort", lambda: ended.append("abort"))
  team = processes.Team(Gone(), 1, 2)
  for act in (
    lambda: team.send(0, {}),
    lambda: team.receive(0),
    lambda: team.take("0"),
  ):
    with pytest.raises(jax.errors.JaxRuntimeError):
      act()
  assert len(ended) == 3


SUPERVISE = """
import sys
from nasjax.core import interrupts
from nasjax.parallel import supervisor
assert "jax" not in sys.modules
interrupts.ANSWER_SECONDS = 0.5
interrupts.listen()
sys.exit(supervisor.supervise([sys.executable, "-c", sys.argv[1]]))
"""


def supervised(code):
  command = [sys.executable, "-c", SUPERVISE, code]
  return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
  ("code", "status", "line"),
  [
    ("raise SystemExit(3)", 3, ""),
    ("import os; os.abort()", 75, "because another process of this job was lost"),
    ("import os; os.kill(os.getpid(), 9)", 75, "was killed; the same commands go on"),
    ("import os; os.kill(os.getpid(), 10)", 75, "was ended by SIGUSR1"),
  ],
)
def test_who_waits_gives_the_status_or_says_what_to_do(code, status, line):
  process = supervised(code)
  _, error = process.communicate(timeout=60)
  assert process.returncode == status and line in error
  assert error.count("\n") == bool(line)


def test_sigterm_is_passed_on():
  code = """
import signal, sys, time
def last_words(*_):
  time.sleep(2)  # longer than who computes may take to answer
  sys.exit(7)
signal.signal(signal.SIGTERM, last_words)
print("ready", file=sys.stderr, flush=True)
time.sleep(60)
"""
  process = supervised(code)
  assert process.stderr.readline() == "ready\n"
  process.terminate()
  assert process.wait(30) == 7


def test_who_is_waited_for_does_not_outlive_who_waits(tmp_path):
  told = tmp_path / "told"
  code = f"""
import pathlib, signal, time
from nasjax.parallel import supervisor
signal.signal(signal.SIGTERM, lambda *_: pathlib.Path({str(told)!r}).write_text("x"))
assert supervisor.is_supervised()
supervisor.end_with_supervisor()
print("ready", file=__import__("sys").stderr, flush=True)
time.sleep(3)
"""
  assert not supervisor.is_supervised()
  process = supervised(code)
  assert process.stderr.readline() == "ready\n"
  process.kill()
  process.wait()
  deadline = time.monotonic() + 30
  while not told.exists():
    assert time.monotonic() < deadline
    time.sleep(0.05)
