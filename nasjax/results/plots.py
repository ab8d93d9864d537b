"""The report's plots: plain data in, a matplotlib figure out, no global state."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nasjax.results import analysis

# Okabe and Ito's palette, told apart with any colour vision.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#999999"
Record = dict[str, Any]


def _axes(width: float = 6.4, height: float = 3.8):
  figure = Figure(figsize=(width, height), layout="constrained")
  FigureCanvasAgg(figure)
  axes = figure.add_subplot()
  axes.spines[["top", "right"]].set_visible(False)
  axes.grid(alpha=0.25, linewidth=0.6)
  axes.set_axisbelow(True)
  return figure, axes


def to_svg(figure: Figure) -> str:
  """The figure as an `<svg>` element; matplotlib escapes its text."""
  buffer = io.StringIO()
  figure.savefig(buffer, format="svg", metadata={"Date": None})
  text = buffer.getvalue()
  return text[text.index("<svg") :]


def to_png(figure: Figure, dpi: int = 150) -> bytes:
  """The figure as PNG."""
  buffer = io.BytesIO()
  figure.savefig(buffer, format="png", dpi=dpi)
  return buffer.getvalue()


def _scores(records: Sequence[Record]) -> np.ndarray:
  return np.array([np.nan if r["score"] is None else r["score"] for r in records])


def _limits(values: np.ndarray) -> tuple[float, float]:
  """Where the upper half of the scores can be told apart, bottom outliers cut off."""
  finite = values[np.isfinite(values)]
  low, top = np.quantile(finite, 0.2), finite.max()
  margin = max((top - low) * 0.15, 1e-3)
  return low - margin, top + margin


def incumbent(
  search: Sequence[Record], control: Sequence[Record], metric: str
) -> Figure:
  """Best score so far against children evaluated, every child a dot."""
  figure, axes = _axes()
  both = []
  for records, colour, name in (
    (search, BLUE, "controller"),
    (control, ORANGE, "random search"),
  ):
    if not records:
      continue
    scores, step = _scores(records), np.arange(1, len(records) + 1)
    both.append(scores)
    best = analysis.incumbent(scores)
    axes.plot(step, scores, ".", color=colour, alpha=0.35, markersize=5)
    axes.step(step, best, where="post", color=colour, label=name, linewidth=2)
  if both and np.isfinite(np.concatenate(both)).any():
    axes.set_ylim(*_limits(np.concatenate(both)))
  axes.set_xlabel("children trained")
  axes.set_ylabel(f"score (validation {metric})")
  axes.set_title("Best so far")
  axes.legend(frameon=False, loc="lower right")
  return figure


def round_means(search: Sequence[Record], control: Sequence[Record]) -> Figure:
  """Mean and quartiles of each round's scores: whether the controller learned."""
  figure, axes = _axes()
  for records, colour, name in (
    (search, BLUE, "controller"),
    (control, ORANGE, "random search"),
  ):
    rounds = sorted({r["round"] for r in records})
    groups = [_scores([r for r in records if r["round"] == i]) for i in rounds]
    groups = [group[np.isfinite(group)] for group in groups]
    kept = [(i + 1, group) for i, group in zip(rounds, groups) if len(group)]
    if not kept:
      continue
    x = [i for i, _ in kept]
    low, high = zip(*(np.quantile(group, (0.25, 0.75)) for _, group in kept))
    axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.plot(x, [g.mean() for _, g in kept], "o-", color=colour, label=name)
  axes.set_xlabel("round")
  axes.set_ylabel("score: mean and quartiles")
  axes.set_title("What each round sampled")
  axes.legend(frameon=False, loc="lower right")
  return figure


def learning_curves(records: Sequence[Record], metric: str, top: int = 5) -> Figure:
  """Validation metric by epoch, the best children in colour."""
  figure, axes = _axes()
  ranked = analysis.leaderboard(records, len(records))
  for record in reversed(ranked[top:]):
    epochs = range(1, len(record["curve"]) + 1)
    axes.plot(epochs, record["curve"], color=GREY, alpha=0.25, linewidth=0.8)
  colours = (BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9")
  for colour, record in zip(colours, ranked[:top]):
    arch = record["arch"]
    name = arch if len(arch) <= 34 else arch[:31] + "..."
    epochs = range(1, len(record["curve"]) + 1)
    axes.plot(epochs, record["curve"], ".-", color=colour, label=name)
  values = np.array([v for r in records for v in r["curve"]], float)
  if metric == "r2" and len(values):
    axes.set_ylim(max(values.min(), -0.5), 1.0)
  axes.set_xlabel("epoch")
  axes.set_ylabel(f"validation {metric}")
  axes.set_title("Learning curves, the best in colour")
  axes.legend(frameon=False, fontsize=7, loc="lower right")
  return figure


def predicted_against_measured(records: Sequence[Record]) -> Figure:
  """What the accuracy predictor said before each child was trained."""
  figure, axes = _axes(4.6, 4.2)
  pairs = [
    (r["predicted_score"], r["score"], r["round"])
    for r in records
    if r.get("predicted_score") is not None and r["score"] is not None
  ]
  predicted, measured, rounds = np.array(pairs, float).reshape(-1, 3).T
  dots = axes.scatter(
    measured, predicted, c=rounds + 1, cmap="viridis", s=18, alpha=0.8
  )
  if len(pairs):
    ends = [min(measured.min(), predicted.min()), max(measured.max(), predicted.max())]
    axes.plot(ends, ends, color=GREY, linewidth=1, linestyle="--")
    figure.colorbar(dots, ax=axes, label="round")
  tau = analysis.kendall_tau(predicted, measured)
  axes.set_xlabel("measured score")
  axes.set_ylabel("predicted score")
  shown = "n/a" if tau is None else f"{tau:.2f}"
  axes.set_title(f"Accuracy predictor, Kendall's tau {shown}")
  return figure


def score_against_params(records: Sequence[Record], metric: str) -> Figure:
  """Score against size, with the children that none beats in both."""
  figure, axes = _axes()
  done = [r for r in records if r["score"] is not None]
  size = np.array([r["num_params"] for r in done], float)
  score = np.array([r["score"] for r in done], float)
  axes.scatter(size, score, color=BLUE, s=16, alpha=0.5)
  order = np.lexsort((-score, size))
  best, front = -np.inf, []
  for i in order:
    if score[i] > best:
      best = score[i]
      front.append(i)
  axes.step(
    size[front], score[front], where="post", color=ORANGE, label="Pareto front"
  )
  axes.set_xscale("log")
  if len(done):
    axes.set_ylim(*_limits(score))
  axes.set_xlabel("parameters")
  axes.set_ylabel(f"score (validation {metric})")
  axes.set_title("Size against score")
  axes.legend(frameon=False, loc="lower right")
  return figure


def final_bars(values: Sequence[tuple[str, float]], metric: str) -> Figure:
  """Test metric of the retrained winner beside the baselines."""
  figure, axes = _axes(6.4, 0.5 * len(values) + 1.1)
  names = [name for name, _ in values][::-1]
  heights = np.array([value for _, value in values])[::-1]
  colours = [GREY] * (len(values) - 1) + [BLUE]
  axes.barh(names, heights, color=colours, height=0.65)
  for row, height in enumerate(heights):
    axes.text(max(height, 0), row, f" {height:.4f}", va="center", fontsize=9)
  axes.set_xlim(min(0, heights.min()), max(heights.max(), 0) * 1.12 or 1)
  axes.set_xlabel(f"test {metric}")
  axes.grid(axis="y", visible=False)
  axes.set_title("On rows that nothing was selected on")
  return figure


def layer_usage(records: Sequence[Record]) -> Figure:
  """How often each kind of layer was sampled, early and late in the run."""
  third = max(len(records) // 3, 1)
  parts = {"first third": records[:third], "last third": records[-third:]}
  counts: dict[str, dict[str, int]] = {name: {} for name in parts}
  for name, part in parts.items():
    for record in part:
      for layer in record["arch"].split(" - "):
        counts[name][layer] = counts[name].get(layer, 0) + 1
  late = counts["last third"]
  names = sorted({n for c in counts.values() for n in c}, key=lambda n: late.get(n, 0))
  names = names[-14:]
  figure, axes = _axes(6.4, 0.28 * len(names) + 1.2)
  row = np.arange(len(names))
  for offset, colour, (name, count) in zip((0.2, -0.2), (GREY, BLUE), counts.items()):
    axes.barh(
      row + offset,
      [count.get(n, 0) / len(parts[name]) for n in names],
      height=0.38,
      color=colour,
      label=name,
    )
  axes.set_yticks(row, names)
  axes.set_xlabel("layers per child")
  axes.grid(axis="y", visible=False)
  axes.set_title("What the controller samples")
  axes.legend(frameon=False, loc="lower right")
  return figure
