"""One experiment over seeds: mean, standard deviation and interval of the test figures.

  python -m benchmarks.seeds --experiment=mlpnas_digits --seeds=0:5

Runs `run.py` once a seed (a finished run is not run again) and prints a Markdown table.
Flags after `--` go to every run.
"""

import argparse
import json
import pathlib
import subprocess
import sys

from nasjax.results.analysis import mean_and_interval

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_ROWS = {
  "test_score": "best child, retrained",
  "random_search_test_score": "random search's best, retrained",
  "sklearn_test_score": "scikit-learn MLP",
  "majority_test_score": "majority class",
}


def main() -> int:
  """Runs what is missing and prints the table; the status of the first failed run."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
  parser.add_argument("--experiment", required=True)
  parser.add_argument("--seeds", default="0:5", help="first:last+1")
  parser.add_argument("--workdir", default="runs/seeds", help="one folder a seed in it")
  parser.add_argument("flags", nargs="*", help="for every run, after --")
  options = parser.parse_args()
  first, last = map(int, options.seeds.split(":"))
  summaries = []
  for seed in range(first, last):
    folder = pathlib.Path(options.workdir) / f"{options.experiment}_{seed}"
    command = [sys.executable, str(_ROOT / "run.py")]
    command += [f"--experiment={options.experiment}", f"--seed={seed}"]
    command += [f"--workdir={folder}", *options.flags]
    status = subprocess.run(command, check=False).returncode
    if status:
      return status
    summaries.append(json.loads((folder / "summary.json").read_text(encoding="utf-8")))
  print(table(options.experiment, range(first, last), summaries))
  return 0


def table(experiment: str, seeds: range, summaries: list[dict]) -> str:
  """The Markdown table of finished runs."""
  lines = [
    f"{experiment}, test {summaries[0]['metric']}, seeds {seeds[0]} to {seeds[-1]}:",
    "",
    "| | mean | std | 95 % interval | by seed |",
    "|---|---|---|---|---|",
  ]
  for key, name in _ROWS.items():
    values = [s[key] for s in summaries if s.get(key) is not None]
    if len(values) < len(summaries):
      continue
    mean, std, low, high = mean_and_interval(values)
    each = ", ".join(f"{value:.4f}" for value in values)
    lines.append(
      f"| {name} | {mean:.4f} | {std:.4f} | {low:.4f} to {high:.4f} | {each} |"
    )
  seconds = [s["search_seconds"] for s in summaries]
  lines += ["", f"Search: {min(seconds):.0f} to {max(seconds):.0f} s a seed."]
  lines += [f"- seed {s['seed']}: {s['best_arch']}" for s in summaries]
  return "\n".join(lines)


if __name__ == "__main__":
  sys.exit(main())
