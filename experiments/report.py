"""One comparison report of several real runs, finished or not.

Runs that differ only in the seed are a group: means with intervals, anytime curves with
bands. Groups of one task and metric are tested against each other, and each search
against its own random-search control; what differs in task or metric stands apart.

Command: python run.py --experiment=report --config.workdirs=runs/a,runs/b
         (--overwrite reads them again)
"""

import dataclasses
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from nasjax.core.config import field
from nasjax.core.types import InputError
from nasjax.results import analysis, comparison, plots, report, runs, tables
from nasjax.results.runs import Group, RunFiles
from nasjax.results.tables import counted, figure, number
from nasjax.runtime import Run

_GRID = 200  # budgets that a curve of seconds is drawn at
_LOG_RATIO = 30  # of budgets, above which their axis is logarithmic
_OURS = {
  "test_score": "test score of the retrained best",
  "best_score": "best validation score",
}
_CONTROL = {
  "test_score": "random_search_test_score",
  "best_score": "random_search_best_score",
}
_NAMES = _OURS | {
  "random_search_best_score": "random search's best validation score",
  "random_search_test_score": "test score of random search's best, retrained",
  "sklearn_test_score": "scikit-learn's test score",
  "majority_test_score": "test score of the majority class, or of the mean",
}


@dataclasses.dataclass(frozen=True)
class Config:
  """Configuration of `report`."""

  workdirs: tuple[str, ...] = field((), "folders of runs, each of them a search")

  def smoke(self) -> "Config":
    """The same: it takes seconds as it is."""
    return self


def run(config: Config, run: Run) -> None:
  """Runs the experiment."""
  if not config.workdirs:
    raise InputError("give --config.workdirs=FOLDER,FOLDER: the runs to compare")
  together = comparable(config.workdirs)
  run.begin()
  found = [compared(groups) for groups in together]
  run.write_summary(
    {
      "experiment": run.experiment,
      "seed": run.seed,
      "status": "finished",
      "tasks": found,
      "command": run.command,
    }
  )
  show(run, found)
  run.log(f"report: {write_page(run, together, found)}")


def comparable(workdirs: Sequence[str | os.PathLike]) -> list[list[Group]]:
  """The runs of these folders, by task and metric.

  Raises:
    InputError: see `runs.read_searches`.
  """
  together: dict[tuple[str, str], list[Group]] = {}
  for group in runs.groups(runs.read_searches(workdirs)):
    together.setdefault((group.task, group.metric), []).append(group)
  return list(together.values())


def show(run: Run, found: Sequence[dict[str, Any]]) -> None:
  """Prints the runs of each task, and what they say."""
  for one in found:
    table = _run_table(one)
    names = [name for name, _ in table.columns]
    run.table(_title(one), names, [list(row) for row in table.rows])
    run.log(one["sentence"])


def compared(groups: Sequence[Group]) -> dict[str, Any]:
  """Everything about the groups of one task and metric, as the summary has it."""
  found: dict[str, Any] = {
    "task": groups[0].task,
    "metric": groups[0].metric,
    "groups": [_summarised(group) for group in groups],
    "runs": [_row(group, each) for group in groups for each in group.runs],
    "pairs": {name: _between(groups, name) for name in _OURS},
    "control_pairs": {name: _against_control(groups, name) for name in _OURS},
    "anytime": {
      budget: _curves(groups, budget) for budget in ("evaluations", "seconds")
    },
  }
  return found | {"sentence": _sentence(found)}


def _summarised(group: Group) -> dict[str, Any]:
  """What a group reached over the seeds that came to their end."""
  figures = {name: comparison.summary(_values(group, name)) for name in runs.FIGURES}
  return {
    "label": group.label,
    "differs": group.differs,
    "seeds": [each.seed for each in group.runs],
    "finished_seeds": [each.seed for each in group.finished],
    "figures": {name: told._asdict() for name, told in figures.items() if told.n},
  }


def _row(group: Group, each: RunFiles) -> dict[str, Any]:
  best = analysis.best(each.children) or {}
  summary = each.summary
  params = summary.get("num_params")
  seconds = summary.get("search_seconds")
  return {
    "folder": str(each.folder),
    "group": group.label,
    "seed": each.seed,
    "status": "finished" if each.finished else summary.get("status", "unfinished"),
    "smoke": each.smoke,
    "progress": each.progress.removesuffix(" children"),
    "evaluations": len(each.children),
    "failed": sum(record.get("score") is None for record in each.children),
    "search_seconds": seconds,
    "child_seconds": float(runs.cumulative(each.children, "seconds")[-1]),
    "num_params": best.get("num_params") if params is None else params,
    "best_arch": summary.get("best_arch") or best.get("arch"),
    **runs.figures(each),
  }


def _values(group: Group, name: str) -> list[float]:
  """A figure of each finished seed, NaN where there is none."""
  found = [runs.figures(each)[name] for each in group.finished]
  return [math.nan if value is None else value for value in found]


def _between(groups: Sequence[Group], name: str) -> list[dict[str, Any]]:
  """Tests of every two groups that have two finished seeds each."""
  values = {group.label: _values(group, name) for group in groups}
  values = {k: v for k, v in values.items() if np.isfinite(v).sum() >= 2}
  if len(values) < 2:
    return []
  return [pair._asdict() for pair in comparison.pairwise(values)]


def _against_control(groups: Sequence[Group], name: str) -> list[dict[str, Any]]:
  """Each search against random search at its budget, on the same rows by seed."""
  pairs = []
  for group in groups:
    ours, control = _values(group, name), _values(group, _CONTROL[name])
    if (np.isfinite(ours) & np.isfinite(control)).sum() >= 2:
      both = {group.label: ours, _control_label(group): control}
      pairs += comparison.pairwise(both, paired=True)
  # One family of tests: every search of the task.
  adjusted = comparison.holm([min(2 * pair.p, 1.0) for pair in pairs])
  return [pair._replace(p_holm=float(p))._asdict() for pair, p in zip(pairs, adjusted)]


def _control_label(group: Group) -> str:
  return f"random, {group.label}"


def _curves(groups: Sequence[Group], budget: str) -> dict[str, dict[str, np.ndarray]]:
  """Bands of the incumbents, of searches and of their controls.

  A run that did not come to its end has a line of its own: where it ends, a mean with
  it would jump.
  """
  parts: dict[str, list[tuple[list[dict[str, Any]], bool]]] = {}
  for group in groups:
    for each in group.runs:
      seed = "" if each.finished else f", seed {each.seed}"
      for label, records in (
        (group.label, each.children),
        (_control_label(group), each.control),
      ):
        if any(record.get("score") is not None for record in records):
          parts.setdefault(label + seed, []).append((records, each.finished))
  if not parts:
    return {}
  every = [runs.cumulative(r, budget) for part in parts.values() for r, _ in part]
  first = min(costs[0] for costs in every)
  last = max(costs[-1] for costs in every)
  if budget == "evaluations":
    grid = np.arange(1.0, last + 1)
  elif first > 0:
    grid = np.geomspace(first, last, _GRID)
    grid[-1] = last  # what rounding would leave out is the whole run
  else:
    grid = np.linspace(0, last, _GRID)
  return {
    label: {"grid": grid, **runs.anytime(part, budget, grid)._asdict()}
    for label, part in parts.items()
  }


def _sentence(found: dict[str, Any]) -> str:
  """What the data of one task say."""
  scale, unit = (
    (100.0, "points") if found["metric"] == "accuracy" else (1.0, "in score")
  )
  parts = []
  for name, words in _OURS.items():
    for kind, start in (("pairs", ""), ("control_pairs", "against random search, ")):
      pairs = [comparison.Pair(**pair) for pair in found[kind][name]]
      if pairs:
        said = comparison.sentence(pairs, scale=scale, unit=unit)
        title = start + words
        parts.append(f"{title[0].upper()}{title[1:]}: {said}")
  if parts:
    return " ".join(parts)
  best = [row for row in found["runs"] if row["best_score"] is not None]
  if not best:
    return "No child has a score."
  first = max(best, key=lambda row: row["best_score"])
  return (
    f"The best validation score is {number(first['best_score'])}, by {first['group']}, "
    f"seed {first['seed']}; with fewer than two finished seeds of a group nothing is "
    "tested."
  )


def _title(found: dict[str, Any]) -> str:
  return f"{found['task']}, {plots.metric_label(found['metric'])}"


def write_page(
  run: Run,
  together: Sequence[Sequence[Group]],
  found: Sequence[dict[str, Any]],
  first: Sequence[report.Section] = (),
) -> pathlib.Path:
  """Writes `report.html` and `report.md`; the path of the former.

  Args:
    run: whose folder it is.
    together: what `comparable` gave.
    found: what `compared` says of each of them.
    first: sections before these.
  """
  sections = list(first)
  for one in found:
    title = _title(one)
    sections.append(report.Section(f"{title}: the runs", _run_table(one)))
    notes = [_GROUP_NOTE, *_group_notes(one)]
    sections.append(report.Section(f"{title}: over seeds", _group_table(one), notes))
    sections.append(
      report.Section(f"{title}: best so far", None, [_CURVE_NOTE], _plots(one))
    )
    tests = _pair_table(one)
    if tests is not None:
      sections.append(report.Section(f"{title}: differences", tests, [_PAIR_NOTE]))
  said = [f"{_title(one)}. {one['sentence']}" for one in found]
  count = sum(len(one["runs"]) for one in found)
  return report.write_page(
    run.workdir,
    {
      "experiment": "Comparison of runs",
      "status": f"{counted(count, 'run')}, {counted(len(found), 'task')}",
      "headline": " ".join(said),
      "warnings": _warnings(together, found),
      "sections": [*sections, report.Section("Run it again", command=run.command)],
    },
  )


_GROUP_NOTE = (
  "Mean over the finished seeds, standard deviation, standard error, and Student's "
  "95 % interval of the mean."
)
_CURVE_NOTE = (
  "Bands: 95 % intervals of the mean over the finished seeds, from where each has a "
  "score. Seconds are those of the children, summed: children that train at one "
  "time count in full."
)
_PAIR_NOTE = (
  "Between searches the one-sided Mann-Whitney U test; a search against its own random "
  "search, on the same rows by seed, Wilcoxon's signed-rank test. Corrected: Holm's "
  "adjustment of the two-sided p over all pairs of a kind and score. Better is who "
  "ranks higher; the difference is that of the means. Groups are compared as they ran, "
  "at equal budget or not."
)


def _warnings(together, found) -> list[str]:
  """What a reader must not overlook."""
  lines = []
  for one, groups in zip(found, together):
    unfinished = [row["folder"] for row in one["runs"] if row["status"] != "finished"]
    if unfinished:
      lines.append(f"not finished, so in no mean and no test: {', '.join(unfinished)}")
    smoke = [row["folder"] for row in one["runs"] if row["smoke"]]
    if smoke:
      lines.append(f"smoke versions, which show nothing: {', '.join(smoke)}")
    budgets = sorted({len(r.children) for g in groups for r in g.finished})
    if len(budgets) > 1:
      shown = ", ".join(map(str, budgets))
      lines.append(f"{_title(one)}: budgets differ ({shown} evaluations)")
    splits = {
      str((each.summary.get("data") or {}).get("rows"))
      for group in groups
      for each in group.runs
      if each.summary.get("data")
    }
    if len(splits) > 1:
      lines.append(f"{_title(one)}: train, valid and test rows are split differently")
  return lines


def _run_table(found: dict[str, Any]) -> tables.Table:
  columns = [("run", False), ("group", False), ("seed", True), ("status", False)]
  columns += [("validation", True), ("test", True)]
  columns += [("random search: validation", True), ("test", True)]
  columns += [("scikit-learn", True), ("majority", True), ("evaluations", True)]
  columns += [("search, s", True), ("parameters", True)]
  rows = []
  for row in found["runs"]:
    cells = [row["folder"], row["group"], str(row["seed"]), row["status"]]
    cells += [number(row[name]) for name in runs.FIGURES]
    cells += [row["progress"], figure(row["search_seconds"]), number(row["num_params"])]
    rows.append(cells)
  made = tables.table(columns, rows)
  assert made is not None  # there is a run
  return made


def _group_notes(found: dict[str, Any]) -> list[str]:
  return [f"{g['label']}: {g['differs']}" for g in found["groups"] if g["differs"]]


def _group_table(found: dict[str, Any]) -> tables.Table | None:
  columns = [("group", False), ("", False), ("mean", True), ("std", True)]
  columns += [("standard error", True), ("95 % interval", True), ("seeds", True)]
  rows = []
  for group in found["groups"]:
    for name, told in group["figures"].items():
      interval = tables.DASH
      if math.isfinite(told["low"]):
        interval = f"{told['low']:.4f} to {told['high']:.4f}"
      spread = [number(told[k]) for k in ("mean", "std", "sem")]
      rows.append([group["label"], _NAMES[name], *spread, interval, str(told["n"])])
  return tables.table(columns, rows)


def _pair_table(found: dict[str, Any]) -> tables.Table | None:
  columns = [("", False), ("better", False), ("other", False)]
  columns += [("difference", True), ("p, one-sided", True), ("p, corrected", True)]
  rows = [
    [words, pair["better"], pair["worse"], number(pair["difference"])]
    + [f"{pair[p]:.2g}" for p in ("p", "p_holm")]
    for name, words in _OURS.items()
    for kind in ("pairs", "control_pairs")
    for pair in found[kind][name]
  ]
  return tables.table(columns, rows)


def _plots(found: dict[str, Any]) -> list[dict[str, str]]:
  made = []
  metric = plots.metric_label(found["metric"])
  for budget, label in (
    ("evaluations", "children evaluated"),
    ("seconds", "seconds of the children, summed"),
  ):
    curves = {
      name: tuple(band[k] for k in ("grid", "mean", "low", "high"))
      for name, band in found["anytime"][budget].items()
    }
    if not curves:
      continue
    grid = next(iter(curves.values()))[0]
    drawn = plots.anytime_curves(
      curves,
      label,
      f"best validation {metric} so far",
      f"Best so far by {budget}",
      log_x=bool(
        budget == "seconds" and grid[0] * _LOG_RATIO < grid[-1] and grid[0] > 0
      ),
    )
    note = "Mean over the finished seeds of a group; of another seed its own line."
    made.append({"svg": plots.to_svg(drawn), "note": note, "title": f"by {budget}"})
  return made
