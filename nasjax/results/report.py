"""The report of a run, from the run's files alone: `report.html` and `report.md`.

The HTML is one self-contained file (style and pictures inline, no script, no network).
Text that came from data is escaped by jinja2.
"""

import json
import os
import pathlib
from typing import Any

import jinja2

from nasjax.results import analysis, plots, records

_TOP = 10
# Key of the test score in summary.json, row name, keys of validation score and arch.
_FINAL_ROWS = (
  ("test_score", "best child, retrained", "best_score", "best_arch"),
  (
    "random_search_test_score",
    "random search's best, retrained",
    "random_search_best_score",
    "random_search_best_arch",
  ),
  ("sklearn_test_score", "scikit-learn MLP", None, None),
  ("majority_test_score", "majority class", None, None),
)


def write(workdir: str | os.PathLike) -> pathlib.Path:
  """Writes both reports of a run, finished or not.

  Args:
    workdir: holds config.json, records.jsonl and, when there, control_records.jsonl and
      summary.json.

  Returns:
    The path of `report.html`.
  """
  folder = pathlib.Path(workdir)
  context = _context(folder)
  html = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
  text = jinja2.Environment(autoescape=False, trim_blocks=True, lstrip_blocks=True)
  text.filters["cell"] = _markdown_cell
  for environment in (html, text):
    environment.filters |= {"number": _number, "figure": _figure}
  here = pathlib.Path(__file__).parent
  template = (here / "report.md.jinja").read_text(encoding="utf-8")
  records.write_text(folder / "report.md", text.from_string(template).render(context))
  template = (here / "report.html.jinja").read_text(encoding="utf-8")
  context["plots"] = _plots(context)
  records.write_text(folder / "report.html", html.from_string(template).render(context))
  return folder / "report.html"


def _read_json(path: pathlib.Path) -> dict[str, Any]:
  return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _context(folder: pathlib.Path) -> dict[str, Any]:
  summary = _read_json(folder / "summary.json")
  run = _read_json(folder / "config.json")
  children = records.read(folder / "records.jsonl")
  metric = summary.get("metric") or (children[0]["metric"] if children else "score")
  final = [
    {
      "name": "mean" if metric == "r2" and name == "majority class" else name,
      "test": summary[key],
      "validation": summary.get(validation),
      "arch": summary.get(arch),
    }
    for key, name, validation, arch in _FINAL_ROWS
    if summary.get(key) is not None
  ]
  return {
    "summary": summary,
    "experiment": run.get("experiment", summary.get("experiment", folder.name)),
    "seed": run.get("seed", summary.get("seed")),
    "smoke": run.get("smoke", False),
    "metric": {"r2": "R²"}.get(metric, metric),
    "records": children,
    "control": records.read(folder / "control_records.jsonl"),
    "leaders": analysis.leaderboard(children, _TOP),
    "failed": [r for r in children if r["score"] is None],
    "final": final,
    "headline": _headline(summary, final, metric),
    "config": _flatten(run.get("config", {})),
  }


def _headline(summary: dict[str, Any], final: list[dict], metric: str) -> str:
  """What came out, in a sentence that also says so when a baseline is better."""
  if not final or "test_score" not in summary or summary["test_score"] is None:
    done = summary.get("num_evaluations", 0)
    planned = summary.get("planned_evaluations", "?")
    return f"Interrupted after {done} of {planned} children; nothing was tested."
  ours, rest = final[0], final[1:]
  text = (
    f"{ours['arch']} reaches a test {metric} of {ours['test']:.4f} "
    f"(score in the search {_number(ours['validation'])})"
  )
  better = [f"{r['name']} ({r['test']:.4f})" for r in rest if r["test"] > ours["test"]]
  equal = [r["name"] for r in rest if r["test"] == ours["test"]]
  lower = [f"{r['name']} ({r['test']:.4f})" for r in rest if r["test"] < ours["test"]]
  if lower:
    text += f", above {_listed(lower)}"
  if equal:
    text += f", level with {_listed(equal)}"
  if better:
    text += f", but below {_listed(better)}"
  return text + "."


def _listed(names: list[str]) -> str:
  return " and ".join([", ".join(names[:-1])] * (len(names) > 1) + names[-1:])


def _flatten(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
  rows: list[tuple[str, Any]] = []
  for name, value in values.items():
    if isinstance(value, dict):
      rows += _flatten(value, f"{prefix}{name}.")
    else:
      shown = ", ".join(map(str, value)) if isinstance(value, list) else value
      rows.append((prefix + name, shown))
  return rows


def _number(value: Any) -> str:
  """A score to four decimals, a count with separators, nothing as a dash."""
  if value is None:
    return "–"
  return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _figure(value: Any) -> str:
  """A time or another measured number to three significant digits."""
  return "–" if value is None else f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"


def _markdown_cell(value: Any) -> str:
  text = str(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
  return " ".join(text.split()).replace("|", "\\|")


def _plots(context: dict[str, Any]) -> list[dict[str, str]]:
  """Inline SVG with the sentence that says what to see."""
  children, metric = context["records"], context["metric"]
  control = context["control"]
  if not any(r["score"] is not None for r in children):
    return []
  made = []
  if context["final"]:
    bars = [(row["name"], row["test"]) for row in context["final"]]
    made.append((plots.final_bars(bars, metric), "Test rows, used once."))
  made += [
    (
      plots.incumbent(children, control, metric),
      "Every dot is a child; children far below the others are cut off.",
    ),
    (
      plots.round_means(children, control),
      "A controller that learns rises; random search stays level.",
    ),
    (plots.learning_curves(children, metric), "Grey: all other children."),
  ]
  if any(r.get("predicted_score") is not None for r in children):
    made.append(
      (
        plots.predicted_against_measured(children),
        "Predicted before the child was trained; on the dashed line it was right.",
      )
    )
  made += [
    (
      plots.score_against_params(children, metric),
      "On the orange line no smaller child scores as high.",
    ),
    (plots.layer_usage(children), "Layers of the first and the last third of the run."),
  ]
  return [{"svg": plots.to_svg(figure), "note": note} for figure, note in made]
