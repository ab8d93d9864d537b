"""How well cheaper estimates rank architectures, against their cost, on a table.

The survey's section 2.3 as a measurement: fewer epochs, fewer training rows, another
training seed, a learning curve extrapolated from its first epochs, and a predictor that
learned from a few architectures. For each: Kendall's tau with the full training's
validation and test accuracy, tau among the best tenth, and top-k regret.

What is not on every row of the table (another seed, fewer rows) is compared with all
the other estimates on the rows that have it.

Command: python run.py --experiment=compare_fidelities
         (any table: --config.table=nasbench201.npz --config.datasets=cifar10)
"""

import dataclasses
import math
from typing import Any

import jax
import numpy as np

from experiments import build_mlp_table
from experiments.common_fidelities import (
  CURVE,
  EPOCHS,
  FEWEST,
  FULL,
  PREDICTOR,
  ROWS,
  SEED,
  Estimate,
  estimates,
  groups_of,
  view,
)
from nasjax import runtime
from nasjax.core.config import field
from nasjax.core.types import InputError
from nasjax.data import benchmarks
from nasjax.data.benchmarks import Benchmark, Measured
from nasjax.estimators import tabular
from nasjax.predictors import encodings
from nasjax.results import analysis, comparison, plots, report, tables
from nasjax.runtime import Run

TOP = (1, 10, 100)  # k of the regrets
_SHOWN_TOP = 10  # the one of them that is drawn
# The columns of a table's row that repeats are averaged over.
FIGURES = ("tau_valid", "tau_test", "tau_best_tenth", *(f"regret_{k}" for k in TOP))


@dataclasses.dataclass(frozen=True)
class Config:
  """Configuration of `compare_fidelities`."""

  table: str = field("mlp_digits", "an npz file, or the name of an embedded table")
  datasets: tuple[str, ...] = field((), "of the table; none for all")
  architectures: int | None = field(None, "how many, drawn at random; none for all")
  curve_points: tuple[int, ...] = field(
    (3, 4, 6, 8), "first fidelities that a learning curve is extrapolated from"
  )
  trained: tuple[int, ...] = field(
    (20, 50, 100, 200, 400), "architectures that a predictor learns from"
  )
  encodings: tuple[str, ...] = field(
    tuple(encodings.ENCODINGS), "features of a predictor", tuple(encodings.ENCODINGS)
  )
  draws: int = field(10, "of the architectures that a predictor learns from")
  members: int = field(5, "of a predictor's ensemble")
  hidden: int = field(32, "units of each of its hidden layers")
  steps: int = field(100, "of Adam, from new weights")
  target: str = field("rank", "what a predictor learns", ("rank", "score"))
  full_rows: int | None = field(
    None, "training rows of the full fidelity; none for what is known of the table"
  )

  def smoke(self) -> "Config":
    """The seconds-long version that the tests run end to end."""
    return dataclasses.replace(
      self, architectures=200, curve_points=(3,), trained=(20, 50), draws=2, steps=60
    )


def run(config: Config, run: Run) -> None:
  """Runs the experiment."""
  _check(config)
  benchmark = load(config.table)
  space = tabular.space_of(benchmark)
  tabular.rows_of(space, benchmark)  # refuses a table that is not whole
  names = config.datasets or tuple(benchmark.measured)
  for name in names:
    benchmark.on(name)
  run.begin()
  summary: dict[str, Any] = {
    "experiment": run.experiment,
    "seed": run.seed,
    "status": "interrupted",
    "table": benchmark.name,
    "top": TOP,
    "groups": [],
    "environment": runtime.environment(),
    "command": run.command,
  }
  try:
    for name in names:
      summary["groups"] += _dataset(config, run, benchmark, space, name)
    summary["status"] = "finished"
  finally:
    run.write_summary(summary)
    run.log(f"report: {_report(run, summary)}")
  for group in summary["groups"]:
    table = _table(group)
    headings = [name for name, _ in table.columns]
    run.table(_title(group), headings, [list(row) for row in table.rows])
    run.log(group["sentence"])


def _check(config: Config) -> None:
  for name in ("draws", "hidden", "steps"):
    if getattr(config, name) < 1:
      raise InputError(f"--config.{name} must be positive")
  if config.members < 2:
    raise InputError("--config.members must be at least 2")
  if config.trained and min(config.trained) < 2:
    raise InputError("--config.trained must be at least 2 architectures each")
  if config.curve_points and min(config.curve_points) < 3:
    raise InputError("--config.curve_points must be at least 3 fidelities each")
  if config.architectures is not None and config.architectures < FEWEST:
    raise InputError(f"--config.architectures must be at least {FEWEST}")
  if config.full_rows is not None and config.full_rows < 1:
    raise InputError("--config.full_rows must be positive")


def load(table: str) -> Benchmark:
  """An embedded table, or that of a file.

  Raises:
    InputError: there is no such table, or it is not one.
  """
  if table in benchmarks.EMBEDDED:
    return benchmarks.embedded(table)
  try:
    return benchmarks.read(table)
  except InputError as error:
    known = ", ".join(benchmarks.EMBEDDED)
    raise InputError(f"--config.table: {error} (embedded tables: {known})") from None


def _dataset(config, run: Run, benchmark: Benchmark, space, name: str) -> list[dict]:
  """The groups of one data set, as the summary has them."""
  measured = benchmark.on(name)
  key = jax.random.fold_in(run.key, tuple(benchmark.measured).index(name))
  chosen = np.arange(len(measured.test))
  if config.architectures is not None:
    rng = np.random.default_rng(run.seed)
    chosen = np.sort(rng.permutation(chosen)[: config.architectures])
  full_rows = config.full_rows or _known_rows(config.table)
  groups = []
  for number, group in enumerate(groups_of(measured, chosen)):
    log = f"{name}, {len(group):,} architectures"
    found = []
    for estimate in estimates(
      config,
      jax.random.fold_in(key, number),
      space,
      benchmark.genotypes[group],
      view(measured, group),
      full_rows,
    ):
      found.append(_row(estimate, view(measured, group)))
      run.log(f"{log}: {estimate.kind}, {estimate.name}")
    groups.append(
      {
        "dataset": name,
        "architectures": len(group),
        "of": len(measured.test),
        "full_epochs": int(measured.epochs[-1]),
        "full_seconds": float(measured.seconds[-1, group].astype(float).sum()),
        "rows": found,
      }
    )
    groups[-1]["sentence"] = sentence(groups[-1])
  return groups


def _known_rows(table: str) -> int | None:
  """Training rows of the full fidelity of our own table: a table does not hold it."""
  if table != "mlp_digits":
    return None
  return len(build_mlp_table.load(build_mlp_table.Config()).train.y)


def _row(estimate: Estimate, measured: Measured) -> dict[str, Any]:
  """One estimate's figures: means over its repeats, with an interval over draws."""
  is_truth = estimate.kind == FULL
  found: dict[str, list[float]] = {name: [] for name in FIGURES}
  for predicted, index, truth in estimate.repeats:
    test = measured.test[index]
    best = truth >= np.sort(truth)[-max(len(truth) // 10, 3)]
    values = {"tau_test": analysis.kendall_tau(predicted, test)}
    if not is_truth:  # which ranks itself without fault
      values |= {
        "tau_valid": analysis.kendall_tau(predicted, truth),
        "tau_best_tenth": analysis.kendall_tau(predicted[best], truth[best]),
      }
      for k in TOP:
        if k < len(truth):
          values[f"regret_{k}"] = comparison.top_k_regret(predicted, truth, k)
    for name, value in values.items():
      found[name].append(math.nan if value is None else value)
  row: dict[str, Any] = {
    "kind": estimate.kind,
    "name": estimate.name,
    "cost": estimate.cost,
    "repeats": len(estimate.repeats),
    "ranked": len(estimate.repeats[0][0]),
  }
  for name, over in found.items():
    told = comparison.summary(over)
    # Seeds are each other's truth: their spread is no interval.
    drawn = estimate.kind.startswith(PREDICTOR)
    row |= {name: told.mean, f"{name}_low": math.nan, f"{name}_high": math.nan}
    if drawn:
      row |= {f"{name}_low": told.low, f"{name}_high": told.high}
  return row


def sentence(group: dict[str, Any]) -> str:
  """What the figures of a group say."""
  rows = group["rows"]
  full = next(row for row in rows if row["kind"] == FULL)
  seed = next((row for row in rows if row["kind"] == SEED), None)
  cheaper = [
    row
    for row in rows
    if row["kind"] not in (FULL, SEED)
    and math.isfinite(row["cost"])
    and math.isfinite(row["tau_valid"])
  ]
  text = f"{_title(group)}: "
  if cheaper:
    cheap = [row for row in cheaper if row["cost"] <= 0.1]
    pool = cheap or [min(cheaper, key=lambda row: row["cost"])]
    best = max(pool, key=lambda row: row["tau_valid"])
    if cheap:
      text += f"for at most a tenth of the full cost {_words(best)} ranks best, with"
    else:
      text += f"the cheapest, {_words(best)}, ranks with"
    text += f" tau {best['tau_valid']:.2f} at {_percent(best['cost'])} of the cost"
    if math.isfinite(best["regret_10"]):
      text += (
        f" (the best of its top 10 lies {100 * best['regret_10']:.2f} points below "
        "the best of all)"
      )
    within = [row for row in pool if math.isfinite(row["tau_best_tenth"])]
    if within:
      first = max(within, key=lambda row: row["tau_best_tenth"])
      n = max(best["ranked"] // 10, 3)
      # The standard deviation of tau without any correlation: less is not told apart.
      chance = math.sqrt(2 * (2 * n + 5) / (9 * n * (n - 1)))
      if not first["tau_best_tenth"] > best["tau_best_tenth"] + 2 * chance:
        text += f"; among the best tenth its tau is {best['tau_best_tenth']:.2f}"
      else:
        text += f"; among the best tenth {_words(first)} does, with tau "
        text += f"{first['tau_best_tenth']:.2f}"
    text += "; "
  if seed is not None and math.isfinite(seed["tau_valid"]):
    text += f"training again with another seed has tau {seed['tau_valid']:.2f}; "
  if math.isfinite(full["tau_test"]):
    text += f"the full score ranks test accuracy with tau {full['tau_test']:.2f}; "
  return text.rstrip("; ").rstrip(": ") + "."


def _words(row: dict[str, Any]) -> str:
  """An estimate as what is done for it."""
  kind, name = row["kind"], row["name"]
  if kind.startswith(PREDICTOR):
    return f"a {kind.replace(',', ' with')} features ({name})"
  return {
    EPOCHS: f"stopping after {name}",
    ROWS: f"training on {name}",
    CURVE: f"extrapolating learning curves {name}",
  }[kind]


def _percent(share: float) -> str:
  return f"{100 * share:.2g} %" if share < 0.995 else f"{100 * share:.0f} %"


def _title(group: dict[str, Any]) -> str:
  of = f" of {group['of']:,}" if group["architectures"] < group["of"] else ""
  return f"{group['dataset']}, {group['architectures']:,}{of} architectures"


def _table(group: dict[str, Any]) -> tables.Table:
  columns = [("estimate", False), ("cost", True)]
  columns += [("tau, validation", True), ("tau, test", True)]
  columns += [("tau, best tenth", True)]
  columns += [(f"top-{k} regret, points", True) for k in TOP]
  rows = []
  for row in group["rows"]:
    cost = _percent(row["cost"]) if math.isfinite(row["cost"]) else tables.DASH
    cells = [f"{row['kind']}: {row['name']}", cost]
    for name in FIGURES:
      scale, digits = (100, 2) if name.startswith("regret") else (1, 3)
      value, high = scale * row[name], scale * row[f"{name}_high"]
      text = f"{value:.{digits}f}" if math.isfinite(value) else tables.DASH
      text += f" ± {high - value:.{digits}f}" if math.isfinite(high) else ""
      cells.append(text)
    rows.append(cells)
  made = tables.table(columns, rows)
  assert made is not None  # the full training is always there
  return made


_NOTES = (
  "Cost: the table's seconds as a share of training all of these architectures fully. "
  "Fewer rows: the share of the rows. A curve: its first epochs. A predictor: the full "
  "trainings that it learned from, so its share falls as more architectures are to be "
  "ranked; its figures are of those it has not seen, means over draws with a 95 % "
  "interval of the mean.",
  "Tau is Kendall's, with the full training's validation or test accuracy; best tenth: "
  "the tenth with the highest full validation accuracy, among themselves. Regret: how "
  "far the best full validation accuracy among the k ranked highest lies below the "
  "best of all ranked.",
)
_SEED_NOTE = (
  "Another seed is compared with the mean of the seeds that are not it: what is above "
  "its tau is noise of training, not knowledge of architectures. Earlier epochs of the "
  "very training that is the truth share that noise, and may lie above."
)


def _report(run: Run, summary: dict[str, Any]):
  """`report.html` and `report.md`."""
  sections = []
  for group in summary["groups"]:
    notes = [*_NOTES]
    if any(row["kind"] == SEED for row in group["rows"]):
      notes.append(_SEED_NOTE)
    title = _title(group)
    sections.append(report.Section(title, _table(group), notes, _plots(group)))
  environment = tables.pairs(summary["environment"].items())
  said = " ".join(group["sentence"] for group in summary["groups"])
  return report.write_page(
    run.workdir,
    {
      "experiment": run.experiment,
      "status": f"{summary['table']}, seed {run.seed}, {summary['status']}",
      "headline": said or "Nothing was compared.",
      "warnings": [],
      "sections": [
        *sections,
        report.Section("Environment", environment),
        report.Section("Run it again", command=summary["command"]),
      ],
    },
  )


def _plots(group: dict[str, Any]) -> list[dict[str, str]]:
  """Tau against cost: with validation, among the best, with test; and regret."""
  rows = {row["kind"]: row for row in group["rows"]}
  seed, full = rows.get(SEED), rows[FULL]
  regret = f"regret_{_SHOWN_TOP}"
  made = []
  for figure, title in (
    ("tau_valid", "all architectures, full validation accuracy"),
    ("tau_best_tenth", "best tenth, full validation accuracy"),
    ("tau_test", "all architectures, test accuracy"),
    (regret, f"the best of the {_SHOWN_TOP} ranked highest, full validation accuracy"),
  ):
    scale, label, better = 1, "Kendall's tau", "Higher"
    if figure == regret:
      scale, label, better = 100, "regret, points", "Lower"
    series = {
      kind: tuple(
        factor * np.array([row[key] for row in group["rows"] if row["kind"] == kind])
        for factor, key in (
          (1, "cost"),
          *((scale, f"{figure}{end}") for end in ("", "_low", "_high")),
        )
      )
      for kind in rows
      if kind not in (FULL, SEED)
    }
    reference = None
    if figure == "tau_test":
      reference = (full[figure], "full training")
    elif seed is not None:
      reference = (scale * seed[figure], "another seed, fully trained")
    drawn = plots.against_cost(series, label, title, reference=reference)
    note = f"{better} and further left is better; bars: 95 % interval over draws."
    made.append({"svg": plots.to_svg(drawn), "note": note, "title": title})
  return made
