"""Run folders as read, and which runs may be compared with each other."""

import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from nasjax.core.types import InputError
from nasjax.results import analysis, comparison, records, tables

Record = dict[str, Any]
# What a run reached, and the keys of its summary that may hold it, first wins.
FIGURES: dict[str, tuple[str, ...]] = {
  "best_score": ("best_score",),
  "test_score": ("test_score", "test_accuracy"),
  "random_search_best_score": ("random_search_best_score",),
  "random_search_test_score": (
    "random_search_test_score",
    "random_search_test_accuracy",
  ),
  "sklearn_test_score": ("sklearn_test_score", "sklearn_test_accuracy"),
  "majority_test_score": (
    "majority_test_score",
    "majority_score",
    "majority_accuracy",
  ),
}
_IDENTITY = {"experiment", "seed", "config"}


class RunFiles(NamedTuple):
  """The files of a run, as read.

  Attributes:
    name: of its folder.
    folder: as it was given.
    identity: `config.json`: experiment, seed, smoke, config.
    summary: `summary.json`; empty while there is none.
    children: `records.jsonl`, in the order of evaluation.
    control: `control_records.jsonl`, those of random search.
  """

  name: str
  folder: pathlib.Path
  identity: dict[str, Any]
  summary: dict[str, Any]
  children: list[Record]
  control: list[Record]

  @property
  def experiment(self) -> str:
    """The experiment's name."""
    return self.identity.get("experiment") or self.summary.get("experiment", self.name)

  @property
  def seed(self) -> int | None:
    """Of everything random."""
    return self.identity.get("seed", self.summary.get("seed"))

  @property
  def config(self) -> dict[str, Any]:
    """The experiment's config, nested."""
    return self.identity.get("config") or {}

  @property
  def smoke(self) -> bool:
    """Whether it is the seconds-long version."""
    return bool(self.identity.get("smoke"))

  @property
  def metric(self) -> str:
    """What a score is: "accuracy" or "r2"; "score" when nothing says so."""
    first = (r["metric"] for r in self.children if r.get("metric"))
    return self.summary.get("metric") or next(first, "score")

  @property
  def finished(self) -> bool:
    """Whether it came to its end."""
    return self.summary.get("status") == "finished"

  @property
  def progress(self) -> str:
    """How many children of how many, as far as the files say."""
    done = self.summary.get("num_evaluations")
    done = len(self.children) if done is None else done
    planned = self.summary.get("planned_evaluations")
    if planned is None:
      strategy = self.config.get("strategy") or {}
      if "rounds" in strategy and "population" in strategy:
        planned = strategy["rounds"] * strategy["population"]
    return f"{done}{'' if planned is None else f' of {planned}'} children"


class Group(NamedTuple):
  """Runs that differ in nothing but the seed.

  Attributes:
    label: the experiment, with a letter where another config of it is there too.
    differs: the settings that set it apart from those others.
    task: what was learned, as text; only groups of one task and metric compare.
    metric: of the scores.
    runs: by seed.
  """

  label: str
  differs: str
  task: str
  metric: str
  runs: list[RunFiles]

  @property
  def finished(self) -> list[RunFiles]:
    """The runs that came to their end: of the others a best score says less."""
    return [run for run in self.runs if run.finished]


def read(folder: str | os.PathLike) -> RunFiles:
  """The files of a folder, those that are there.

  Raises:
    InputError: there is no such folder, or one of its files is damaged.
  """
  path = pathlib.Path(folder)
  if not path.is_dir():
    raise InputError(f"no run in {path}: there is no such folder")
  return RunFiles(
    name=path.resolve().name,
    folder=path,
    identity=_read_json(path / "config.json"),
    summary=_read_json(path / "summary.json"),
    children=records.read(path / "records.jsonl"),
    control=records.read(path / "control_records.jsonl"),
  )


def _read_json(path: pathlib.Path) -> dict[str, Any]:
  try:
    value = json.loads(path.read_text(encoding="utf-8"))
  except FileNotFoundError:
    return {}
  except ValueError:
    value = None
  if not isinstance(value, dict):
    raise InputError(f"{path} is damaged: it should hold one JSON object")
  return value


def read_searches(folders: Sequence[str | os.PathLike]) -> list[RunFiles]:
  """Several searches, each of which evaluated something.

  Raises:
    InputError: a folder is no run, holds no records, or holds the run of another one
      again: a seed counts once.
  """
  found: dict[str, RunFiles] = {}
  for folder in folders:
    run = read(folder)
    if not run.identity.keys() >= _IDENTITY:
      raise InputError(f"{run.folder} holds no run: config.json names no experiment")
    if not run.children:
      raise InputError(
        f"{run.folder} has no records: {run.experiment} evaluated no child there"
      )
    same = json.dumps([_settings(run), run.seed], sort_keys=True)
    if same in found:
      raise InputError(
        f"{found[same].folder} and {run.folder} hold the same run: {run.experiment}, "
        f"seed {run.seed}; a seed counts once"
      )
    found[same] = run
  return list(found.values())


def _settings(run: RunFiles) -> dict[str, Any]:
  return {"experiment": run.experiment, "smoke": run.smoke, "config": run.config}


def groups(found: Sequence[RunFiles]) -> list[Group]:
  """The runs by experiment and config, in the order in which they were given.

  A run that has no summary yet does not say what it learned from: it is taken to be
  what another run of the experiment with the same data settings says.
  """
  tasks = {_data_settings(run): task for run in found if (task := _task(run))}
  together: dict[str, list[RunFiles]] = {}
  for run in found:
    key = json.dumps(_settings(run), sort_keys=True)
    together.setdefault(key, []).append(run)
  made = []
  for runs in together.values():
    first = runs[0]
    others = [g[0] for g in together.values() if g[0].experiment == first.experiment]
    letter = f" {_letter(others.index(first))}" if len(others) > 1 else ""
    known = next(filter(None, map(_task, runs)), None)
    task = known or tasks.get(_data_settings(first)) or first.experiment
    made.append(
      Group(
        label=first.experiment + letter,
        differs=_differences(first, others),
        task=task,
        metric=first.metric,
        runs=sorted(runs, key=lambda run: run.seed or 0),
      )
    )
  return made


def _letter(index: int) -> str:
  """A to Z, then 27 and on."""
  return chr(ord("A") + index) if index < 26 else str(index + 1)


def _task(run: RunFiles) -> str | None:
  data = run.summary.get("data") or {}
  if not data.get("name"):
    return None
  rows = sum((data.get("rows") or {}).values())
  details = [data.get("task"), f"{rows:,} rows" if rows else None]
  return f"{data['name']} ({', '.join(filter(None, details))})"


def _data_settings(run: RunFiles) -> str:
  return json.dumps([run.experiment, run.config.get("data")], sort_keys=True)


def _differences(run: RunFiles, others: Sequence[RunFiles]) -> str:
  """The settings of a run that are not the same in all others, as text."""
  settings = [dict(tables.flatten(other.config)) for other in others]
  mine = dict(tables.flatten(run.config))
  names = sorted(set().union(*settings))
  parts = [
    f"{name}={mine.get(name, 'absent')}"
    for name in names
    if len({values.get(name) for values in settings}) > 1
  ]
  if len({other.smoke for other in others}) > 1:
    parts.append(f"smoke={run.smoke}")
  return ", ".join(parts)


def figures(run: RunFiles) -> dict[str, float | None]:
  """What a run reached, by the names of `FIGURES`; None for what it did not come to."""
  values = {
    name: next((v for k in keys if (v := run.summary.get(k)) is not None), None)
    for name, keys in FIGURES.items()
  }
  for name, part in (
    ("best_score", run.children),
    ("random_search_best_score", run.control),
  ):
    if values[name] is None:
      values[name] = (analysis.best(part) or {}).get("score")
  return values


def anytime(
  parts: Sequence[tuple[Sequence[Record], bool]], budget: str, grid: np.ndarray
) -> comparison.Band:
  """The incumbent's score by what it has cost, over the seeds of a group.

  Args:
    parts: the records of each seed and whether it came to its end; of one that did,
      the last value holds on, of one that did not nothing is said after it.
    budget: "evaluations", or "seconds": those of the children, summed.
    grid: `[G]` budgets, ascending.

  Returns:
    The band at each of them, from where every seed has a score on: a mean over the
    quickest would fall as the others come in.
  """
  longest = max((len(part) for part, _ in parts), default=0)
  shape = len(parts), longest
  curves, costs = np.full(shape, np.nan), np.full(shape, np.nan)
  for i, (part, _) in enumerate(parts):
    scores = analysis.finite_scores(part)
    curves[i, : len(part)] = analysis.incumbent_curve(scores)
    costs[i, : len(part)] = cumulative(part, budget)
  values = comparison.anytime(curves, costs, grid)
  scored = np.where(np.isfinite(curves), costs, np.inf).min(1, initial=np.inf)
  begun = scored[np.isfinite(scored)].max(initial=-np.inf)
  values[:, grid < begun] = np.nan
  for row, cost, (_, finished) in zip(values, costs, parts):
    if not finished:
      row[grid > np.nanmax(cost, initial=-np.inf)] = np.nan
  return comparison.band(values)


def cumulative(part: Sequence[Record], budget: str) -> np.ndarray:
  """What each of N children and those before it have cost, `[N]`."""
  if budget == "evaluations":
    return np.arange(1.0, len(part) + 1)
  return np.cumsum([record.get("seconds") or 0.0 for record in part])
