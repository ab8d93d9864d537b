"""A population over two processes beside one with as many threads: what sharing costs.

  python -m benchmarks.processes

Both train the same children of `mlpnas_digits`; each process has one core. The ways
take turns, because the machine is shared; compilation is apart. Ideal is 2; beside it
stands what two processes give that know nothing of each other: the machine's ceiling.
"""

import functools
import json
import os
import socket
import subprocess
import sys
import time

import jax
import numpy as np

from nasjax.data import embedded
from nasjax.parallel import processes
from nasjax.spaces.base import sample
from nasjax.spaces.mlp_chain import MLPChain
from nasjax.training.losses import get_task
from nasjax.training.population import device_data, population_trainer
from nasjax.training.step import Hyper
from nasjax.training.team_trainer import serve, team_trainer

CHILDREN, EPOCHS, REPEATS = 40, 12, 5
SPACE = MLPChain(max_layers=5)


def _train(make, *first):
  """Builds a trainer and gives the seconds of a population, once all is compiled."""
  dataset = embedded.load("digits")
  train = make(
    *first,
    SPACE,
    get_task(dataset.task),
    device_data(dataset.train, dataset.valid),
    dataset.num_outputs,
    epochs=EPOCHS,
    batch_size=32,
    layout="tiled",
  )
  if make is serve:
    return None
  draws = jax.random.split(jax.random.key(0), CHILDREN)
  genotypes = np.asarray(jax.vmap(functools.partial(sample, SPACE))(draws))
  hyper = Hyper(1e-3, EPOCHS)
  for _ in range(2):
    start = time.perf_counter()
    train(jax.random.key(1), genotypes, hyper)
    seconds = time.perf_counter() - start
  return seconds


def work(port: str, count: str, number: str) -> None:
  """One process of a team, or one alone."""
  if count == "1":
    print(json.dumps(_train(population_trainer)))
    return
  place = processes.Place(f"127.0.0.1:{port}", int(count), int(number))
  with processes.joined(place) as team:
    if team.number:
      _train(serve, team)
    else:
      print(json.dumps(_train(team_trainer, team)))


def _seconds(jobs: list[tuple[str, str, str]]) -> float:
  """Of the slowest that says how long it took; each job has a core of its own."""
  cores = sorted(os.sched_getaffinity(0))
  command = [sys.executable, "-m", "benchmarks.processes"]
  running = []
  for core, job in zip(cores, jobs):
    pinned = ["taskset", "-c", str(core), *command, *job]
    running.append(subprocess.Popen(pinned, stdout=subprocess.PIPE, text=True))
  found = [process.communicate()[0].split() for process in running]
  if any(process.returncode for process in running):
    raise SystemExit("a process failed")
  return max(float(words[-1]) for words in found if words)


def main() -> None:
  """Prints a line for each repeat and the medians."""
  if len(os.sched_getaffinity(0)) < 2:
    raise SystemExit("this takes two cores")
  rows = []
  for _ in range(REPEATS):
    with socket.socket() as free:
      free.bind(("127.0.0.1", 0))
      port = str(free.getsockname()[1])
    one = _seconds([("0", "1", "0")])
    two = _seconds([(port, "2", "0"), (port, "2", "1")])
    apart = _seconds([("0", "1", "0")] * 2)
    rows.append((one, two, apart))
    print(
      f"one process {one:.2f} s, two {two:.2f} s: {one / two:.2f}x; two that know "
      f"nothing of each other: {2 * one / apart:.2f}x",
      flush=True,
    )
  one, two, apart = np.median(rows, axis=0)
  print(
    f"median of {REPEATS}: {one / two:.2f}x, ceiling {2 * one / apart:.2f}x "
    f"({CHILDREN} children, {EPOCHS} epochs)"
  )


if __name__ == "__main__":
  work(*sys.argv[1:]) if len(sys.argv) > 1 else main()
