"""The report of a run, from the run's files alone: `report.html` and `report.md`.

The HTML is one self-contained file (style and pictures inline, no script, no network).
Both are the same sections in the same order; a file or a key that a run does not have
leaves its row, column or section out. Text that came from data is escaped where the
templates print it, so nothing here does it.
"""

import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jinja2
import numpy as np

from nasjax.results import analysis, plots, records, runs, tables
from nasjax.results.runs import RunFiles
from nasjax.results.tables import figure, number, text_of

_TOP = 10
_MAX_FAILED_SHOWN = 20
# Row name, then the keys of summary.json by column; of test keys the first that is set.
_FINAL_ROWS: tuple[tuple[str, tuple[str, ...], dict[str, str]], ...] = (
  (
    "best child, retrained",
    ("test_score", "test_accuracy"),
    {
      "validation": "best_score",
      "loss": "test_loss",
      "params": "num_params",
      "arch": "best_arch",
    },
  ),
  (
    "random search's best, retrained",
    ("random_search_test_score", "random_search_test_accuracy"),
    {
      "validation": "random_search_best_score",
      "loss": "random_search_test_loss",
      "params": "random_search_num_params",
      "arch": "random_search_best_arch",
    },
  ),
  ("sklearn", ("sklearn_test_score", "sklearn_test_accuracy"), {}),
  ("majority", ("majority_test_score", "majority_score", "majority_accuracy"), {}),
)
_BASELINE_NAMES = {
  ("sklearn", "r2"): "scikit-learn MLPRegressor",
  ("sklearn", "accuracy"): "scikit-learn MLPClassifier",
  ("majority", "r2"): "mean of the training rows",
  ("majority", "accuracy"): "majority class",
}
_COSTS = (
  ("search_seconds", "search, seconds"),
  ("checkpoint_seconds", "of them waiting for checkpoints"),
  ("control_seconds", "random-search control, seconds"),
  ("retrain_seconds", "retraining, seconds"),
  ("compile_seconds", "compiling, seconds summed over threads"),
  ("num_compiles", "programs compiled or fetched"),
  ("num_cached", "of them from the cache on disk"),
  ("longest_compile_seconds", "longest compilation, seconds"),
  ("num_failed", "children failed"),
  ("predictor_tau", "Kendall's tau of the accuracy predictor"),
)


class Section(NamedTuple):
  """A heading and what stands under it.

  In HTML it can be `folded` until it is asked for, and its plots `wide`, one a row.
  """

  title: str
  table: tables.Table | None = None
  notes: Sequence[str] = ()
  plots: Sequence[dict[str, str]] = ()
  command: str = ""
  lines: Sequence[str] = ()
  folded: bool = False
  wide: bool = False


def write(workdir: str | os.PathLike) -> pathlib.Path:
  """Writes both reports of a run, finished or not.

  Args:
    workdir: holds config.json, records.jsonl, control_records.jsonl and summary.json,
      as far as the run came.

  Returns:
    The path of `report.html`.

  Raises:
    InputError: there is no such folder, or one of its files is damaged.
  """
  run = runs.read(workdir)
  return write_page(run.folder, _context(run))


def live(workdir: str | os.PathLike, log: Sequence[str]) -> str:
  """The page of a run that may be going on, as HTML; nothing is written.

  Args:
    workdir: see `write`.
    log: the last lines of its log, shown first.

  Raises:
    InputError: see `write`.
  """
  run = runs.read(workdir)
  context = _context(run, so_far=True)
  if not run.children:
    context["headline"] = "Nothing is measured yet."
  sections = [Section("Log", lines=log), *context["sections"]]
  return _render("report.html", context | {"sections": sections})


def write_page(folder: pathlib.Path, context: Mapping[str, Any]) -> pathlib.Path:
  """Writes `report.html` and `report.md` out of sections, atomically.

  Args:
    folder: the run's.
    context: what the templates print: experiment, status, headline, warnings, sections.

  Returns:
    The path of `report.html`.
  """
  for name in ("report.md", "report.html"):
    records.write_text(folder / name, _render(name, context))
  return folder / "report.html"


def _render(name: str, context: Mapping[str, Any]) -> str:
  """A page out of the template of that name."""
  options: dict[str, Any] = {
    "loader": jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
    "trim_blocks": True,
    "lstrip_blocks": True,
  }
  if name.endswith(".md"):
    options |= {"autoescape": False, "finalize": tables.markdown}
  else:
    options["autoescape"] = True
  environment = jinja2.Environment(**options)
  environment.filters["verbatim"] = tables.verbatim
  return environment.get_template(f"{name}.jinja").render(context)


def _context(run: RunFiles, so_far: bool = False) -> dict[str, Any]:
  summary, data = run.summary, run.summary.get("data") or {}
  final = _final_rows(run)
  made = [
    _result(run, final),
    Section("The run in pictures", plots=_plots(run, final)),
    _leaderboard(run),
    _failed(run),
    _rounds(run),
    _data(run),
    _bound(run),
    _published(run, final),
    Section("Costs", tables.pairs((n, summary.get(k)) for k, n in _COSTS)),
    Section(
      "Configuration",
      tables.pairs(tables.flatten(run.config)),
      folded=True,
    ),
    Section("Environment", tables.pairs((summary.get("environment") or {}).items())),
    Section("Run it again", command=summary.get("command") or ""),
  ]
  # A warning about the data is said once: here, not in the data section again.
  warnings = list(
    dict.fromkeys([*(summary.get("warnings") or []), *(data.get("warnings") or [])])
  )
  return {
    "experiment": run.experiment,
    "status": _status(run, so_far),
    "headline": _headline(run, final, so_far),
    "warnings": warnings,
    "sections": [s for s in made if s.table or s.notes or s.plots or s.command],
  }


def _status(run: RunFiles, so_far: bool) -> str:
  parts = [
    "" if run.seed is None else f"seed {run.seed}",
    "smoke version" if run.smoke else "",
    "finished" if run.finished else "so far" if so_far else "interrupted",
    run.progress,
  ]
  return ", ".join(filter(None, parts))


def _final_rows(run: RunFiles) -> list[dict[str, Any]]:
  """The retrained winner first, then what it is measured against.

  The first row is there without a test metric too: a run that was cut short has only a
  validation score.
  """
  best = analysis.best(run.children) or {}
  rows: list[dict[str, Any]] = []
  for name, tests, keys in _FINAL_ROWS:
    values = (run.summary.get(key) for key in tests)
    row = {k: run.summary.get(v) for k, v in keys.items()}
    row["test"] = next((v for v in values if v is not None), None)
    row["name"] = _BASELINE_NAMES.get((name, run.metric), name)
    if not rows:
      if row["arch"] is None:
        row |= {"arch": best.get("arch"), "validation": best.get("score")}
      if row["test"] is None:
        row["name"] = "best child of the search"
    if row["test"] is not None or (not rows and row["validation"] is not None):
      rows.append(row)
    elif not rows:
      return []
  for row, evaluated in zip(rows[:2], (run.children, run.control)):
    if row.get("params") is None and row.get("arch"):
      same = (r for r in evaluated if r.get("arch") == row["arch"])
      row["params"] = next(same, {}).get("num_params")
  return rows


def _headline(run: RunFiles, final: list[dict[str, Any]], so_far: bool) -> str:
  """What came out, in sentences that also say so when a baseline is no worse."""
  cut = "So far" if so_far else "Interrupted after"
  text = "" if run.finished else f"{cut} {run.progress}. "
  if not final:
    return text + "No child has a score."
  ours, rest = final[0], final[1:]
  arch, score = ours["arch"] or "The best child", number(ours["validation"])
  if ours["test"] is None:
    tested = "" if so_far else "; it was not tested"
    return f"{text}{arch} has the best score of the search, {score}{tested}."
  metric = plots.metric_label(run.metric)
  text += f"{arch} reaches a test {metric} of {number(ours['test'])}"
  text += f" (validation score {score})."
  lower = [r for r in rest if r["test"] < ours["test"]]
  other = [r for r in rest if not r["test"] < ours["test"]]
  named = [
    " and ".join(f"{r['name']} ({number(r['test'])})" for r in part)
    for part in (lower, other)
  ]
  if lower:
    text += f" That is above {named[0]}"
    text += f", but not better than {named[1]}." if other else "."
  elif other:
    text += f" That is not better than {named[1]}."
  return text


def _result(run: RunFiles, final: list[dict[str, Any]]) -> Section:
  metric = plots.metric_label(run.metric)
  table = tables.table(
    [
      ("", False),
      ("validation score", True),
      (f"test {metric}", True),
      ("test loss", True),
      ("parameters", True),
      ("architecture", False),
    ],
    [
      [r["name"], *map(number, _get(r, "validation", "test", "loss", "params"))]
      + [text_of(r.get("arch"))]
      for r in final
    ],
    marked=0,
  )
  notes = []
  if any(r["test"] is not None for r in final[1:]):
    notes.append(
      "The baselines learn from the same train and validation rows and are tested on "
      "the same test rows; nothing was selected on those."
    )
  test_rows = ((run.summary.get("data") or {}).get("rows") or {}).get("test")
  accuracy = final[0]["test"] if final and run.metric == "accuracy" else None
  if test_rows and accuracy is not None and 0 < accuracy < 1:
    error = math.sqrt(accuracy * (1 - accuracy) / test_rows)
    notes.append(
      f"On {number(test_rows)} test rows the standard error of the winner's accuracy "
      f"is {number(error)}: a difference below about twice that may be chance."
    )
  return Section("Result", table, notes)


def _leaderboard(run: RunFiles) -> Section:
  columns = [("rank", True), ("architecture", False), ("score", True)]
  columns += [("epochs", True), ("parameters", True), ("FLOPs", True)]
  columns += [("predicted", True), ("seconds", True)]
  rows = []
  for rank, record in enumerate(analysis.leaderboard(run.children, _TOP), 1):
    failed = record.get("score") is None
    rows.append(
      [str(rank), text_of(record.get("arch"))]
      + ["failed" if failed else number(record["score"])]
      + [*map(number, _get(record, "epochs_run", "num_params", "flops"))]
      + [number(record.get("predicted_score")), figure(record.get("seconds"))]
    )
  return Section("Leaderboard", tables.table(columns, rows))


def _failed(run: RunFiles) -> Section:
  failed = [r for r in run.children if r.get("score") is None]
  rows = [[text_of(r.get("arch")), text_of(r.get("failure"))] for r in failed]
  notes = []
  if len(rows) > _MAX_FAILED_SHOWN:
    notes.append(f"{len(rows) - _MAX_FAILED_SHOWN} more are in records.jsonl.")
  columns = [("architecture", False), ("reason", False)]
  return Section(
    "Failed children", tables.table(columns, rows[:_MAX_FAILED_SHOWN]), notes
  )


def _rounds(run: RunFiles) -> Section:
  """What the plots show, as figures."""
  searches = [("controller", run.children), ("random search", run.control)]
  searches = [(name, part) for name, part in searches if part]
  rounds = sorted({r["round"] for _, p in searches for r in p if "round" in r})
  rows = []
  for i in rounds:
    row = [str(i + 1)]
    for _, part in searches:
      scores = analysis.finite_scores([r for r in part if r.get("round") == i])
      scores = scores[np.isfinite(scores)]
      row += [
        number(f(scores)) if len(scores) else tables.DASH for f in (np.mean, np.max)
      ]
    rows.append(row)
  columns = [("round", True)]
  for name, _ in searches:
    columns += [(f"{name}: mean score", True), (f"{name}: best score", True)]
  return Section("Rounds", tables.table(columns, rows), folded=True)


def _data(run: RunFiles) -> Section:
  data = run.summary.get("data") or {}
  classes = data.get("classes")
  rows = [
    ("name", data.get("name")),
    ("task", data.get("task")),
    ("features", data.get("features")),
    *((f"{k} rows", v) for k, v in (data.get("rows") or {}).items()),
    ("classes", f"{len(classes)}: {text_of(classes)}" if classes else None),
  ]
  return Section("Data", tables.pairs(rows))


def _bound(run: RunFiles) -> Section:
  bound, tried, rows = _get(
    run.summary, "holdout_bound", "num_evaluations", "valid_rows"
  )
  if None in (bound, tried, rows):
    return Section("How far to trust a validation score")
  return Section(
    "How far to trust a validation score",
    notes=[
      f"With {number(tried)} architectures scored on {number(rows)} validation rows, "
      f"each validation accuracy may lie {number(bound)} from its true value "
      "(Hoeffding's bound for all of them at once, at 95 % confidence): among "
      "accuracies closer together than twice that, the order is not established. The "
      "bound holds for architectures fixed in advance; a controller chooses them by "
      "earlier scores on the same rows, so read it as the least to doubt."
    ],
  )


def _published(run: RunFiles, final: list[dict[str, Any]]) -> Section:
  published = run.summary.get("published") or []
  title = "The survey's figures beside ours"
  if not isinstance(published, list) or not published:
    return Section(title)
  rows = [
    [text_of(row.get("arch")), *map(number, _get(row, "validation", "test"))]
    + [row.get("note") or "survey"]
    for row in published
  ]
  rows += [
    [": ".join(filter(None, (r["name"], r.get("arch"))))]
    + [*map(number, _get(r, "validation", "test")), "this run"]
    for r in final
  ]
  columns = [("architecture", False), ("validation", True), ("test", True)]
  table = tables.table([*columns, ("source", False)], rows, marked=len(published))
  return Section(title, table)


def _get(values: Mapping[str, Any], *names: str) -> list[Any]:
  return [values.get(name) for name in names]


def _plots(run: RunFiles, final: list[dict[str, Any]]) -> list[dict[str, str]]:
  """Inline SVG with the sentence that says what to see; none before a child scored."""
  if analysis.best(run.children) is None:
    return []
  made = []
  if final[0]["test"] is not None:
    bars = [(row["name"], row["test"]) for row in final]
    made.append((plots.bars_final(bars, run.metric), "Test rows, used once."))
  made += [
    (
      plots.incumbent(run.children, run.control, run.metric),
      "Every dot is a child; children far below the others are cut off.",
    ),
    (
      plots.round_means(run.children, run.control),
      "A controller that learns rises; random search goes up and down.",
    ),
    (
      plots.learning_curves(run.children, run.metric),
      "Grey: the other children, cut off below the best.",
    ),
  ]
  if any(r.get("predicted_score") is not None for r in run.children):
    made.append(
      (
        plots.predicted_against_measured(run.children),
        "Predicted before the child was trained; on the dashed line it was right.",
      )
    )
  if any(r.get("num_params") is not None for r in run.children):
    made.append(
      (
        plots.score_against_params(run.children, run.metric),
        "On the orange line no smaller child scores as high.",
      )
    )
  if any(r.get("arch") for r in run.children):
    note = "Layers of the first and the last third of the run."
    made.append((plots.token_usage(run.children), note))
  return [
    {"svg": plots.to_svg(drawn), "note": note, "title": drawn.axes[0].get_title()}
    for drawn, note in made
  ]
