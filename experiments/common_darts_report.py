"""The report of a DARTS run: cells as graphs, alphas over time, and the control."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nasjax.results import cell_plots, plots, records, report, tables
from nasjax.runtime import Run
from nasjax.spaces.conv_cell import CELLS, PRIMITIVES, ConvCell, edges

_TITLES = {"normal": "Normal cell", "reduce": "Reduction cell"}
_COSTS = (
  ("search_seconds", "search, seconds"),
  ("seconds", "training the derived cell, seconds"),
  ("compile_seconds", "compiling, seconds summed over threads"),
  ("num_compiles", "programs compiled or fetched"),
  ("supernet_params", "weights of the supernet"),
)


def write(run: Run, summary: Mapping[str, Any], space: ConvCell) -> pathlib.Path:
  """Writes `report.html`, `report.md` and the cells as SVG and PNG.

  Returns:
    The path of `report.html`.
  """
  searched = run.read_records()
  arch = summary.get("arch") or (searched[-1]["arch"] if searched else None)
  figures = []
  if arch:
    cells = space.decode(space.parse(arch))
    for name in CELLS:
      figure = cell_plots.cell_graph(getattr(cells, name), _TITLES[name])
      records.write_text(run.workdir / f"cell_{name}.svg", plots.to_svg(figure))
      records.write_bytes(run.workdir / f"cell_{name}.png", plots.to_png(figure))
      figures.append((figure, "Every node adds up what its two arrows bring."))
  sections = [
    _result(summary),
    report.Section(
      "The derived cells", notes=[arch or ""], plots=shown(figures), wide=True
    ),
    report.Section("The search in pictures", plots=shown(_curves(searched, space))),
    report.Section(
      "Weights of the operations", plots=shown(_alphas(searched, space)), wide=True
    ),
    _epochs(searched),
  ]
  return write_page(run, summary, headline(summary), sections)


def write_page(
  run: Run, summary: Mapping[str, Any], said: str, sections: list[report.Section]
) -> pathlib.Path:
  """Writes a page that ends with costs, configuration, environment and command.

  Args:
    run: of the page.
    summary: of the run.
    said: its headline.
    sections: before those.

  Returns:
    The path of `report.html`.
  """
  sections = [
    *sections,
    report.Section("Costs", tables.pairs((n, summary.get(k)) for k, n in _COSTS)),
    report.Section(
      "Configuration", tables.pairs(tables.flatten(run.config)), folded=True
    ),
    report.Section("Environment", tables.pairs(summary["environment"].items())),
    report.Section("Run it again", command=summary["command"]),
  ]
  return report.write_page(
    run.workdir,
    {
      "experiment": run.experiment,
      "status": f"seed {run.seed}, {summary['status']}",
      "headline": said,
      "warnings": summary["warnings"],
      "sections": [s for s in sections if s.table or s.plots or s.command],
    },
  )


def headline(summary: Mapping[str, Any]) -> str:
  """What came out, also when random cells are no worse."""
  if summary.get("failure"):
    return f"The search failed: {summary['failure']}."
  if summary.get("test_accuracy") is None:
    epochs = summary.get("epochs_searched", 0)
    return f"Interrupted after {epochs} epochs of the search; nothing was tested."
  text = f"The derived cell reaches a test accuracy of {summary['test_accuracy']:.4f}."
  others = [row["test_accuracy"] for row in summary.get("random_cells", ())]
  if others:
    above = sum(value >= summary["test_accuracy"] for value in others)
    text += (
      f" Random cells of the same space, trained alike, reach {np.mean(others):.4f} in "
      f"the mean; {above} of {len(others)} are at least as good."
    )
  return text


def _result(summary: Mapping[str, Any]) -> report.Section:
  if summary.get("test_accuracy") is None:
    return report.Section("Result")
  rows = [("derived cell", summary)]
  rows += [
    (f"random cell {number}", row)
    for number, row in enumerate(summary.get("random_cells", ()), 1)
  ]
  columns = [("", False), ("test accuracy", True), ("test loss", True)]
  columns += [("parameters", True), ("FLOPs an image", True), ("training loss", True)]
  columns += [("seconds", True)]
  table = tables.table(
    columns,
    [[name, f"{row['test_accuracy']:.4f}", *_of(row)] for name, row in rows],
    marked=0,
  )
  rows_tested = summary["data"]["rows"]["test"]
  accuracy = summary["test_accuracy"]
  error = np.sqrt(accuracy * (1 - accuracy) / rows_tested)
  note = (
    f"On {rows_tested:,} test rows the standard error of the derived cell's accuracy "
    f"is {error:.4f}. All networks have one skeleton, one recipe and one seed."
  )
  return report.Section("Result", table, [note])


def _of(row: Mapping[str, Any]) -> list[str]:
  names = ("test_loss", "num_params", "flops", "train_loss")
  return [*(tables.number(row[k]) for k in names), tables.figure(row["seconds"])]


def _epochs(searched: Sequence[Mapping[str, Any]]) -> report.Section:
  columns = [("epoch", True), ("train loss", True), ("train accuracy", True)]
  columns += [("valid loss", True), ("valid accuracy", True), ("skips", True)]
  names = ("train_loss", "train_accuracy", "valid_loss", "valid_accuracy", "skips")
  rows = [
    [str(row["epoch"]), *(tables.number(row[name]) for name in names)]
    for row in searched
  ]
  return report.Section(
    "Epochs of the search", tables.table(columns, rows), folded=True
  )


def collapsed_from(space: ConvCell) -> int:
  """So many skips in the normal cell, half of its edges, are an alarm."""
  return space.nodes


def _curves(searched: Sequence[Mapping[str, Any]], space: ConvCell) -> list:
  """Figures of the search with the sentence that says what to see."""
  if not searched:
    return []
  edges_there = 2 * space.nodes
  skips = cell_plots.skip_count(
    searched,
    edges_there,
    collapsed_from(space),
    title=f"Skips among the {edges_there} edges of the normal cell",
  )
  return [
    (
      cell_plots.search_curves(searched),
      "The supernet on its own rows, the weights' and the alphas'.",
    ),
    (skips, "Of the cell that would be derived after each epoch."),
  ]


def _alphas(searched: Sequence[Mapping[str, Any]], space: ConvCell) -> list:
  """The same for the alphas of each cell."""
  history = [row["alphas"] for row in searched]
  note = "A picture for each edge: bright operations are heavy."
  return [
    (cell_plots.alphas_over_time(history, name, PRIMITIVES, edges(space.nodes)), note)
    for name in CELLS
    if searched
  ]


def shown(made: Sequence[tuple[Any, str]]) -> list[dict[str, str]]:
  """Figures with the sentence that says what to see, as a page shows them."""
  return [
    {
      "svg": plots.to_svg(figure),
      "note": note,
      "title": figure.get_suptitle()
      or figure.axes[0].get_title(loc="left")
      or figure.axes[0].get_title(),
    }
    for figure, note in made
  ]
