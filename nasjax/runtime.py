"""A run: its directory, what it prints, what it compiled, where it ran."""

import contextlib
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import filelock
import jax
import rich.console
import rich.live
import rich.markup
import rich.progress
import rich.table
import rich.text

import nasjax
from nasjax.core import cache, interrupts
from nasjax.core.types import InputError
from nasjax.results import records as records_lib
from nasjax.results.checkpoints import Checkpoints
from nasjax.results.metrics import MetricsWriter

_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
_CACHE_EVENT = "/jax/compilation_cache/cache_hits"
STAGES = "stages.json"  # what each part of the work gave, so that it is done once
CHECKPOINTS = "checkpoints"
CHILDREN = "children"  # of the round that is on, among the checkpoints
LOCK = ".lock"
LOG = "log.txt"
_LOG_EVERY_SECONDS = 5.0


class _Compiles:
  """Counts what XLA compiles in this process, from JAX's own events.

  Attributes:
    count: programs that were wanted.
    cached: those of them that the persistent cache had.
    seconds: what all of them took, summed over threads.
    longest: seconds of the longest that the cache did not have.
  """

  def __init__(self):
    self.count = self.cached = 0
    self.seconds = self.longest = 0.0
    self._lock = threading.Lock()
    self._thread = threading.local()  # a hit is told before the event that it is in
    jax.monitoring.register_event_listener(self._hit)
    jax.monitoring.register_event_duration_secs_listener(self._listen)

  def _hit(self, event: str, **_) -> None:
    if event == _CACHE_EVENT:
      self._thread.hit = True

  def _listen(self, event: str, duration_secs: float, **_) -> None:
    if event != _COMPILE_EVENT:
      return
    hit, self._thread.hit = getattr(self._thread, "hit", False), False
    with self._lock:
      self.count += 1
      self.cached += hit
      self.seconds += duration_secs
      self.longest = self.longest if hit else max(self.longest, duration_secs)


_COMPILES = _Compiles()  # JAX keeps a listener for good: one per process


class CompileCounter:
  """`with CompileCounter() as c: ...; c.count` is what was compiled inside."""

  count = 0
  seconds = 0.0

  def __enter__(self) -> "CompileCounter":
    self._before = (_COMPILES.count, _COMPILES.seconds)
    return self

  def __exit__(self, *_) -> None:
    self.count = _COMPILES.count - self._before[0]
    self.seconds = _COMPILES.seconds - self._before[1]


def environment() -> dict[str, str]:
  """Versions and machine, for the report."""
  packages = ("jax", "flax", "optax", "numpy", "scikit-learn")
  devices = jax.devices()
  return {
    "nasjax": nasjax.__version__,
    **{name: importlib.metadata.version(name) for name in packages},
    "python": platform.python_version(),
    "machine": f"{os.cpu_count()} cores, {platform.machine()}",
    "devices": f"{len(devices)} x {devices[0].device_kind}",
    **({"processes": str(jax.process_count())} if jax.process_count() > 1 else {}),
  }


class _Progress:
  """What `Run.progress` gives: call `update` as children are done."""

  def __init__(
    self, run: "Run", total: int, label: str, unit: str, bar=None, task=None
  ):
    self._run, self._total, self._label, self._unit = run, total, label, unit
    self._bar, self._task = bar, task
    self._start = time.monotonic()
    self._logged = self._start

  def update(self, done: int, **fields: Any) -> None:
    """Shows that `done` of the total are done, beside any fields."""
    interrupts.check()
    details = [f"{name} {value}" for name, value in fields.items()]
    if self._bar is not None:
      self._bar.update(self._task, completed=done, detail=", ".join(details))
      return
    now = time.monotonic()
    if now - self._logged < _LOG_EVERY_SECONDS and done < self._total:
      return
    self._logged = now
    left = (now - self._start) / max(done, 1) * (self._total - done)
    parts = [f"{done}/{self._total} {self._unit}", *details, f"{left:.0f} s left"]
    self._run.log(f"{self._label}: {', '.join(parts)}")


class Run:
  """One run of one experiment in its directory.

  Attributes:
    workdir: the directory.
    experiment: its name.
    seed: of everything random.
    smoke: whether this is the seconds-long version.
    config: the experiment's config, as `config.to_dict` gives it.
    command: how to run it again.
    overwrite: the user has asked to throw away what is there.
    compilation_cache: the flag of the command line: a folder, "off", or None.
    team: the processes of this job (`parallel.processes`); None for one alone.
    already_finished: the directory holds this very run, finished; nothing was touched.
    resumed: it held this very run, unfinished, and that goes on.
    interrupted: an experiment that ends in order after Ctrl-C sets it; one that lets
      the KeyboardInterrupt through need not.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    experiment: str,
    seed: int,
    smoke: bool,
    config: dict[str, Any],
    command: str,
  ):
    self.workdir = workdir
    self.experiment = experiment
    self.seed = seed
    self.smoke = smoke
    self.config = config
    self.command = command
    self.overwrite = False
    self.compilation_cache: str | None = None
    self.team: Any = None
    self.already_finished = self.resumed = False
    self.interrupted = False
    self._prepare: Callable[[bool, int | None], list[str]] = lambda resumes, data: []
    self._lock = filelock.FileLock(workdir / LOCK)
    self._console = rich.console.Console(highlight=False, soft_wrap=True)
    self._compiles = (_COMPILES.count, _COMPILES.cached, _COMPILES.seconds)
    self._metrics: MetricsWriter | None = None

  def begin(self, resumes: bool = False, data: int | None = None) -> None:
    """Takes the directory: from here on the run before is gone, or goes on (which, and
    from where, is numbered in `workdir.open_run`).

    An experiment calls it when everything that the user may have got wrong has been
    checked and the data are there; until then nothing in the directory is touched.

    Args:
      resumes: the experiment goes on with an unfinished run, if `resumed` says so.
      data: digest of what it learns from (`core.trees.digest`).

    Raises:
      InputError: the directory cannot be written, another process is writing it, or it
        holds an unfinished run of other data.
    """
    try:
      self.workdir.mkdir(parents=True, exist_ok=True)
      self._lock.acquire(timeout=0)
      kept = self._prepare(resumes, data)
    except filelock.Timeout:
      raise InputError(
        f"--workdir {self.workdir} is in use by another process; wait for it, or give "
        "another folder"
      ) from None
    except OSError as error:
      raise InputError(
        f"cannot use --workdir {self.workdir}: {error.strerror}"
      ) from None
    if self.resumed:
      self.log("an unfinished run is here; it goes on")
    if kept:
      self.log(
        "an unfinished run was here; it starts again; the records so far are kept as "
        + ", ".join(kept)
      )

  @property
  def key(self) -> jax.Array:
    """The run's typed key."""
    return jax.random.key(self.seed)

  def log(self, message: str) -> None:
    """One line for the user, above the progress bar, and into `log.txt`."""
    interrupts.check()
    message = " ".join(message.splitlines())
    now = datetime.datetime.now().strftime("%H:%M:%S")
    if self._console.is_terminal:
      self._console.print(message, markup=False)
    else:
      print(f"{now} {message}", flush=True)
    with open(self.workdir / LOG, "a", encoding="utf-8") as file:
      file.write(f"{now} {message}\n")

  def warn(self, message: str) -> None:
    """A line that the user should not miss."""
    self.log(f"warning: {message}")

  @contextlib.contextmanager
  def progress(
    self, total: int, label: str, unit: str = "children"
  ) -> Iterator[_Progress]:
    """Progress over `total` children: a bar in a terminal, log lines elsewhere."""
    if not self._console.is_terminal:
      yield _Progress(self, total, label, unit)
      return
    columns = (
      rich.progress.TextColumn("{task.description}"),
      rich.progress.BarColumn(),
      rich.progress.MofNCompleteColumn(),
      rich.progress.TextColumn("{task.fields[detail]}", markup=False),
      rich.progress.TimeElapsedColumn(),
      rich.progress.TextColumn("left"),
      rich.progress.TimeRemainingColumn(),
    )
    with rich.progress.Progress(*columns, console=self._console) as bar:
      task = bar.add_task(label, total=total, detail="compiling")
      yield _Progress(self, total, label, unit, bar, task)

  @contextlib.contextmanager
  def step(self, message: str) -> Iterator[None]:
    """Logs one step of the work; in a terminal a spinner stands there until it ends."""
    self.log(message)
    if not self._console.is_terminal:
      yield
      return
    with self._console.status(rich.markup.escape(message)):
      yield

  def table(self, title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Prints a table; plain aligned text without a terminal."""
    if self._console.is_terminal:
      self._console.print(_rich_table(title, columns, rows))
      return
    widths = [max(map(len, column)) for column in zip(columns, *rows)]
    print(f"\n{title}")
    for row in (columns, *rows):
      print("  " + "  ".join(map(str.ljust, row, widths)).rstrip(), flush=True)

  @contextlib.contextmanager
  def live_table(
    self, title: str, columns: list[str]
  ) -> Iterator[Callable[[list[list[str]]], None]]:
    """Gives a function that shows rows in the place of the rows before; without a
    terminal it shows nothing."""
    if not self._console.is_terminal:
      yield lambda rows: None
      return
    with rich.live.Live(console=self._console, auto_refresh=False) as live:
      yield lambda rows: live.update(_rich_table(title, columns, rows), refresh=True)

  def records(self, name: str = "records") -> records_lib.RecordWriter:
    """A writer of `<name>.jsonl`."""
    return records_lib.RecordWriter(self.workdir / f"{name}.jsonl")

  def checkpoints(self, name: str) -> Checkpoints:
    """The checkpoints of one part of the work."""
    return Checkpoints(self.workdir / CHECKPOINTS / name, self.warn)

  def rewind(self, name: str, count: int, label: str) -> list[dict[str, Any]]:
    """Forgets what was recorded after a checkpoint.

    Args:
      name: of the records; the first `count` are kept.
      count: how many the checkpoint has seen.
      label: metrics of `label/...` are kept up to that step.

    Returns:
      The records that are kept.
    """
    path = self.workdir / "metrics.jsonl"
    metrics = records_lib.read(path)
    kept = [
      line
      for line in metrics
      if line["step"] <= count or not any(k.startswith(f"{label}/") for k in line)
    ]
    if len(kept) < len(metrics):
      self._close_metrics()  # they are read anew, and so is what TensorBoard shows
      text = "".join(json.dumps(line) + "\n" for line in kept)
      records_lib.write_text(path, text)
    return records_lib.keep_first(self.workdir / f"{name}.jsonl", count)

  def once(self, stage: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a stage of the work gives: from the run that goes on, if it came so far.

    Args:
      stage: its name.
      work: gives plain values by name.
    """
    path = self.workdir / STAGES
    stages = records_lib.read_json(path)
    if stage not in stages:
      stages[stage] = work()
      records_lib.write_json(path, stages)
    return stages[stage]

  def read_records(self, name: str = "records") -> list[dict[str, Any]]:
    """What was recorded so far."""
    return records_lib.read(self.workdir / f"{name}.jsonl")

  @property
  def metrics(self) -> MetricsWriter:
    """The writer of `metrics.jsonl` and TensorBoard's event files."""
    if self._metrics is None:
      self._metrics = MetricsWriter(self.workdir)
    return self._metrics

  def write_summary(self, summary: dict[str, Any]) -> None:
    """Writes `summary.json` atomically."""
    records_lib.write_json(self.workdir / "summary.json", summary)

  def read_summary(self) -> dict[str, Any]:
    """`summary.json`, or nothing while there is none."""
    return records_lib.read_json(self.workdir / "summary.json")

  def compile_stats(self) -> dict[str, float]:
    """What was compiled since the run began, as `summary.json` has it.

    Programs, those of them that the persistent cache had, seconds summed over threads,
    and the longest compilation that it did not save (of this process).
    """
    count, cached, seconds = self._compiles
    return {
      "num_compiles": _COMPILES.count - count,
      "num_cached": _COMPILES.cached - cached,
      "compile_seconds": _COMPILES.seconds - seconds,
      "longest_compile_seconds": _COMPILES.longest,
    }

  def close(self) -> None:
    """Flushes what is buffered."""
    try:
      self._close_metrics()
    finally:  # a full disk is nobody's folder
      self._lock.release()

  def _close_metrics(self) -> None:
    metrics, self._metrics = self._metrics, None
    if metrics is not None:
      metrics.close()


def _rich_table(
  title: str, columns: list[str], rows: list[list[str]]
) -> rich.table.Table:
  table = rich.table.Table(title=rich.markup.escape(title), title_justify="left")
  for name in columns:
    table.add_column(rich.markup.escape(name))
  for row in rows:
    table.add_row(*map(rich.text.Text, row))
  return table


# What the persistent cache may take, and the shortest compilation worth a file.
_CACHE_BYTES = 2 * 2**30
_CACHE_SECONDS = 0.1


def use_compilation_cache(folder: str | os.PathLike | None) -> None:
  """Keeps compiled programs between processes; the least used go when it is full.

  Args:
    folder: where, or None for the user's cache folder. If that cannot be made programs
      are not kept: it costs time and nothing else.

  Raises:
    InputError: for a folder that was asked for and cannot be made.
  """
  path = pathlib.Path(folder) if folder else cache.folder() / "programs"
  try:
    path.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    if folder:
      raise InputError(
        f"cannot use --compilation_cache {folder}: {error.strerror}"
      ) from None
    return
  jax.config.update("jax_compilation_cache_dir", str(path))
  jax.config.update("jax_compilation_cache_max_size", _CACHE_BYTES)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", _CACHE_SECONDS)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def compilation_cache_variables() -> dict[str, str]:
  """Variables by which another process uses the cache that this one uses; none if it
  uses none."""
  names = (
    "jax_compilation_cache_dir",
    "jax_compilation_cache_max_size",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
  )
  values = {name: getattr(jax.config, name) for name in names}
  if not values[names[0]]:
    return {}
  return {name.upper(): str(value) for name, value in values.items()}
