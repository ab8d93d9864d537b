"""Runs as processes of their own, to be killed, and all that they leave."""

import json
import multiprocessing
import pathlib
import random
import shutil
import sys
import time
from collections.abc import Callable

import jax
import numpy as np

import run
from nasjax.core import interrupts

# What is told of the clock, of the process or of the command, not of the search.
OF_THE_PROCESS = ("seconds", "compile", "cached", "command", "longest")

# Processes are forked off one that has imported everything: twenty kills would
# otherwise be twenty times the imports.
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(
  [
    "run",
    *(f"experiments.{name}" for name in ("mlpnas_digits", "darts_digits")),
    "experiments.darts_text",
    "orbax.checkpoint",
    "matplotlib.pyplot",
  ]
)


def as_a_command(arguments: list[str], settings: dict) -> None:
  for name, value in settings.items():
    jax.config.update(name, value)
  interrupts.listen()
  sys.exit(run.main(arguments))


def copied_cache(folder: pathlib.Path) -> pathlib.Path:
  """The compiled programs of this session in a folder of their own.

  A process that is killed as it writes one leaves half of an entry, and a cache of a
  limited size then takes no more.
  """
  ours = jax.config.jax_compilation_cache_dir
  return pathlib.Path(shutil.copytree(ours, folder / "programs"))


def started(arguments: list[str], cache: pathlib.Path | str, quick: bool = False):
  """A process that runs a command line.

  Args:
    arguments: of `run.py`.
    cache: folder of compiled programs, however short they took to compile.
    quick: compile as the fixture `quick_compile` does.
  """
  settings = {
    "jax_disable_most_optimizations": quick,
    "jax_compilation_cache_dir": str(cache),
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
  }
  arguments = [*arguments, "--compilation_cache=off"]  # but for the one of `settings`
  process = context.Process(target=as_a_command, args=(arguments, settings))
  process.start()
  return process


def killed_when(process, so_far: Callable[[], bool], rng: random.Random) -> None:
  """Kills a process a fifth of a second or less after it has come so far."""
  while process.is_alive() and not so_far():
    time.sleep(0.01)
  process.join(rng.uniform(0, 0.2))
  assert process.is_alive(), process.exitcode
  process.kill()
  process.join()


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
    if (path := workdir / name).exists()
  }
  for line in records["metrics.jsonl"]:
    del line["time"]
  summary = steady(json.loads((workdir / "summary.json").read_text()))
  for row in summary.get("random_cells", ()):
    del row["seconds"]
  weights = np.load(workdir / "best" / "weights.npz")
  return {
    **records,
    "summary": summary,
    "genotype": (workdir / "best" / "genotype.json").read_text(),
    "weights": {name: weights[name].tolist() for name in weights.files},
  }
