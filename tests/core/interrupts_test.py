"""Signals to real processes; what they print says where they were answered."""

import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from nasjax.core import interrupts

ROOT = pathlib.Path(__file__).resolve().parents[2]
HEAD = """
import hashlib, os, signal, sys, time
from nasjax.core import interrupts
interrupts.ANSWER_SECONDS = 0.5
interrupts.listen()
interrupts.listen()
def say(word): print(word, flush=True)
def heard(): return interrupts._STATE.waiting
def stuck():  # in C, like a compilation: no Python runs in this thread
  hashlib.pbkdf2_hmac("sha256", b"a", b"b", 2 * 10**9)
"""


def signalled(body, *signals):
  """Status and printed words of a process that gets the signals once it says ready."""
  process = subprocess.Popen(
    [sys.executable, "-c", HEAD + textwrap.dedent(body)],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  try:
    assert process.stdout.readline() == "ready\n"
    for number in signals:
      time.sleep(0.5)  # until it is where it says that it will be
      process.send_signal(number)
    out, error = process.communicate(timeout=60)
  finally:
    process.kill()
  return process.returncode, out.split(), error


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_is_held_is_finished_first(number):
  status, words, error = signalled(
    """
    try:
      with interrupts.held():
        say("ready")
        with interrupts.held():
          while not heard(): time.sleep(0.01)
        interrupts.check()
        say("saved")
      say("never")
    except KeyboardInterrupt:
      interrupts.check()  # it is being handled: not raised again
      say("interrupted")
    interrupts.check()
    say("end")
    """,
    number,
  )
  assert (status, words, error) == (0, ["saved", "interrupted", "end"], "")


def test_an_interrupt_that_a_destructor_swallowed_is_raised_by_the_next_check():
  status, words, error = signalled(
    """
    class Slow:
      def __del__(self):
        say("ready")
        time.sleep(60)
    try:
      thing = Slow()
      del thing
      say("lost")
      interrupts.check()
      say("never")
    except KeyboardInterrupt:
      say("found")
    interrupts.check()
    """,
    signal.SIGINT,
  )
  assert (status, words) == (0, ["lost", "found"]) and "Exception ignored" in error


def test_a_process_whose_main_thread_does_not_answer_ends():
  begin = time.monotonic()
  status, words, error = signalled('say("ready"); stuck()', signal.SIGTERM)
  assert (status, words) == (interrupts.STATUS, [])
  assert error == "interrupted; what was recorded is kept\n"
  assert time.monotonic() - begin >= 0.5


def test_a_save_in_flight_is_waited_for():
  status, words, _ = signalled(
    """
    with interrupts.held():
      say("ready")
      while not heard():  # however late a busy machine sends it
        hashlib.pbkdf2_hmac("sha256", b"a", b"b", 10**6)
      say("saved")
    """,
    signal.SIGTERM,
  )
  assert words == ["saved"] and status != 0


def test_the_third_signal_ends_it_at_once():
  status, words, _ = signalled(
    'interrupts.ANSWER_SECONDS = 1000; say("ready"); stuck()', *3 * [signal.SIGINT]
  )
  assert (status, words) == (interrupts.STATUS, [])


def test_signals_at_once_are_one():
  process = subprocess.Popen(
    [
      sys.executable,
      "-c",
      HEAD
      + textwrap.dedent(
        """
        interrupts.ANSWER_SECONDS = 1000
        try:
          say("ready")
          time.sleep(60)
        except KeyboardInterrupt:
          time.sleep(1)
          say("last words")
        """
      ),
    ],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == "ready\n"
  time.sleep(0.5)
  for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
    process.send_signal(number)
    time.sleep(0.01)
  out, _ = process.communicate(timeout=60)
  assert (process.returncode, out) == (0, "last words\n")


def test_nothing_happens_without_listening():
  with interrupts.held():
    interrupts.check()
