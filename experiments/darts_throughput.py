"""How fast the DARTS supernet runs: ours beside the same network in PyTorch.

The supernet of the paper (C = 16, 8 cells) on CIFAR-10's shape. Every way has a process
of its own, and they take turns, so that a noisy machine is noisy for all: the forward
pass, the gradients of both levels, of the weights and of the alphas alone, the mixed
second derivative, and whole steps of the search at first order, exact second order, and
second order by finite difference. Compilation is timed apart, and the products of each
way are counted: their ratio is what the seconds' can be held against.

Command: python run.py --experiment=darts_throughput      (peers: pip install torch)
Result: benchmarks/RESULTS.md.
"""

import dataclasses
import statistics
from typing import Any

from experiments import common_supernet_ways as supernet_ways
from experiments.common_supernet_ways import WAYS, Work
from experiments.common_ways import Worker, share_device
from nasjax import runtime
from nasjax.core.config import field
from nasjax.core.types import InputError
from nasjax.results import report, tables
from nasjax.runtime import Run

# What is divided by what, and how it is called.
_RATIOS = (
  ("torch_forward", "forward", "forward pass, PyTorch's over ours"),
  ("torch_gradient", "gradient", "forward and backward, PyTorch's over ours"),
  ("exact", "order_1", "exact second-order step over a first-order step"),
  ("finite_difference", "order_1", "finite-difference step over a first-order step"),
)


@dataclasses.dataclass(frozen=True)
class Config:
  """Configuration of `darts_throughput`."""

  ways: tuple[str, ...] = field(tuple(WAYS), "who competes", tuple(WAYS))
  side: int = field(32, "pixels of a side of the image")
  channels: int = field(16, "of the first cells")
  layers: int = field(8, "cells")
  batch_size: int = field(64, "rows")
  repeats: int = field(5, "turns of each way, interleaved")

  def smoke(self) -> "Config":
    """The seconds-long version that the tests run end to end."""
    return dataclasses.replace(
      self,
      ways=("mixed", "order_1"),
      side=4,
      channels=2,
      layers=3,
      batch_size=2,
      repeats=1,
    )


def run(config: Config, run: Run) -> None:
  """Runs the experiment."""
  for name in ("side", "channels", "layers", "batch_size", "repeats"):
    if getattr(config, name) < 1:
      raise InputError(f"config.{name} must be positive, got {getattr(config, name)}")
  if not config.ways:
    raise InputError("give at least one of config.ways")
  work = Work(
    (config.side, config.side, 3),
    10,
    config.channels,
    config.layers,
    config.batch_size,
    run.seed,
  )
  work.plan()
  share_device()
  run.begin()
  summary: dict[str, Any] = {
    "experiment": run.experiment,
    "seed": run.seed,
    "status": "interrupted",
    "environment": runtime.environment(),
    "command": run.command,
    "rows": [],
    "ratios": [],
  }
  try:
    summary["rows"] = _measure(config, work, run)
    summary["ratios"] = _ratios(summary["rows"])
    summary["status"] = "finished"
  finally:
    run.write_summary(summary)
    run.log(f"report: {_report(run, summary)}")
  for title, table in _tables(summary):
    if table is not None:
      run.table(title, [n for n, _ in table.columns], [list(row) for row in table.rows])


def _measure(config: Config, work: Work, run: Run) -> list[dict[str, Any]]:
  """Seconds of each way, turn by turn, compilation apart."""
  workers, first = [], {}
  times: dict[str, list[float]] = {}
  try:
    for way in config.ways:
      try:
        worker = Worker(way, work, supernet_ways.find)
        workers.append(worker)
        first[way] = worker.train()
      except RuntimeError as error:
        run.warn(f"left out: {error} (the extra [peers] has torch)")
        workers = [other for other in workers if other.way != way]
        continue
      run.log(f"{way} is ready after {first[way]:.1f} s")
      times[way] = []
    for _ in range(config.repeats):
      for worker in workers:
        times[worker.way].append(worker.train())
    return [
      {
        "way": worker.way,
        "seconds": statistics.median(times[worker.way]),
        "fastest": min(times[worker.way]),
        "slowest": max(times[worker.way]),
        "first_seconds": first[worker.way],
        "flops": supernet_ways.num_flops(worker.way, work),
        "peak_gb": worker.peak_bytes / 1e9,
        "num_compiles": worker.num_compiles,
      }
      for worker in workers
    ]
  finally:
    for worker in workers:
      worker.close()


def _ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
  by_way = {row["way"]: row for row in rows}
  ratios = []
  for above, below, what in _RATIOS:
    if above in by_way and below in by_way:
      over, under = by_way[above], by_way[below]
      ratio: dict[str, Any] = {
        "what": what,
        "ratio": over["seconds"] / under["seconds"],
      }
      if over["flops"] and under["flops"]:
        ratio["of_flops"] = over["flops"] / under["flops"]
      ratios.append(ratio)
  return ratios


def _tables(summary: dict[str, Any]) -> list[tuple[str, tables.Table | None]]:
  columns = [("way", False), ("seconds", True), ("fastest", True), ("slowest", True)]
  columns += [("first run, compilation included", True), ("GFLOP in products", True)]
  columns += [("peak memory, GB", True), ("programs compiled", True)]
  rows = [
    [
      row["way"],
      *(f"{row[name]:.3g}" for name in ("seconds", "fastest", "slowest")),
      f"{row['first_seconds']:.1f}",
      f"{row['flops'] / 1e9:.3g}" if row["flops"] else tables.DASH,
      f"{row['peak_gb']:.2f}",
      str(row["num_compiles"]),
    ]
    for row in summary["rows"]
  ]
  ratios = [
    [
      row["what"],
      f"{row['ratio']:.2f}",
      f"{row['of_flops']:.2f}" if "of_flops" in row else tables.DASH,
    ]
    for row in summary["ratios"]
  ]
  of_what = [("", False), ("of seconds", True), ("of GFLOP in products", True)]
  return [
    ("Supernet", tables.table(columns, rows)),
    ("Ratios", tables.table(of_what, ratios)),
  ]


def _report(run: Run, summary: dict[str, Any]):
  sections = [report.Section(title, table) for title, table in _tables(summary)]
  sections += [
    report.Section("Environment", tables.pairs(summary["environment"].items())),
    report.Section("Run it again", command=summary["command"]),
  ]
  said = "; ".join(f"{row['what']}: {row['ratio']:.2f}" for row in summary["ratios"])
  return report.write_page(
    run.workdir,
    {
      "experiment": run.experiment,
      "status": f"seed {run.seed}, {summary['status']}",
      "headline": said or "Nothing to compare: fewer than two ways were run.",
      "warnings": [],
      "sections": [s for s in sections if s.table or s.command],
    },
  )
