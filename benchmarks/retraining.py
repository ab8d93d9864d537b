"""What the winner's training is worth: one architecture, retrained in several ways.

  python -m benchmarks.retraining runs/mlpnas_digits runs/mlpnas_digits_seed1 ...

Takes the winners of finished runs, trains each anew with the run's own key and data,
and prints the test figures as a Markdown table: as the experiment does by default, then
with one of its choices undone after another, at last as the survey has it.
"""

import argparse
import dataclasses
import importlib
import json
import pathlib
import sys
from typing import Any

import jax

from experiments import common
from nasjax.core import config as config_lib
from nasjax.core import keys
from nasjax.results.analysis import mean_and_interval
from nasjax.training.retrain import Retrained, retrain

WAYS: dict[str, dict[str, Any]] = {
  "default": {},
  "labels not smoothed": {"label_smoothing": 0.0},
  "stopped early": {"refit": False},
  "the survey's": {"refit": False, "monitor": "loss", "label_smoothing": 0.0},
}


def main() -> int:
  """Prints the table."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
  parser.add_argument("runs", nargs="+", help="folders of finished runs")
  parser.add_argument("--ways", default=",".join(WAYS), help="which, by comma")
  options = parser.parse_args()
  ways = options.ways.split(",")
  if unknown := set(ways) - WAYS.keys():
    parser.error(f"unknown way {min(unknown)!r}; there are {', '.join(WAYS)}")
  found: dict[str, list[Retrained]] = {way: [] for way in ways}
  for folder in options.runs:
    for way in ways:
      found[way].append(_retrain(pathlib.Path(folder), WAYS[way]))
  print("| retraining | mean test | 95 % interval | mean test loss | by run |")
  print("|---|---|---|---|---|")
  for way, results in found.items():
    scores = [result.test_score for result in results]
    mean, _, low, high = mean_and_interval(scores)
    loss = sum(result.test_loss for result in results) / len(results)
    each = ", ".join(f"{score:.4f}" for score in scores)
    print(f"| {way} | {mean:.4f} | {low:.4f} to {high:.4f} | {loss:.3f} | {each} |")
  return 0


def _retrain(folder: pathlib.Path, changes: dict[str, Any]) -> Retrained:
  """The winner of a finished run, trained with the defaults of today and changes."""
  identity = json.loads((folder / "config.json").read_text(encoding="utf-8"))
  summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
  module = importlib.import_module(f"experiments.{identity['experiment']}")
  seed, today = identity["seed"], module.Config()
  # Of the stored config what says which data and which space; the rest is today's.
  parts = ("data", "space")
  stored = {name: identity["config"][name] for name in parts}
  config = config_lib.from_dict(today, config_lib.to_dict(today) | stored)
  space = common.check(config)
  options = dataclasses.asdict(config.retrain) | changes
  key = keys.named(jax.random.key(seed), "search", "control", "retrain")[2]
  genotype = space.parse(summary["best_arch"])
  return retrain(key, space, module.load(config, seed), genotype, seed=seed, **options)


if __name__ == "__main__":
  sys.exit(main())
