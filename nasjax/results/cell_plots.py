"""Pictures of cells: the graph of a derived one, and how alphas came to it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch
from matplotlib.ticker import MaxNLocator

from nasjax.results.plots import BLUE, GREEN, GREY, ORANGE

# Of operations: convolutions blue and green, pools orange, what copies grey.
_COLOURS = {"sep": BLUE, "dil": GREEN, "max": ORANGE, "avg": ORANGE, "skip": GREY}
# Of activations: what bends at zero, what saturates, and what copies.
_COLOURS |= {"relu": BLUE, "tanh": GREEN, "sigmoid": ORANGE, "identity": GREY}
_INPUT_NAMES = ("c_{k-2}", "c_{k-1}")


def _colour(op: str) -> str:
  return _COLOURS.get(op.split("_")[0], "#000000")


def cell_graph(cell: Sequence[Sequence[Any]], title: str) -> Figure:
  """The graph of a derived cell, from its inputs on the left to its output.

  Args:
    cell: for each node the edges that it adds up, each (operation, source state).
    title: above it.
  """
  nodes = len(cell)
  figure = Figure(figsize=(2.2 + 1.6 * (nodes + 1), 4.5), layout="constrained")
  FigureCanvasAgg(figure)
  axes = figure.add_subplot()
  axes.set_axis_off()
  # Nodes stand in the order of their numbers, so every arrow goes to the right; they
  # alternate between two heights, so that arrows do not run through them.
  place = {0: (0.0, 1.15), 1: (0.0, -1.15)}
  for node in range(nodes):
    place[node + 2] = (1.6 + 1.7 * node, 0.55 if node % 2 == 0 else -0.55)
  output = (1.6 + 1.7 * nodes + 0.2, 0.0)
  for node in range(nodes):
    _arrow(axes, place[node + 2], output, "#CCCCCC", 0.0, "-")
  taken = list(place.values())
  for node, read in enumerate(cell):
    for number, (op, source) in enumerate(read):
      start, end = place[source], place[node + 2]
      # Longer arrows bend more, away from the nodes between: up above, down below.
      reach = node + 2 - max(source, 1)
      up = start[1] + 0.4 * end[1] + (0.1 if number == 0 else -0.1) >= 0
      bend = (0.0 if reach <= 1 else 0.05 + 0.11 * reach) * (-1 if up else 1)
      _arrow(axes, start, end, _colour(op), bend, "-")
      _label(axes, start, end, bend, op, taken)
  for state, (x, y) in place.items():
    _circle(axes, x, y, _name(state), "#FFFFFF" if state >= 2 else "#EAF3FA")
  _circle(axes, *output, "$c_k$", "#FBEFE6")
  axes.set_xlim(-0.5, output[0] + 0.5)
  axes.set_ylim(-2.3, 2.3)
  axes.set_aspect("equal")  # arrows bend in the picture's units, labels in these
  axes.set_title(title, loc="left")
  return figure


def tree_graph(cell: Sequence[Any], title: str) -> Figure:
  """The graph of a recurrent cell: a tree from its first state, averaged at the end.

  Args:
    cell: for each node (activation, source state); node i makes state i + 1.
    title: above it.
  """
  children: dict[int, list[int]] = {state: [] for state in range(len(cell) + 1)}
  for node, (_, source) in enumerate(cell):
    children[source].append(node + 1)
  place: dict[int, tuple[float, float]] = {}
  rows = 0

  def put(state: int, depth: int) -> None:
    """A state stands in the middle of those that read it, a row for each leaf."""
    nonlocal rows
    for each in children[state]:
      put(each, depth + 1)
    heights = [place[each][1] for each in children[state]]
    if not heights:
      heights, rows = [float(-rows)], rows + 1
    place[state] = (1.9 * depth, (heights[0] + heights[-1]) / 2)

  put(0, 0)
  right = max(x for x, _ in place.values()) + 1.7
  middle = (1 - rows) / 2
  figure = Figure(figsize=(1.0 * right + 2.6, 0.8 * rows + 1.2), layout="constrained")
  FigureCanvasAgg(figure)
  axes = figure.add_subplot()
  axes.set_axis_off()
  inputs = {"$x_t$": 0.55, "$h_{t-1}$": -0.55}
  start = place[0]
  for name, above in inputs.items():
    spot = (start[0] - 1.5, start[1] + above)
    _arrow(axes, spot, start, "#444444", 0.0, "-")
    _circle(axes, *spot, name, "#EAF3FA")
  output = (right, middle)
  for state in range(1, len(cell) + 1):
    _arrow(axes, place[state], output, "#DDDDDD", 0.0, "-")
  for node, (op, source) in enumerate(cell):
    _arrow(axes, place[source], place[node + 1], _colour(op), 0.0, "-")
    _label(axes, place[source], place[node + 1], 0.0, op, [])
  for state, (x, y) in place.items():
    _circle(axes, x, y, str(state), "#FFFFFF")
  _circle(axes, *output, "$h_t$", "#FBEFE6")
  heights = [y for _, y in place.values()]
  axes.set_xlim(-2.1, right + 0.6)
  axes.set_ylim(
    min(*heights, start[1] - 0.55) - 0.6, max(*heights, start[1] + 0.55) + 0.6
  )
  axes.set_title(title, loc="left")
  return figure


def _circle(axes, x: float, y: float, name: str, colour: str) -> None:
  axes.text(
    x,
    y,
    name,
    ha="center",
    va="center",
    fontsize=11,
    zorder=4,
    bbox={"boxstyle": "circle,pad=0.35", "facecolor": colour, "edgecolor": "#444444"},
  )


def _arrow(axes, start, end, colour: str, bend: float, style: str) -> None:
  axes.add_patch(
    FancyArrowPatch(
      start,
      end,
      arrowstyle="-|>",
      mutation_scale=13,
      shrinkA=15,
      shrinkB=16,
      connectionstyle=f"arc3,rad={bend}",
      color=colour,
      linewidth=1.6,
      linestyle=style,
      zorder=2,
    )
  )


def _label(axes, start, end, bend: float, op: str, taken) -> None:
  """The operation's name on its arrow, at the first place along it that is free."""
  (x0, y0), (x1, y1) = start, end
  # The control point of matplotlib's arc3.
  control = (
    (x0 + x1) / 2 + bend * (y1 - y0),
    (y0 + y1) / 2 - bend * (x1 - x0),
  )
  spots = []
  for t in (0.5, 0.42, 0.58, 0.34, 0.66, 0.27, 0.73):
    a, b, c = (1 - t) ** 2, 2 * t * (1 - t), t * t
    spots.append((a * x0 + b * control[0] + c * x1, a * y0 + b * control[1] + c * y1))
  free = [
    spot
    for spot in spots
    if all(abs(spot[0] - x) > 0.9 or abs(spot[1] - y) > 0.24 for x, y in taken)
  ]
  x, y = (free or spots)[0]
  taken.append((x, y))
  axes.text(
    x,
    y,
    op.removesuffix("_connect").replace("_", " "),
    ha="center",
    va="center",
    fontsize=8.5,
    color=_colour(op),
    zorder=3,
    bbox={"boxstyle": "square,pad=0.15", "facecolor": "#FFFFFF", "edgecolor": "none"},
  )


def alphas_over_time(
  history: Sequence[Mapping[str, Any]],
  name: str,
  operations: Sequence[str],
  edges: Sequence[tuple[int, int]],
  states: Sequence[str] | None = None,
) -> Figure:
  """Softmax weights of one cell's operations, edge by edge, over epochs.

  Args:
    history: for each epoch the logits `[E, K]` by name of the cell.
    name: of the cell.
    operations: `[K]` names.
    edges: `[E]` (source state, target state).
    states: what to call them; a convolutional cell's by default.
  """
  states = states or [_name(state) for state in range(len(edges) + 2)]
  logits_TEK = np.array([epoch[name] for epoch in history], float)
  weights_TEK = np.exp(logits_TEK - logits_TEK.max(-1, keepdims=True))
  weights_TEK /= weights_TEK.sum(-1, keepdims=True)
  nodes = sorted({target for _, target in edges})
  columns = max(source for source, _ in edges) + 1
  figure = Figure(
    figsize=(2.0 * columns + 1.6, 1.5 * len(nodes) + 0.9), layout="constrained"
  )
  FigureCanvasAgg(figure)
  # A row for each node, a column for each state that it may read.
  grid = figure.subplots(len(nodes), columns, sharex=True, sharey=True, squeeze=False)
  for axes in grid.ravel():
    axes.set_axis_off()
  for edge, (source, target) in enumerate(edges):
    axes = grid[nodes.index(target), source]
    axes.set_axis_on()
    image = axes.imshow(
      weights_TEK[:, edge].T,
      aspect="auto",
      interpolation="nearest",
      cmap="viridis",
      vmin=weights_TEK.min(),
      vmax=weights_TEK.max(),
      extent=(0.5, len(history) + 0.5, len(operations) - 0.5, -0.5),
    )
    axes.set_title(f"{states[source]} → {states[target]}", fontsize=9)
    axes.set_yticks(range(len(operations)))
    axes.set_yticklabels([op.replace("_", " ") for op in operations])
    axes.tick_params(labelsize=7.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
  figure.supxlabel("epoch", fontsize=9)
  figure.suptitle(f"Weights of the {name} cell's operations", fontsize=11)
  figure.colorbar(image, ax=grid.ravel().tolist(), shrink=0.6)
  return figure


def _name(state: int) -> str:
  """A state as the graph of a convolutional cell calls it."""
  return f"${_INPUT_NAMES[state]}$" if state < 2 else str(state - 2)


def search_curves(
  searched: Sequence[Mapping[str, Any]], metric: str = "accuracy"
) -> Figure:
  """Loss and metric of a supernet by epoch, on both sets of rows."""
  figure = Figure(figsize=(8.4, 3.4), layout="constrained")
  FigureCanvasAgg(figure)
  epochs = [row["epoch"] for row in searched]
  for axes, what in zip(figure.subplots(1, 2), ("loss", metric)):
    for name, colour in (("train", BLUE), ("valid", ORANGE)):
      values = [row[f"{name}_{what}"] for row in searched]
      values = [np.nan if value is None else value for value in values]
      axes.plot(epochs, values, color=colour, label=name, marker=".", markersize=4)
    axes.set_title(what, loc="left")
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
  figure.suptitle("The supernet's search", fontsize=11)
  return figure


def skip_count(
  searched: Sequence[Mapping[str, Any]],
  most: int,
  alarm: int,
  what: str = "skips",
  title: str = "Skips in the normal cell",
) -> Figure:
  """How many edges only copy, by epoch, out of `most`; `what` is their column, and at
  `alarm` the cell has collapsed."""
  figure = Figure(figsize=(6.0, 3.4), layout="constrained")
  FigureCanvasAgg(figure)
  axes = figure.add_subplot()
  epochs = np.array([row["epoch"] for row in searched])
  count = np.array([row[what] for row in searched])
  axes.axhspan(alarm - 0.5, most + 0.5, color=ORANGE, alpha=0.12, linewidth=0)
  axes.text(0.01, most, "collapsed", transform=axes.get_yaxis_transform(), va="center")
  axes.plot(epochs, count, color=BLUE, marker=".", drawstyle="steps-mid")
  wrong = count >= alarm
  axes.plot(epochs[wrong], count[wrong], color=ORANGE, marker="o", linestyle="none")
  axes.set_ylim(-0.5, most + 0.5)
  axes.xaxis.set_major_locator(MaxNLocator(integer=True))
  axes.set_xlabel("epoch")
  axes.set_title(title, loc="left")
  axes.grid(alpha=0.25, linewidth=0.6)
  axes.spines[["top", "right"]].set_visible(False)
  return figure


def perplexities(curves: Mapping[str, Sequence[float]], began: int | None) -> Figure:
  """Validation perplexity of retrained cells by epoch, the first of them in front.

  Args:
    curves: by name of the cell, the derived one first.
    began: first epoch of its averaged weights, if there is one.
  """
  figure = Figure(figsize=(6.4, 3.6), layout="constrained")
  FigureCanvasAgg(figure)
  axes = figure.add_subplot()
  for number, (name, values) in enumerate(curves.items()):
    axes.plot(
      range(1, len(values) + 1),
      values,
      color=GREY if number else BLUE,
      alpha=0.7 if number else 1.0,
      zorder=2 if number else 3,
      label=name if number < 2 else None,
    )
  if began is not None:
    axes.axvline(began - 0.5, color=ORANGE, linewidth=0.9, linestyle="--")
    axes.annotate(
      "averaged from here",
      (began - 0.5, 0.97),
      xycoords=("data", "axes fraction"),
      fontsize=8,
      ha="right",
      va="top",
      rotation=90,
    )
  axes.set_yscale("log")
  axes.yaxis.set_major_formatter("{x:g}")
  axes.yaxis.set_minor_formatter("{x:g}")
  axes.xaxis.set_major_locator(MaxNLocator(integer=True))
  axes.set_xlabel("epoch")
  axes.set_title("Validation perplexity in retraining", loc="left")
  axes.grid(alpha=0.25, linewidth=0.6, which="both")
  axes.spines[["top", "right"]].set_visible(False)
  axes.legend(frameon=False, fontsize=9)
  return figure
