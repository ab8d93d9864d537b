"""What a comparison of strategies says: tables, pictures and a sentence."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from nasjax.results import comparison, plots, report, tables
from nasjax.runtime import Run

# What a row of the results has of a strategy, and its heading.
_FIGURES = {
  "valid": "validation, %",
  "test": "test, %",
  "valid_regret": "validation regret",
  "test_regret": "test regret",
}
_FIGURE_NOTE = (
  "Mean ± standard deviation over the seeds (standard error of the mean). Regret: "
  "points below the best that the table holds."
)


def _spread(value: Mapping[str, Any]) -> str:
  """Mean ± standard deviation (standard error), in percent."""
  mean, std, sem = (100 * value[name] for name in ("mean", "std", "sem"))
  return f"{mean:.2f} ± {std:.2f} ({sem:.3f})"


def _signed(value: float | None) -> str:
  return tables.DASH if value is None else f"{value:+.1f}"


def tables_of(summary: Mapping[str, Any]) -> list[tuple[str, tables.Table]]:
  """A table for each protocol and each data set that it judges."""
  made = []
  for protocol in summary["protocols"]:
    for dataset in protocol["judged"]:
      rows = [
        row
        for row in summary["results"]
        if (row["protocol"], row["dataset"]) == (protocol["name"], dataset)
      ]
      cells = []
      for row in sorted(rows, key=lambda row: -row["test"]["mean"]):
        theirs = row.get("published") or {}
        shown = [tables.DASH, tables.DASH, tables.DASH]
        if theirs:
          shown = [
            f"{theirs['valid']:.2f} ± {theirs['valid_std']:.2f}",
            f"{theirs['test']:.2f} ± {theirs['test_std']:.2f}",
            f"{_signed(theirs['valid_errors'])} / {_signed(theirs['test_errors'])}",
          ]
        cells.append(
          [
            row["strategy"],
            *(_spread(row[name]) for name in _FIGURES),
            f"{row['evaluations']:.0f}",
            *shown,
          ]
        )
      columns = [
        ("strategy", False),
        *((heading, True) for heading in _FIGURES.values()),
        ("evaluations", True),
        ("published validation", True),
        ("published test", True),
        ("difference, standard errors", True),
      ]
      table = tables.table(columns, cells)
      if table is not None:
        made.append((_title(protocol, dataset), table))
  return made


def _title(protocol: Mapping[str, Any], dataset: str) -> str:
  epochs = protocol["epochs"]
  at = f" after {epochs} epochs" if epochs else ""
  return f"{protocol['name']}: {dataset}, searched on {protocol['searched']}{at}"


def _pairs(summary: Mapping[str, Any], protocol: str, dataset: str):
  return [
    comparison.Pair(
      **{k: v for k, v in pair.items() if k not in ("protocol", "dataset")}
    )
    for pair in summary["pairs"]
    if (pair["protocol"], pair["dataset"]) == (protocol, dataset)
  ]


def sentences(summary: Mapping[str, Any], control: str) -> list[dict[str, str]]:
  """What the tests against the control say of each protocol and data set.

  (Of ten strategies there are 45 pairs: the others stand in the tables of tests.)
  """
  said = []
  for protocol in summary["protocols"]:
    for dataset in protocol["judged"]:
      pairs = [
        pair
        for pair in _pairs(summary, protocol["name"], dataset)
        if control in (pair.better, pair.worse)
      ]
      sentence = f"only {control} ran: there is nothing to compare it with."
      if pairs:
        sentence = comparison.sentence(pairs)
      said.append(
        {"protocol": protocol["name"], "dataset": dataset, "sentence": sentence}
      )
  return said


def _p(value: float) -> str:
  if not math.isfinite(value):
    return tables.DASH
  return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _halving(protocol: Mapping[str, Any]) -> list[str]:
  """A note on who does not search at the protocol's fidelity."""
  if not protocol["halving"]:
    return []
  *lower, last = map(str, protocol["rungs"])
  rungs = f"{', '.join(lower)} and {last} epochs" if lower else f"{last} epochs alone"
  return [
    f"{' and '.join(protocol['halving'])}: rungs of {rungs}, whatever the fidelity of "
    f"the others is; one in {protocol['eta']} goes on, and only children of the "
    "highest rung reached can win."
  ]


def write(run: Run, summary: Mapping[str, Any]):
  """`report.html` and `report.md`; the path of the first."""
  said = {
    (one["protocol"], one["dataset"]): one["sentence"] for one in summary["sentences"]
  }
  sections = []
  of_table = dict(tables_of(summary))
  for protocol in summary["protocols"]:
    name = protocol["name"]
    unit = {
      "evaluations": "evaluations, in full ones",
      "seconds": "seconds of training, by the table",
    }[protocol["unit"]]
    bands = {
      strategy: (c["budget"], *(100 * c[part] for part in ("mean", "low", "high")))
      for strategy, c in summary["anytime"][name].items()
    }
    figure = plots.anytime_curves(
      bands,
      unit,
      "test regret of the incumbent, points",
      f"{name}: {protocol['searched']}",
      log_x=True,
      lower_is_better=True,
    )
    # Strategies differ most where all are near the optimum.
    shown = np.concatenate([band[1] for band in bands.values()])
    shown = shown[np.isfinite(shown) & (shown > 0)]
    if len(shown):
      (axes,) = figure.axes
      axes.set_yscale("log")
      axes.set_ylim(0.9 * shown.min(), 1.1 * shown.max())
    note = "Mean over the seeds with its 95 % interval; lower is better."
    picture = {"svg": plots.to_svg(figure), "note": note, "title": name}
    for i, dataset in enumerate(protocol["judged"]):
      title = _title(protocol, dataset)
      sections.append(
        report.Section(
          title,
          of_table.get(title),
          [said[name, dataset], _FIGURE_NOTE, *_halving(protocol)],
          [picture] if i == 0 else [],
        )
      )
      rows = [
        [
          p.better,
          p.worse,
          f"{100 * p.difference:.2f}",
          _p(p.p),
          _p(p.p_holm),
        ]
        for p in _pairs(summary, name, dataset)
      ]
      columns = [
        ("better", False),
        ("than", False),
        ("by, points", True),
        ("p", True),
        ("p, Holm", True),
      ]
      sections.append(
        report.Section(
          f"Tests, {title}",
          tables.table(columns, rows),
          [
            "Mann-Whitney's test of test accuracies, one-sided; Holm's correction is "
            "for both sides and all pairs. Better is who ranks higher; the "
            "difference is that of the means."
          ],
          folded=True,
        )
      )
  columns = [
    ("data set", False),
    ("epochs", True),
    ("cost, share", True),
    ("Kendall's tau with full validation", True),
    ("with test", True),
  ]
  rows = [
    [
      row["dataset"],
      str(row["epochs"]),
      f"{row['cost']:.3f}",
      tables.number(row["tau_valid"]),
      tables.number(row["tau_test"]),
    ]
    for row in summary["fidelities"]
  ]
  sections += [
    report.Section("Lower fidelities", tables.table(columns, rows)),
    report.Section(
      "Costs",
      tables.pairs(
        [
          ("searching, seconds, compilation included", summary.get("search_seconds")),
          ("compiling, seconds", summary.get("compile_seconds")),
          ("programs compiled or fetched", summary.get("num_compiles")),
          *(
            (f"{name}, seconds", value)
            for name, value in summary["strategy_seconds"].items()
          ),
        ]
      ),
    ),
    report.Section(
      "Configuration", tables.pairs(tables.flatten(run.config)), folded=True
    ),
    report.Section("Environment", tables.pairs(summary["environment"].items())),
    report.Section("Run it again", command=summary["command"]),
  ]
  first = summary["protocols"][0]
  headline = said[first["name"], first["judged"][0]]
  return report.write_page(
    run.workdir,
    {
      "experiment": run.experiment,
      "status": f"{summary['table']}, {summary['architectures']:,} architectures, "
      f"{summary['seeds']} seeds, {summary['status']}",
      "headline": f"{first['judged'][0]}, {first['name']} protocol: {headline}",
      "warnings": [],
      "sections": [s for s in sections if s.table or s.notes or s.plots or s.command],
    },
  )
