"""A disk that is full, or takes nothing: one line, and the run goes on later.

On real file systems, mounted here; where that is not allowed the tests skip. Each
command is a process: all that it says on its standard error is looked at.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
ARGUMENTS = [
  "--experiment=mlpnas_digits",
  "--smoke",
  "--config.strategy.rounds=4",
  "--config.baseline=false",
  "--config.control=false",
]


def start(workdir):
  """Status and standard error of the command."""
  command = [sys.executable, str(ROOT / "run.py"), *ARGUMENTS, f"--workdir={workdir}"]
  environment = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
  done = subprocess.run(
    command, capture_output=True, text=True, check=False, env=environment
  )
  return done.returncode, done.stderr


def mount(folder, options):
  made = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
  return subprocess.run(made, capture_output=True, check=False).returncode == 0


@pytest.fixture
def disk(tmp_path):
  folder = tmp_path / "disk"
  folder.mkdir()
  if not mount(folder, "size=64k"):
    pytest.skip("no file system can be mounted here")
  yield folder
  subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_told_and_the_run_goes_on(disk):
  status, said = start(disk / "run")
  assert status == 2, said
  assert said.startswith("error: ") and said.count("\n") == 1, said
  assert "No space left on device" in said and "the same command goes on" in said
  assert mount_again(disk, "size=64m")
  assert start(disk / "run") == (0, "")
  summary = json.loads((disk / "run" / "summary.json").read_text())
  assert summary["status"] == "finished" and summary["num_evaluations"] == 8
  lines = (disk / "run" / "records.jsonl").read_text().splitlines()
  assert [json.loads(line)["index"] for line in lines] == list(range(8))


def test_a_disk_that_takes_nothing_is_told_before_any_work(disk):
  (disk / "run").mkdir()
  assert mount_again(disk, "ro")
  for workdir in (disk / "run", disk / "new"):
    status, said = start(workdir)
    assert status == 2 and said.startswith("error: cannot use --workdir")
    assert "Read-only file system" in said and said.count("\n") == 1


def mount_again(folder, options):
  made = ["mount", "-o", f"remount,{options}", str(folder)]
  return subprocess.run(made, capture_output=True, check=False).returncode == 0
