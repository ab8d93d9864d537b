"""The report's plots: plain data in, a matplotlib figure out, no global state."""

import io
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from nasjax.results import analysis

# Okabe and Ito's palette, told apart with any colour vision. The controller is blue and
# random search orange in every plot; what is neither is grey.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#999999"
_TOP_COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9")
# Of strategies, but for orange: that is random search.
_STRATEGY_COLOURS = (BLUE, GREEN, "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_LINE_STYLES = ("-", "--", "-.", ":")
_MAX_LAYERS_SHOWN = 14
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
Record = dict[str, Any]


def _axes(width: float = 6.0, height: float = 3.8) -> tuple[Figure, Axes]:
  figure = Figure(figsize=(width, height), layout="constrained")
  FigureCanvasAgg(figure)
  axes = figure.add_subplot()
  axes.spines[["top", "right"]].set_visible(False)
  axes.grid(alpha=0.25, linewidth=0.6)
  axes.set_axisbelow(True)
  return figure, axes


def to_svg(figure: Figure) -> str:
  """The figure as an `<svg>` element, the same bytes for the same figure.

  matplotlib escapes the text that it holds.
  """
  buffer = io.StringIO()
  with matplotlib.rc_context({"svg.hashsalt": "nasjax"}):
    figure.savefig(buffer, format="svg", metadata=_NO_METADATA)
  text = buffer.getvalue()
  return text[text.index("<svg") :]


def to_png(figure: Figure, dpi: int = 150) -> bytes:
  """The figure as PNG."""
  buffer = io.BytesIO()
  figure.savefig(buffer, format="png", dpi=dpi)
  return buffer.getvalue()


def metric_label(metric: str) -> str:
  """The name of a metric as people write it."""
  return {"r2": "R²"}.get(metric, metric)


def _values(records: Sequence[Record], name: str) -> np.ndarray:
  values = [np.nan if r.get(name) is None else r[name] for r in records]
  return np.array(values, float)


def _curve(record: Record) -> np.ndarray:
  return np.array(record.get("curve") or [], float)


def _short(text: str, length: int = 34) -> str:
  """Text for a label: cut to length, and no `$` that would start a formula."""
  cut = text if len(text) <= length else text[: length - 3] + "..."
  return cut.replace("$", r"\$")


def _limit_to_upper(axes: Axes, values: np.ndarray) -> None:
  """Shows where good scores can be told apart: the lowest fifth may be cut off."""
  finite = values[np.isfinite(values)]
  if len(finite):
    low, top = np.quantile(finite, 0.2), finite.max()
    margin = max((top - low) * 0.15, 1e-3)
    axes.set_ylim(low - margin, top + margin)


def _limit_to_means(axes: Axes, bands: Sequence[np.ndarray]) -> None:
  """Shows the lines: an interval of two seeds is so wide that it would flatten them."""
  drawn = [np.asarray(line.get_ydata(), float) for line in axes.lines]
  lines = np.concatenate(drawn or [np.zeros(0)])
  lines = lines[np.isfinite(lines)]
  if len(lines):
    widths = np.concatenate([(high - low) / 2 for _, low, high in bands])
    usual = np.median(widths[np.isfinite(widths)]) if np.isfinite(widths).any() else 0
    margin = max(1.2 * usual, 0.08 * np.ptp(lines), 1e-6)
    axes.set_ylim(lines.min() - margin, lines.max() + margin)


def _legend(axes: Axes, **options) -> None:
  if axes.get_legend_handles_labels()[0]:
    options = {"frameon": False, "loc": "lower right", "fontsize": 9} | options
    axes.legend(**options)


def _legend_below(figure: Figure, axes: Axes, ncols: int = 1) -> None:
  """A legend outside the axes, where it can cover nothing."""
  handles, names = axes.get_legend_handles_labels()
  if handles:
    place: Any = "outside lower center"
    figure.legend(handles, names, loc=place, ncols=ncols, frameon=False, fontsize=9)


def incumbent(
  search: Sequence[Record], control: Sequence[Record], metric: str
) -> Figure:
  """Best score so far against children evaluated, every child a dot.

  Args:
    search: records in the order of evaluation.
    control: those of random search at the same budget; may be empty.
    metric: "accuracy" or "r2".
  """
  figure, axes = _axes()
  scores = analysis.finite_scores([*search, *control])
  for part, colour, name in (
    (scores[: len(search)], BLUE, "controller"),
    (scores[len(search) :], ORANGE, "random search"),
  ):
    if not len(part):
      continue
    step, best = np.arange(1, len(part) + 1), analysis.incumbent_curve(part)
    axes.plot(step, part, ".", color=colour, alpha=0.35, markersize=5)
    axes.step(step, best, where="post", color=colour, label=name, linewidth=2)
  _limit_to_upper(axes, scores)
  axes.set_xlabel("children evaluated")
  axes.set_ylabel(f"score (validation {metric_label(metric)})")
  axes.set_title("Best so far")
  _legend(axes)
  return figure


def anytime_curves(
  bands: Mapping[str, tuple[np.ndarray, ...]],
  x_label: str,
  y_label: str,
  title: str,
  *,
  log_x: bool = False,
  reference: tuple[float, str] | None = None,
  lower_is_better: bool = False,
) -> Figure:
  """How good each strategy's incumbent is by what it has cost, with an interval.

  Strategies differ in line style as well as in colour; the legend lists them by what
  they reach, best first.

  Args:
    bands: name -> (grid, mean, low, high), `[G]` each, as of `comparison.band`; NaN
      where nothing is known.
    x_label: of the budget.
    y_label: of the incumbent's value.
    title: of the plot.
    log_x: a logarithmic budget; the grid is then positive.
    reference: a value to draw a line at, and its name: the optimum, say.
    lower_is_better: for a regret.
  """

  def reached(name: str) -> float:
    mean = np.asarray(bands[name][1], float)
    known = mean[np.isfinite(mean)]
    return (known[-1] if lower_is_better else -known[-1]) if len(known) else np.inf

  figure, axes = _axes(height=4.4)
  others = itertools.cycle(_STRATEGY_COLOURS)
  looks = {
    name: (ORANGE if name.startswith("random") else next(others), style)
    for name, style in zip(bands, itertools.cycle(_LINE_STYLES))
  }
  for name in sorted(bands, key=reached):
    grid, mean, low, high = bands[name]
    colour, style = looks[name]
    axes.fill_between(grid, low, high, step="post", color=colour, alpha=0.15, lw=0)
    axes.step(grid, mean, style, where="post", color=colour, label=_short(name), lw=1.8)
  if reference is not None:
    value, name = reference
    axes.axhline(value, color="#555555", linestyle=(0, (1, 2)), lw=1.2, label=name)
  _limit_to_means(axes, [np.array(band[1:], float) for band in bands.values()])
  if log_x:
    axes.set_xscale("log")
  axes.set_xlabel(x_label)
  axes.set_ylabel(y_label)
  axes.set_title(title)
  longest = max((len(_short(name)) for name in bands), default=0)
  _legend_below(figure, axes, ncols=3 if longest <= 20 else 2)
  return figure


def against_cost(
  series: Mapping[str, tuple[np.ndarray, ...]],
  y_label: str,
  title: str,
  *,
  reference: tuple[float, str] | None = None,
) -> Figure:
  """How good cheaper estimates are by their share of the full cost, on a log axis.

  Args:
    series: name -> (cost, value, low, high), `[M]` each, in any order; NaN where there
      is no interval. Of several points a line is drawn.
    y_label: of the value.
    title: of the plot.
    reference: a value to draw a line at, and its name: the noise ceiling, say.
  """
  figure, axes = _axes(height=4.4)
  looks = zip(itertools.cycle(_STRATEGY_COLOURS), itertools.cycle("osD^vP"))
  for (name, points), (colour, marker) in zip(series.items(), looks):
    cost, value, low, high = (np.asarray(part, float) for part in points)
    shown = np.flatnonzero((cost > 0) & np.isfinite(value))
    shown = shown[np.argsort(cost[shown], kind="stable")]
    if not len(shown):
      continue
    cost, value, low, high = (part[shown] for part in (cost, value, low, high))
    axes.plot(
      cost,
      value,
      f"{marker}-",
      color=colour,
      label=_short(name, 44),
      markersize=5,
      lw=1.3,
    )
    axes.vlines(cost, low, high, color=colour, lw=1.2, alpha=0.7)
  if reference is not None and np.isfinite(reference[0]):
    value_at, name = reference
    look: Any = {"color": "#555555", "linestyle": (0, (1, 2)), "lw": 1.2}
    axes.axhline(value_at, label=name, **look)
  axes.set_xscale("log")
  axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
  axes.xaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g} %")
  axes.xaxis.set_minor_formatter(NullFormatter())
  axes.set_xlabel("cost, as a share of training all of them fully")
  axes.set_ylabel(y_label)
  axes.set_title(title)
  _legend_below(figure, axes, ncols=2)
  return figure


def round_means(search: Sequence[Record], control: Sequence[Record]) -> Figure:
  """Mean and quartiles of each round's scores: whether the controller learned."""
  figure, axes = _axes()
  for records, colour, name in (
    (search, BLUE, "controller"),
    (control, ORANGE, "random search"),
  ):
    rounds, scores = _values(records, "round"), analysis.finite_scores(records)
    known = np.isfinite(rounds) & np.isfinite(scores)
    shown = np.unique(rounds[known])
    groups = [scores[known & (rounds == i)] for i in shown]
    if not groups:
      continue
    low, high = zip(*(np.quantile(group, (0.25, 0.75)) for group in groups))
    axes.fill_between(shown + 1, low, high, color=colour, alpha=0.15, linewidth=0)
    means = [group.mean() for group in groups]
    axes.plot(shown + 1, means, "o-", color=colour, label=name, markersize=4)
  axes.xaxis.set_major_locator(MaxNLocator(integer=True))
  axes.set_xlabel("round")
  axes.set_ylabel("score: mean and quartiles")
  axes.set_title("What each round sampled")
  _legend(axes, loc="best")
  return figure


def learning_curves(records: Sequence[Record], metric: str, top: int = 5) -> Figure:
  """Validation metric by epoch, the best children in colour, the others faint."""
  figure, axes = _axes(height=4.7)
  ranked = [r for r in analysis.leaderboard(records, len(records)) if r.get("curve")]
  top = min(top, len(_TOP_COLOURS))
  for record in reversed(ranked[top:]):
    curve = _curve(record)
    axes.plot(
      np.arange(1, len(curve) + 1), curve, color=GREY, alpha=0.25, linewidth=0.8
    )
  for colour, record in zip(_TOP_COLOURS, ranked[:top]):
    curve, name = _curve(record), _short(record.get("arch", ""), 48)
    epochs = np.arange(1, len(curve) + 1)
    axes.plot(epochs, curve, ".-", color=colour, label=name, linewidth=1.6)
  values = np.concatenate([_curve(r) for r in ranked[:top]] or [np.zeros(0)])
  values = values[np.isfinite(values)]
  if len(values):
    # The best children fill the plot; one that diverged would flatten them all.
    low, high = values.min(), values.max()
    margin = max((high - low) * 0.08, 1e-3)
    axes.set_ylim(low - 3 * margin, high + margin)
  axes.xaxis.set_major_locator(MaxNLocator(integer=True))
  axes.set_xlabel("epoch")
  axes.set_ylabel(f"validation {metric_label(metric)}")
  axes.set_title("Learning curves, the best in colour")
  _legend_below(figure, axes)
  return figure


def predicted_against_measured(records: Sequence[Record]) -> Figure:
  """What the accuracy predictor said of each child before it was trained."""
  figure, axes = _axes(height=4.2)
  predicted, measured = (
    _values(records, "predicted_score"),
    analysis.finite_scores(records),
  )
  both = np.isfinite(predicted) & np.isfinite(measured)
  predicted, measured = predicted[both], measured[both]
  if len(predicted):
    dots = axes.scatter(
      measured,
      predicted,
      c=np.nan_to_num(_values(records, "round")[both]) + 1,
      cmap="viridis",
      s=18,
      alpha=0.8,
    )
    figure.colorbar(dots, ax=axes, label="round", ticks=MaxNLocator(integer=True))
    ends = [min(measured.min(), predicted.min()), max(measured.max(), predicted.max())]
    axes.plot(ends, ends, color=GREY, linewidth=1, linestyle="--")
  tau = analysis.kendall_tau(predicted, measured)
  axes.set_xlabel("measured score")
  axes.set_ylabel("predicted score")
  shown = "not defined" if tau is None else f"{tau:.2f}"
  axes.set_title(f"Accuracy predictor, Kendall's tau {shown}")
  return figure


def score_against_params(records: Sequence[Record], metric: str) -> Figure:
  """Score against size, with the children that none beats in both."""
  figure, axes = _axes()
  size, score = _values(records, "num_params"), analysis.finite_scores(records)
  known = np.isfinite(score) & (size > 0)
  size, score = size[known], score[known]
  if len(score):
    axes.set_xscale("log")
    axes.scatter(size, score, color=BLUE, s=16, alpha=0.5)
    order = np.lexsort((-score, size))
    best = np.maximum.accumulate(score[order])
    front = order[np.diff(best, prepend=-np.inf) > 0]
    axes.step(size[front], score[front], where="post", color=ORANGE, linewidth=1.2)
    axes.plot(size[front], score[front], "o", color=ORANGE, label="Pareto front")
    _limit_to_upper(axes, score)
  axes.set_xlabel("parameters")
  axes.set_ylabel(f"score (validation {metric_label(metric)})")
  axes.set_title("Size against score")
  _legend(axes)
  return figure


def bars_final(values: Sequence[tuple[str, float]], metric: str) -> Figure:
  """Test metric of the retrained winner, first, beside the baselines.

  Args:
    values: (name, test metric) from top to bottom, at least one.
    metric: "accuracy" or "r2".
  """
  colours = [ORANGE if name.startswith("random") else GREY for name, _ in values[1:]]
  return bars(
    values,
    f"test {metric_label(metric)}",
    "On rows that nothing was selected on",
    "{:.4f}",
    [BLUE, *colours],
  )


def bars(
  values: Sequence[tuple[str, float]],
  label: str,
  title: str,
  shown: str = "{:.3g}",
  colours: Sequence[str] = (),
) -> Figure:
  """One bar a name with its value beside it, from top to bottom.

  Args:
    values: (name, value), at least one.
    label: of the axis.
    title: of the plot.
    shown: how a value is written.
    colours: of the bars; without them the first is blue and the others grey.
  """
  figure, axes = _axes(height=0.5 * len(values) + 1.2)
  names, heights = [name for name, _ in values], np.array([v for _, v in values])
  row = np.arange(len(values))
  colours = colours or [BLUE] + [GREY] * (len(values) - 1)
  axes.barh(row, heights, color=colours, height=0.65)
  for i, height in enumerate(heights):
    text = f" {shown.format(height)}"
    axes.text(max(height, 0), i, text, va="center", fontsize=9)
  axes.set_yticks(row, names)
  axes.invert_yaxis()
  axes.set_xlim(min(0, heights.min()), max(heights.max(), 0) * 1.15 or 1)
  axes.set_xlabel(label)
  axes.grid(axis="y", visible=False)
  axes.set_title(title)
  return figure


def token_usage(records: Sequence[Record]) -> Figure:
  """How often each kind of layer was sampled, early and late in the run."""
  third = max(len(records) // 3, 1)
  parts = {"first third": records[:third], "last third": records[-third:]}
  counts: dict[str, dict[str, int]] = {name: {} for name in parts}
  for name, part in parts.items():
    for record in part:
      for layer in filter(None, record.get("arch", "").split(" - ")):
        counts[name][layer] = counts[name].get(layer, 0) + 1
  early, late = counts.values()
  names = sorted(early | late, key=lambda n: (-late.get(n, 0), -early.get(n, 0), n))
  left_out, names = names[_MAX_LAYERS_SHOWN:], names[:_MAX_LAYERS_SHOWN]
  figure, axes = _axes(height=0.26 * len(names) + 1.7)
  row = np.arange(len(names))
  for offset, colour, (name, count) in zip((-0.2, 0.2), (GREY, BLUE), counts.items()):
    shares = [count.get(n, 0) / max(len(parts[name]), 1) for n in names]
    axes.barh(row + offset, shares, height=0.38, color=colour, label=name)
  axes.set_yticks(row, [_short(n) for n in names])
  axes.invert_yaxis()
  rest = f" ({len(left_out)} rarer kinds not shown)" if left_out else ""
  axes.set_xlabel(f"layers per child{rest}")
  axes.grid(axis="y", visible=False)
  axes.set_title("What the controller samples")
  _legend_below(figure, axes, ncols=2)
  return figure
