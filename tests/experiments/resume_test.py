"""A run that is killed, and killed again, ends as one that was not."""

import json
import multiprocessing
import pathlib
import random
import sys
import time

import numpy as np
import pytest

import run
from nasjax.core import interrupts

KILLS = 20
ARGUMENTS = [
  "--experiment=mlpnas_digits",
  "--smoke",
  "--config.strategy.rounds=16",
  "--config.estimator.one_shot=best",
  "--config.estimator.rungs=1,2",
  "--config.baseline=false",
]
# What is told of the clock, of the process or of the command, not of the search.
OF_THE_PROCESS = ("seconds", "compile", "cached", "command", "longest")

# Processes are forked off one that has imported everything: twenty kills would
# otherwise be twenty times the imports.
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(
  ["run", "experiments.mlpnas_digits", "orbax.checkpoint", "matplotlib.pyplot"]
)


def as_a_command(arguments: list[str]) -> None:
  interrupts.listen()
  sys.exit(run.main(arguments))


def started(workdir: pathlib.Path, cache: pathlib.Path):
  arguments = [*ARGUMENTS, f"--workdir={workdir}", f"--compilation_cache={cache}"]
  process = context.Process(target=as_a_command, args=(arguments,))
  process.start()
  return process


def lines_of(path: pathlib.Path) -> int:
  return path.read_text().count("\n") if path.exists() else 0


def steady(values: dict) -> dict:
  return {
    name: value
    for name, value in values.items()
    if not any(part in name for part in OF_THE_PROCESS)
  }


def found(workdir: pathlib.Path) -> dict:
  """All that a run leaves but for what the clock says."""
  records = {
    name: [steady(json.loads(line)) for line in path.read_text().splitlines()]
    for name in ("records.jsonl", "control_records.jsonl", "metrics.jsonl")
    if (path := workdir / name)
  }
  for line in records["metrics.jsonl"]:
    del line["time"]
  weights = np.load(workdir / "best" / "weights.npz")
  return {
    **records,
    "summary": steady(json.loads((workdir / "summary.json").read_text())),
    "genotype": (workdir / "best" / "genotype.json").read_text(),
    "weights": {name: weights[name].tolist() for name in weights.files},
  }


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
