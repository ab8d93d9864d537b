"""Experiments x seeds x settings: many runs, on Ray or one after the other.

Every run has a folder of its own below the sweep's and is what `run.py` would do there:
what is finished is not done again, what was cut off goes on. Ray (extra [cluster])
starts by itself on this machine, or joins a cluster; a run whose worker is lost is
tried again and goes on from its last checkpoint. On a cluster the folder has to be on a
file system that its machines share. At the end one report compares all runs.

Command: python run.py --experiment=sweep --config.runs=mlpnas_digits,mlpnas_wine \
           --config.seeds=0:20 --config.grid="strategy.entropy=0,0.01"
         (more seeds in the same folder: with --overwrite; runs that are done are kept)
Result: the comparison of `--experiment=report`, with the runs that it consists of.
"""

import contextlib
import dataclasses
import io
import itertools
import os
import re
import shlex
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import run as command_line
from experiments import report as comparison
from experiments.common_ray import RayConfig
from nasjax.core import interrupts
from nasjax.core.config import field
from nasjax.core.types import InputError
from nasjax.parallel import ray_cluster
from nasjax.results import report, runs, tables
from nasjax.results.tables import counted, figure
from nasjax.runtime import Run

_POLL_SECONDS = 1.0
_LOG_SECONDS = 30.0
_COLUMNS = ("run", "state", "progress", "best", "seconds")


@dataclasses.dataclass(frozen=True)
class Config:
  """Configuration of `sweep`."""

  runs: tuple[str, ...] = field((), "experiments")
  seeds: str = field("0:3", "first:last+1, or several by comma")
  grid: str = field(
    "", "settings that vary: strategy.entropy=0,0.01;estimator.epochs=5"
  )
  flags: str = field("", "for every run, as on its command line; NAME:--flag for one's")
  engine: str = field(
    "auto", "auto: ray where it is installed", ("auto", "ray", "here"), matters=False
  )
  ray: RayConfig = RayConfig()

  def smoke(self) -> "Config":
    """The seconds-long version that the tests run end to end."""
    return dataclasses.replace(
      self, runs=("mlpnas_digits",), seeds="0:2", flags="--smoke", engine="here"
    )


@dataclasses.dataclass
class Task:
  """One run of a sweep.

  Attributes:
    label: experiment, settings and seed.
    arguments: of `run.py`.
    folder: its own.
    state: waiting, running, finished, failed or interrupted.
    said: why it failed.
    seconds: that it took here; None if it did not run here.
  """

  label: str
  arguments: list[str]
  folder: str
  state: str = "waiting"
  said: str = ""
  seconds: float | None = None

  def row(self) -> list[str]:
    """Cells of the live table; what its files say while it runs."""
    progress = best = tables.DASH
    with contextlib.suppress(InputError):
      found = runs.read(self.folder)
      if found.children:
        progress = found.progress
        best = tables.number(runs.figures(found)["best_score"])
    return [self.label, self.state, progress, best, figure(self.seconds)]


def run(config: Config, run: Run) -> None:
  """Runs the experiment."""
  tasks = plan(config, str(run.workdir / "runs"), run.compilation_cache)
  engine = config.engine
  if engine == "auto":
    engine = "ray" if ray_cluster.installed() else "here"
  if engine == "ray":
    ray_cluster.check()
  run.begin()
  run.log(f"{counted(len(tasks), 'run')}, {_WHERE[engine]}")
  begin = time.monotonic()
  summary: dict[str, Any] = {
    "experiment": run.experiment,
    "seed": run.seed,
    "status": "interrupted",
    "engine": engine,
    "command": run.command,
  }
  try:
    if engine == "ray":
      _on_ray(tasks, config, run)
    else:
      _in_turn(tasks, run)
    failed = [task for task in tasks if task.state != "finished"]
    summary["status"] = "incomplete" if failed else "finished"
  finally:
    for task in tasks:
      task.state = "interrupted" if task.state == "running" else task.state
    summary["seconds"] = time.monotonic() - begin
    summary["runs"] = [dataclasses.asdict(task) for task in tasks]
    summary["tasks"] = _compare(tasks, run)
    run.write_summary(summary)
  if failed:
    first = failed[0]
    raise InputError(
      f"{len(failed)} of {counted(len(tasks), 'run')} failed, the first {first.label}: "
      f"{first.said}; the same command tries them again"
    )


_WHERE = {"ray": "on Ray", "here": "one after the other in this process"}


def plan(config: Config, folder: str, cache: str | None = None) -> list[Task]:
  """The runs of a sweep, seed by seed; each command line has been read.

  Args:
    config: of the sweep.
    folder: in which each gets a folder.
    cache: `--compilation_cache` of those whose own flags have none.

  Raises:
    InputError: no experiment, a seed or a grid that cannot be, or a command line that
      `run.py` refuses.
  """
  if not config.runs:
    raise InputError("give --config.runs=NAME,NAME: the experiments to run")
  config.ray.check()
  try:
    common = shlex.split(config.flags)
  except ValueError as error:
    raise InputError(f"config.flags: {error}") from None
  own: dict[str, list[str]] = {name: [] for name in config.runs}
  for word in common:
    owner, colon, flag = word.partition(":")
    owners = [owner] if colon and owner in own else list(own)
    flag = flag if colon and owner in own else word
    if flag.lstrip("-").partition("=")[0] in ("experiment", "workdir", "seed"):
      raise InputError(f"config.flags: {word!r} is different for every run")
    for name in owners:
      own[name].append(flag)
  tasks: dict[str, Task] = {}
  settings = parse_grid(config.grid)
  seeds = parse_seeds(config.seeds)
  for name, setting, seed in itertools.product(config.runs, settings, seeds):
    chosen = [f"{key}={value}" for key, value in setting]
    label = ", ".join([name, *chosen, f"seed {seed}"])
    place = os.path.join(folder, "-".join([name, *map(_safe, chosen), f"seed{seed}"]))
    if place in tasks:
      raise InputError(f"the sweep has {label} twice")
    arguments = [f"--experiment={name}", f"--seed={seed}", f"--workdir={place}"]
    arguments += [f"--compilation_cache={cache}"] if cache else []
    # Of a flag that is there twice the last counts.
    arguments += [f"--config.{key}={value}" for key, value in setting] + own[name]
    try:
      read = command_line.read(arguments)
    except InputError as error:
      raise InputError(f"{label}: {error}") from None
    if read.experiment in ("sweep", "report", "predict"):
      raise InputError(f"{name} cannot be in a sweep")
    tasks[place] = Task(label, arguments, place)
  return list(tasks.values())


def _safe(text: str) -> str:
  """As a part of a folder's name."""
  return re.sub(r"[^\w.=,+-]", "_", text)


def parse_seeds(text: str) -> list[int]:
  """Seeds out of `0:3` or `0,1,7`.

  Raises:
    InputError: it is neither, or there is none.
  """
  seeds: list[int] = []
  try:
    for part in text.split(","):
      first, colon, last = part.partition(":")
      seeds += range(int(first), int(last)) if colon else [int(first)]
  except ValueError:
    seeds = []
  if not seeds or min(seeds) < 0:
    raise InputError(f"config.seeds must look like 0:3 or 0,1,7, got {text!r}")
  return seeds


def parse_grid(text: str) -> list[tuple[tuple[str, str], ...]]:
  """All settings of a grid, each as pairs of field and value; one without any if the
  grid is empty.

  Raises:
    InputError: a part is not `field=value,value`.
  """
  axes = []
  for part in filter(None, (part.strip() for part in text.split(";"))):
    name, _, values = part.partition("=")
    each = [value.strip() for value in values.split(",")]
    name = name.strip().removeprefix("--").removeprefix("config.")
    if not name or not all(each):
      raise InputError(
        f"config.grid must look like strategy.entropy=0,0.01;estimator.epochs=5,10, "
        f"got {part!r}"
      )
    axes.append([(name, value) for value in each])
  return list(itertools.product(*axes))


class Outcome(NamedTuple):
  """How a command line ended: status, what it said of a mistake, seconds if known."""

  status: int
  said: str
  seconds: float | None


def execute(arguments: Sequence[str]) -> Outcome:
  """Runs a command line in this process."""
  said, begin = io.StringIO(), time.monotonic()
  with contextlib.redirect_stderr(said):
    status = command_line.main(arguments)
  lines = said.getvalue().splitlines()
  errors = [line for line in lines if line.startswith("error: ")]
  text = (errors or lines or [""])[-1].removeprefix("error: ")
  return Outcome(status, text, time.monotonic() - begin)


def _finish(task: Task, outcome: Outcome, run: Run) -> None:
  task.state, task.said = "finished", ""
  if outcome.status:
    task.state, task.said = "failed", outcome.said
  task.seconds = outcome.seconds
  run.log(f"{task.label}: {': '.join(filter(None, (task.state, task.said)))}")


def _of_error(error: BaseException) -> Outcome:
  """An error that no user can mend, or a worker that was lost too often."""
  lines = str(error).strip().splitlines() or [""]
  return Outcome(1, f"{type(error).__name__}: {lines[-1]}", None)


def _in_turn(tasks: Sequence[Task], run: Run) -> None:
  for number, task in enumerate(tasks, 1):
    run.log(f"run {number} of {len(tasks)}: {task.label}")
    task.state = "running"
    try:
      outcome = execute(task.arguments)
    except Exception as error:  # one run's bug is not the others'
      outcome = _of_error(error)
    if outcome.status == interrupts.STATUS:
      task.state = "interrupted"
      raise KeyboardInterrupt
    _finish(task, outcome, run)


def _on_ray(tasks: Sequence[Task], config: Config, run: Run) -> None:
  """All runs as Ray tasks, each in a fresh worker process."""
  with (
    ray_cluster.connected(config.ray.address) as ray,
    run.live_table("sweep", list(_COLUMNS)) as show,
  ):
    config.ray.check_room(ray)
    # What a run leaves in a process is not the next one's.
    remote = ray.remote(max_calls=1, **config.ray.options())(execute)
    of = {remote.remote(task.arguments): task for task in tasks}
    left, logged = list(of), time.monotonic()
    try:
      while left:
        done, left = ray.wait(left, timeout=_POLL_SECONDS)
        interrupts.check()
        for ref in done:
          try:
            outcome = ray.get(ref)
          except ray.exceptions.RayError as error:
            outcome = _of_error(error)
          _finish(of[ref], outcome, run)
        for ref in left:
          if os.path.exists(os.path.join(of[ref].folder, "log.txt")):
            of[ref].state = "running"
        show([task.row() for task in tasks])
        if time.monotonic() - logged > _LOG_SECONDS:
          logged = time.monotonic()
          run.log(_states(tasks))
    finally:
      _end(ray, left)


def _end(ray: Any, left: Sequence[Any]) -> None:
  """Interrupts what still runs, and waits for its last words."""
  for ref in left:
    ray.cancel(ref)
  if left:
    ray.wait(list(left), num_returns=len(left), timeout=interrupts.ANSWER_SECONDS)


def _states(tasks: Sequence[Task]) -> str:
  states = [task.state for task in tasks]
  shown = [f"{states.count(s)} {s}" for s in dict.fromkeys(states)]
  return f"{counted(len(tasks), 'run')}: {', '.join(shown)}"


def _compare(tasks: Sequence[Task], run: Run) -> list[dict[str, Any]]:
  """Writes the report; what it says of each task."""
  rows = [task.row() + [task.said or tables.DASH] for task in tasks]
  columns = [*((name, i > 1) for i, name in enumerate(_COLUMNS)), ("", False)]
  sections = [report.Section("The sweep", tables.table(columns, rows))]
  run.table("sweep", [name for name, _ in columns], rows)
  folders = []
  for task in tasks:
    with contextlib.suppress(InputError):
      if runs.read(task.folder).children:
        folders.append(task.folder)
  together = comparison.comparable(folders) if folders else []
  found = [comparison.compared(groups) for groups in together]
  comparison.show(run, found)
  run.log(f"report: {comparison.write_page(run, together, found, sections)}")
  return found
