"""Rows with columns of every kind, and a saved model of them that nobody trained."""

import csv

import numpy as np

from nasjax.data import tabular_files
from nasjax.networks import mlp
from nasjax.spaces.mlp_chain import MLPChain
from nasjax.training import portable
from nasjax.training.retrain import test_outputs as outputs_of

SPACE = MLPChain(widths=(8, 16), max_layers=7)
ARCH = "16 relu - dropout 0.2 - 16 elu - 8 tanh - 8 sigmoid"


def raw_rows(rows, seed, unseen=False):
  """Columns of every kind as texts; each has gaps."""
  rng = np.random.default_rng(seed)
  colors = ["red", "blue", "green"] + ["never seen"] * unseen
  day = np.datetime64("2023-01-01") + rng.integers(0, 700, rows)
  columns = {
    "size": np.char.mod("%.6f", rng.normal(40, 9, rows)),
    "offset": np.char.mod("%.1f", 1.7e9 + rng.normal(0, 50, rows)),
    "color": rng.choice(colors, rows),
    "ok": rng.choice(["true", "false"], rows),
    "day": np.array([d.item().strftime("%d/%m/%Y") for d in day]),
  }
  return {name: np.where(rng.random(rows) < 0.1, "", c) for name, c in columns.items()}


def write_csv(path, columns):
  with open(path, "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(columns)
    writer.writerows(zip(*columns.values()))
  return path


def save_model(folder, task, log=print):
  """A model of the task in `folder`, and its exact network."""
  columns = raw_rows(300, seed=0)
  size = np.char.add("0", columns["size"]).astype(float)
  classes = {"multiclass": ["cat", "dog", "cow"], "binary": ["no", "yes"]}
  target = 1000 + size if task == "regression" else classes[task] * 300
  columns["target"] = np.array(target[:300]).astype(str)
  data = tabular_files.load(write_csv(folder / "train.csv", columns), "target")
  assert data.task == task
  genotype = SPACE.parse(ARCH)
  layers = SPACE.layers(genotype)
  weights = mlp.init(7, layers, data.num_features, data.num_outputs)
  for layer in weights:
    layer["bias"] = np.linspace(-1, 1, len(layer["bias"]), dtype=np.float32)
  # Centred, so that every class is predicted for some row.
  weights[-1]["kernel"] *= 8
  weights[-1]["bias"] -= np.asarray(outputs_of(weights, layers, data.train.x)).mean(0)
  portable.save(
    folder / "best",
    space=SPACE,
    genotype=genotype,
    weights=weights,
    task=task,
    preprocessing=data.preprocessing,
    metrics={"test_score": 0.5},
    log=log,
  )
  return data, layers, weights
