"""The report of DARTS on a text: the cell, alphas over time, perplexities, control."""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.common_darts_report import shown, write_page
from nasjax.results import cell_plots, plots, records, report, tables
from nasjax.runtime import Run
from nasjax.spaces.recurrent_cell import PRIMITIVES, RecurrentCell, edges


def write(run: Run, summary: Mapping[str, Any], space: RecurrentCell) -> pathlib.Path:
  """Writes `report.html`, `report.md` and the cell as SVG and PNG.

  Returns:
    The path of `report.html`.
  """
  searched = run.read_records()
  arch = summary.get("arch") or (searched[-1]["arch"] if searched else None)
  figures = []
  if arch:
    figure = cell_plots.tree_graph(space.decode(space.parse(arch)), "Recurrent cell")
    records.write_text(run.workdir / "cell_recurrent.svg", plots.to_svg(figure))
    records.write_bytes(run.workdir / "cell_recurrent.png", plots.to_png(figure))
    figures.append(
      (figure, "Every node reads one state; the output is the mean of the nodes.")
    )
  sections = [
    _result(summary),
    report.Section("The derived cell", notes=[arch or ""], plots=shown(figures)),
    report.Section("The search in pictures", plots=shown(_searched(searched, space))),
    report.Section("Retraining in pictures", plots=shown(_retrained(summary))),
    _epochs(searched),
  ]
  return write_page(run, summary, headline(summary), sections)


def headline(summary: Mapping[str, Any]) -> str:
  """What came out, also when random cells are no worse."""
  if summary.get("failure"):
    return f"The search failed: {summary['failure']}."
  if "test_perplexity" not in summary:
    epochs = summary.get("epochs_searched", 0)
    return f"Stopped after {epochs} epochs of the search; nothing was tested."
  mine = summary["test_perplexity"]
  if mine is None:
    return (
      "The derived cell's training diverged in its first epoch; nothing was tested."
    )
  text = f"The derived cell reaches a test perplexity of {mine:.3f}."
  every = [row["test_perplexity"] for row in summary.get("random_cells", ())]
  others = [value for value in every if value is not None]
  if others:
    below = sum(value <= mine for value in others)
    text += (
      f" Random cells of the same space, trained alike, reach {np.mean(others):.3f} in "
      f"the mean; {below} of {len(every)} are at least as good."
    )
  if len(others) < len(every):
    text += f" {len(every) - len(others)} of them diverged."
  return text


def _cells(summary: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
  """Retrained cells by name, the derived one first."""
  if "curve" not in summary:
    return []
  return [("derived cell", summary)] + [
    (f"random cell {number}", row)
    for number, row in enumerate(summary.get("random_cells", ()), 1)
  ]


def _result(summary: Mapping[str, Any]) -> report.Section:
  rows = _cells(summary)
  if not rows:
    return report.Section("Result")
  unit = summary["data"]["unit"].removesuffix("s")
  names: tuple[str, ...] = ("test perplexity", "valid perplexity", f"bits a {unit}")
  names += (
    "parameters",
    f"FLOPs a {unit}",
    "training loss",
    "best epoch",
    "averaged from epoch",
  )
  columns = [("", False), *((name, True) for name in (*names, "seconds"))]
  table = tables.table(
    columns,
    [[name, *map(tables.number, _of(row))] for name, row in rows],
    marked=0,
  )
  data = summary["data"]
  note = (
    f"On {data['tokens']['test']:,} test {data['unit']}, hidden state carried, of a "
    f"vocabulary of {data['vocabulary']:,}, which is the perplexity of a model that "
    f"knows nothing. {data['unknown']:.2%} of what was not trained on is "
    "unknown. All cells have one recipe and one seed; each is tested with the weights "
    "of the epoch that validated best."
  )
  return report.Section("Result", table, [note])


def _of(row: Mapping[str, Any]) -> list[Any]:
  bits = None if row["test_loss"] is None else row["test_loss"] / math.log(2)
  names = (
    "num_params",
    "flops",
    "train_loss",
    "best_epoch",
    "averaged_from",
    "seconds",
  )
  return [
    row["test_perplexity"],
    row["valid_perplexity"],
    bits,
    *(row[name] for name in names),
  ]


def _epochs(searched: Sequence[Mapping[str, Any]]) -> report.Section:
  columns = [("epoch", True), ("train loss", True), ("train perplexity", True)]
  columns += [("valid loss", True), ("valid perplexity", True), ("identities", True)]
  names = ("train_loss", "train_perplexity", "valid_loss", "valid_perplexity")
  rows = [
    [
      str(row["epoch"]),
      *(tables.number(row[name]) for name in (*names, "identities")),
    ]
    for row in searched
  ]
  return report.Section(
    "Epochs of the search", tables.table(columns, rows), folded=True
  )


def collapsed_from(space: RecurrentCell) -> int:
  """So many nodes that only copy, half of them, are an alarm."""
  return -(-space.nodes // 2)


def _searched(searched: Sequence[Mapping[str, Any]], space: RecurrentCell) -> list:
  """Figures of the search with the sentence that says what to see."""
  if not searched:
    return []
  history = [{"recurrent": row["alphas"]} for row in searched]
  states = list(map(str, range(space.nodes + 1)))
  return [
    (
      cell_plots.search_curves(searched, "perplexity"),
      "The supernet: training with dropout, validation without.",
    ),
    (
      cell_plots.skip_count(
        searched,
        space.nodes,
        collapsed_from(space),
        "identities",
        "Nodes that only copy",
      ),
      "Identities among the nodes that the cell would have.",
    ),
    (
      cell_plots.alphas_over_time(
        history, "recurrent", PRIMITIVES, edges(space.nodes), states
      ),
      "One picture an edge; bright is heavy.",
    ),
  ]


def _retrained(summary: Mapping[str, Any]) -> list:
  """The curves of the retrained cells."""
  curves = {name: row["curve"] for name, row in _cells(summary) if row["curve"]}
  if not curves:
    return []
  figure = cell_plots.perplexities(curves, summary["averaged_from"])
  return [(figure, "The derived cell and, grey, the random ones.")]
