"""A run that is killed, and killed again, ends as one that was not."""

import json
import pathlib
import random
import time

import pytest
from killed_runs import found, lines_of
from killed_runs import started as started_command

from nasjax.core import interrupts

KILLS = 20
ARGUMENTS = [
  "--experiment=mlpnas_digits",
  "--smoke",
  "--config.strategy.rounds=16",
  "--config.estimator.one_shot=best",
  "--config.estimator.rungs=1,2",
  "--config.estimator.halving=hyperband",
  "--config.baseline=false",
  "--config.keep_seconds=0",
]


def started(workdir: pathlib.Path, cache: pathlib.Path):
  return started_command([*ARGUMENTS, f"--workdir={workdir}"], cache)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
  folder = tmp_path_factory.mktemp("uninterrupted")
  process = started(folder / "run", folder / "cache")
  process.join()
  assert process.exitcode == 0
  return folder


def test_twenty_kills_change_nothing(uninterrupted, tmp_path):
  workdir, rng, killed = tmp_path / "run", random.Random(0), 0
  while killed < KILLS:
    process = started(workdir, uninterrupted / "cache")
    # Somewhere in the first rounds of this process: a few lines of its log from now,
    # and then at any moment.
    wanted = lines_of(workdir / "log.txt") + rng.randint(1, 7)
    while process.is_alive() and lines_of(workdir / "log.txt") < wanted:
      time.sleep(0.01)
    process.join(rng.uniform(0, 0.2))
    if process.is_alive():
      process.kill()
      killed += 1
    else:
      assert process.exitcode == 0
      break
    process.join()
  process = started(workdir, uninterrupted / "cache")
  process.join()
  assert process.exitcode == 0 and killed == KILLS, killed
  assert found(workdir) == found(uninterrupted / "run")
  log = (workdir / "log.txt").read_text()
  assert "search: goes on after round" in log
  assert "children were done before, and kept" in log
  assert not (workdir / "checkpoints" / "children").exists()


def test_sigterm_ends_in_order_and_the_run_goes_on(uninterrupted, tmp_path):
  workdir = tmp_path / "run"
  process = started(workdir, uninterrupted / "cache")
  while lines_of(workdir / "records.jsonl") < 5:
    time.sleep(0.01)
  begin = time.monotonic()
  process.terminate()
  process.join()
  assert process.exitcode == interrupts.STATUS and time.monotonic() - begin < 60
  summary = json.loads((workdir / "summary.json").read_text())
  assert summary["status"] == "interrupted"
  again = started(workdir, uninterrupted / "cache")
  again.join()
  assert found(workdir) == found(uninterrupted / "run")
