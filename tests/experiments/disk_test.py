"""A disk that is full, or takes nothing: one line, and the run goes on later.

On real file systems, mounted here; where that is not allowed the tests skip.
"""

import json
import subprocess

import pytest

import run as command_line

ARGUMENTS = [
  "--experiment=mlpnas_digits",
  "--smoke",
  "--config.strategy.rounds=4",
  "--config.baseline=false",
  "--config.control=false",
]


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


def test_a_full_disk_is_told_and_the_run_goes_on(disk, capsys):
  command = [*ARGUMENTS, f"--workdir={disk / 'run'}"]
  assert command_line.main(command) == 2
  said = capsys.readouterr().err
  errors = [line for line in said.splitlines() if line.startswith("error: ")]
  assert len(errors) == 1 and "No space left on device" in errors[0]
  assert mount_again(disk, "size=64m")
  assert command_line.main(command) == 0
  summary = json.loads((disk / "run" / "summary.json").read_text())
  assert summary["status"] == "finished" and summary["num_evaluations"] == 8
  lines = (disk / "run" / "records.jsonl").read_text().splitlines()
  assert [json.loads(line)["index"] for line in lines] == list(range(8))


def test_a_disk_that_takes_nothing_is_told_before_any_work(disk, capsys):
  (disk / "run").mkdir()
  assert mount_again(disk, "ro")
  for workdir in (disk / "run", disk / "new"):
    assert command_line.main([*ARGUMENTS, f"--workdir={workdir}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: cannot use --workdir") and said.count("\n") == 1
    assert "Read-only file system" in said


def mount_again(folder, options):
  made = ["mount", "-o", f"remount,{options}", str(folder)]
  return subprocess.run(made, capture_output=True, check=False).returncode == 0
