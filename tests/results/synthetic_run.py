"""A run directory as a search of 40 children leaves it, made without any training."""

import json

import numpy as np

from nasjax.results import records

SCRIPT = "<script>alert(1)</script>"
LAYERS = ("16 relu", "64 tanh", "256 elu", "128 sigmoid", "dropout 0.2")


def make_records(seed, improving, metric="accuracy", rounds=5, population=8):
  """Children whose curves rise to a ceiling, higher in later rounds if `improving`."""
  rng = np.random.default_rng(seed)
  made = []
  for index in range(rounds * population):
    layers = rng.choice(LAYERS, rng.integers(1, 6))
    ceiling = 0.7 + 0.2 * rng.random() + 0.018 * improving * (index // population)
    epochs = np.arange(1, 11)
    curve = ceiling * (1 - np.exp(-epochs / 2)) + rng.normal(0, 0.005, 10)
    failed = index in (3, 17)
    made.append(
      {
        "index": index,
        "round": index // population,
        "genotype": rng.integers(0, 5, 4).tolist(),
        "arch": " - ".join(layers),
        "curve": [] if failed else curve.tolist(),
        "score": None if failed else float(curve[-3:].mean()),
        "failure": "the loss is not finite" if failed else None,
        "epochs_run": 0 if failed else 10,
        "num_params": int(rng.integers(500, 200_000)),
        "flops": int(rng.integers(1_000, 400_000)),
        "seconds": float(rng.random()),
        "predicted_score": float(ceiling + rng.normal(0, 0.05)) if improving else None,
        "seed": 0,
        "metric": metric,
      }
    )
  return made


def make_summary(**changes):
  """What a finished run says of itself; a value of None leaves the key out."""
  values = {
    "experiment": "mlpnas_wine",
    "seed": 0,
    "status": "finished",
    "num_evaluations": 40,
    "planned_evaluations": 40,
    "num_failed": 2,
    "best_arch": "256 elu - 64 tanh",
    "best_score": 0.91,
    "metric": "accuracy",
    "test_accuracy": 0.9,
    "test_score": 0.9,
    "test_loss": 0.31,
    "num_params": 20_000,
    "majority_accuracy": 0.4,
    "majority_score": 0.4,
    "sklearn_test_accuracy": 0.95,
    "sklearn_test_score": 0.95,
    "random_search_test_accuracy": 0.88,
    "random_search_test_score": 0.88,
    "random_search_best_arch": "16 relu",
    "random_search_best_score": 0.86,
    "holdout_bound": 0.11,
    "valid_rows": 288,
    "search_seconds": 122.4,
    "control_seconds": 98.0,
    "retrain_seconds": 4.5,
    "compile_seconds": 30.1,
    "num_compiles": 12,
    "predictor_tau": 0.4,
    "data": {
      "name": "wine",
      "task": "multiclass",
      "rows": {"train": 1149, "valid": 288, "test": 360},
      "features": 11,
      "classes": ["good", SCRIPT, "a|b"],
      "warnings": [f"column {SCRIPT} is constant"],
    },
    "published": [
      {"arch": "512 sigmoid", "validation": 0.77, "test": 0.84, "note": ""},
      {"arch": "scikit-learn MLP", "validation": None, "test": 0.92, "note": "table 3"},
    ],
    "environment": {"jax": "0.10.2", "devices": "1 x cpu"},
    "command": "python run.py --experiment=mlpnas_wine",
    "warnings": ["only 40 children"],
  } | changes
  return {key: value for key, value in values.items() if value is not None}


def make_run(folder, summary=None, search=None, control=None, config=True):
  """Writes the run's files; what is None or False is not there."""
  folder.mkdir(exist_ok=True)
  if config:
    nested = {
      "strategy": {"rounds": 5, "population": 8, "learning_rate": 0.00123456},
      "data": {"columns": ["a", SCRIPT], "path": None},
    }
    identity = {"experiment": "mlpnas_wine", "seed": 0, "smoke": False}
    records.write_json(folder / "config.json", identity | {"config": nested})
  if summary is not None:
    records.write_json(folder / "summary.json", summary)
  for name, part in (("records", search), ("control_records", control)):
    if part is not None:
      lines = "".join(json.dumps(record) + "\n" for record in part)
      (folder / f"{name}.jsonl").write_text(lines)
  return folder
