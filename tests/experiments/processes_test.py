"""A search over several processes on this machine: as one process, and after a kill."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest
from killed_runs import copied_cache, found, lines_of
from killed_runs import started as started_command

from nasjax.parallel import supervisor

ROOT = pathlib.Path(__file__).resolve().parents[2]
ARGUMENTS = [
  "--experiment=mlpnas_digits",
  "--smoke",
  "--config.strategy.population=4",
  "--config.baseline=false",
  "--config.control=false",
  "--config.heartbeat_seconds=4",
  "--config.keep_seconds=0",
]
# Every child is sent its weights, those of the best are sent back, half are trained on.
SHARING = [
  "--config.strategy.rounds=3",
  "--config.estimator.one_shot=best",
  "--config.estimator.rungs=1,2",
]
PADDED = ["--config.strategy.rounds=9", "--config.estimator.layout=padded"]
SECONDS = 180


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  return copied_cache(tmp_path_factory.mktemp("cache"))


def started(workdir, cache, *flags, count=1, devices=1):
  """Processes of one job, each with so many devices."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  settings = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
  }
  command = [sys.executable, "run.py", *ARGUMENTS, *flags, f"--workdir={workdir}"]
  command.append(f"--compilation_cache={cache}")
  places = [f"--config.distributed=127.0.0.1:{port},{count},{i}" for i in range(count)]
  return [
    subprocess.Popen(
      [*command, place] if count > 1 else command,
      cwd=ROOT,
      env={**os.environ, **settings},
      stdout=subprocess.DEVNULL,
      stderr=subprocess.PIPE,
      text=True,
    )
    for place in places
  ]


def ended(running):
  """The status and the last words of each."""
  try:
    said = [process.communicate(timeout=SECONDS)[1] for process in running]
  finally:
    for process in running:
      process.kill()
  return [process.returncode for process in running], said


def left(workdir):
  whole = found(workdir)
  del whole["summary"]["environment"]  # it tells of the devices
  return whole


def test_four_processes_find_what_one_does(cache, tmp_path):
  one = started_command(
    [*ARGUMENTS, *SHARING, f"--workdir={tmp_path / 'one'}"], cache, quick=True
  )
  one.join(SECONDS)
  assert one.exitcode == 0
  statuses, said = ended(started(tmp_path / "four", cache, *SHARING, count=4))
  assert statuses == [0] * 4, said
  assert left(tmp_path / "four") == left(tmp_path / "one")


def killed(running, which, workdir, rounds):
  """Kills the process that computes when so many rounds are there; what all said."""
  while lines_of(workdir / "metrics.jsonl") < rounds:
    assert all(process.poll() is None for process in running)
    time.sleep(0.05)
  (worker,) = psutil.Process(running[which].pid).children()
  worker.send_signal(signal.SIGKILL)
  start = time.monotonic()
  statuses, said = ended(running)
  return statuses, said, time.monotonic() - start


def test_a_lost_process_ends_the_others_and_the_job_goes_on(cache, tmp_path):
  # At equal local width, two devices a process, all is as in one process of four.
  statuses, _ = ended(started(tmp_path / "one", cache, *PADDED, devices=4))
  assert statuses == [0]
  workdir, options = tmp_path / "two", {"count": 2, "devices": 2}
  for which, rounds in ((1, 1), (0, 5)):
    running = started(workdir, cache, *PADDED, **options)
    statuses, said, seconds = killed(running, which, workdir, rounds)
    assert statuses == [supervisor.LOST] * 2
    assert "was killed; the same commands go on from the last whole" in said[which]
    assert "another process of this job was lost; the same commands" in said[1 - which]
    assert seconds < 60  # of a heartbeat of four, on a machine that others use
    assert not (workdir / "summary.json").exists()
  statuses, said = ended(started(workdir, cache, *PADDED, **options))
  assert statuses == [0, 0], said
  assert "an unfinished run is here; it goes on" in (workdir / "log.txt").read_text()
  assert left(workdir) == left(tmp_path / "one")


def test_what_one_process_refuses_all_say(cache, tmp_path):
  (tmp_path / "taken").mkdir()
  (tmp_path / "taken" / "file.txt").write_text("mine")
  statuses, said = ended(started(tmp_path / "taken", cache, count=2))
  assert statuses[0] == 2 and "holds no run" in said[0]
  assert statuses[1] != 0 and "process 0: " in said[1] and "holds no run" in said[1]
