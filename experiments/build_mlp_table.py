"""Trains every MLP chain of one, two and three hidden layers on digits: our own table.

22,764 chains (28 + 784 + 21,952), trained as `mlpnas_digits` trains a child: validation
accuracy after every epoch, test accuracy of the last. The 812 shallow ones are trained
with a second seed too, and on a half and a quarter of the training rows. The package
ships the result, so that strategies can be compared where nothing can be downloaded.

Chains are trained in parts that are kept on disk: a run that was stopped goes on where
it was. A child's randomness is its own, so neither parts nor their order matter.

Command: python run.py --experiment=build_mlp_table
         (then: cp runs/build_mlp_table/mlp_digits.npz nasjax/data/)
"""

import dataclasses
import io
import itertools
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import common_run
from nasjax import runtime
from nasjax.core import config as config_lib
from nasjax.core.config import field
from nasjax.core.types import InputError
from nasjax.data import benchmarks, embedded
from nasjax.data.base import Dataset, Split, describe
from nasjax.networks import mlp
from nasjax.results import records
from nasjax.runtime import Run
from nasjax.spaces.mlp_chain import Dense, MLPChain
from nasjax.training.children import Child
from nasjax.training.losses import get_task
from nasjax.training.packing import LAYOUTS
from nasjax.training.population import device_data, population_trainer
from nasjax.training.step import Hyper

DATASET = "digits"
_SHALLOW = 2


@dataclasses.dataclass(frozen=True)
class Config:
  """Configuration of `build_mlp_table`; defaults are `mlpnas_digits`'s."""

  widths: tuple[int, ...] = field((8, 16, 32, 64, 128, 256, 512), "units of a layer")
  max_layers: int = field(4, "longest chain, output layer included")
  valid_fraction: float = field(0.4, "of the rows that are not test")
  test_fraction: float = field(0.2, "of all rows")
  epochs: int = field(12, "of every chain, each of them a fidelity of the table")
  batch_size: int = field(32, "rows of a step")
  learning_rate: float = field(1e-3, "of Adam")
  final_rate: float = field(0.0, "part of the rate that is left at the last epoch")
  layout: str = field("auto", "how a population is compiled", LAYOUTS)

  def smoke(self) -> "Config":
    """The seconds-long version that the tests run end to end."""
    return dataclasses.replace(self, widths=(8, 16), max_layers=3, epochs=2)


class Part(NamedTuple):
  """What is trained at one go, and kept as one file."""

  name: str
  indices: np.ndarray  # of the space
  seed: int
  rows: int  # of the training split


def space_of(config: Config) -> MLPChain:
  """The chains of the table."""
  return MLPChain(widths=config.widths, dropout_rate=0.0, max_layers=config.max_layers)


def load(config: Config) -> Dataset:
  """The rows: those of `mlpnas_digits` with seed 0, whatever the run's seed."""
  return embedded.load(
    DATASET,
    seed=0,
    valid_fraction=config.valid_fraction,
    test_fraction=config.test_fraction,
  )


def trainer(config: Config, space: MLPChain, dataset: Dataset, rows: int):
  """`(seed, genotypes, on_child) -> children`, on the first `rows` training rows.

  The rows were shuffled when they were split.
  """
  train = Split(dataset.train.x[:rows], dataset.train.y[:rows])
  run = population_trainer(
    space,
    get_task(dataset.task),
    device_data(train, dataset.valid),
    dataset.num_outputs,
    epochs=config.epochs,
    batch_size=config.batch_size,
    layout=config.layout,  # type: ignore[arg-type]
  )
  # The table holds the last epoch, not the best one.
  hyper = Hyper(
    config.learning_rate,
    patience=config.epochs,
    restore_best=False,
    final_rate=config.final_rate,
  )

  def train_all(seed: int, genotypes: np.ndarray, on_child=None) -> list[Child]:
    return run(jax.random.key(seed), genotypes, hyper, on_child=on_child)

  return train_all


def run(config: Config, run: Run) -> None:
  """Runs the experiment."""
  if config.epochs < 1 or config.batch_size < 1 or not config.learning_rate > 0:
    raise InputError("config.epochs, batch_size and learning_rate must be positive")
  space = space_of(config)
  dataset = load(config)
  genotypes = np.asarray(jax.vmap(space.at)(jnp.arange(space.size)))
  parts = _parts(config, space, genotypes, len(dataset.train.y))
  # Parts of another config, from a run that was stopped before this one, do not count.
  folder = run.workdir / "parts" / config_lib.fingerprint(config)
  run.begin()
  folder.mkdir(parents=True, exist_ok=True)
  run.log(describe(dataset))
  total = sum(len(part.indices) for part in parts)
  todo = [part for part in parts if not (folder / f"{part.name}.npz").exists()]
  done = total - sum(len(part.indices) for part in todo)
  if done:
    run.log(f"{done:,} of {total:,} trainings are there from before")
  trainers: dict[int, Any] = {}
  with run.progress(total, "trainings") as progress:
    for part in todo:
      if part.rows not in trainers:
        trainers[part.rows] = trainer(config, space, dataset, part.rows)
      count = itertools.count(done + 1)

      def on_child(i, child, name=part.name, count=count):
        progress.update(next(count), part=name)

      start = time.perf_counter()
      train = trainers[part.rows]
      children = train(part.seed, genotypes[part.indices], on_child)
      _keep(folder / f"{part.name}.npz", part, children, dataset, start)
      done += len(children)
  read = {}
  for part in parts:
    with np.load(folder / f"{part.name}.npz") as file:
      read[part.name] = {key: file[key] for key in file.files}
  _finish(config, run, genotypes, parts, read, dataset)


def _parts(config, space, genotypes, rows) -> list[Part]:
  """Chains whose first two widths agree train together: they share programs."""
  widths = space.token_widths()[genotypes]
  depth = (widths > 0).sum(-1)
  shallow = np.flatnonzero(depth <= _SHALLOW)
  parts = [Part("shallow", shallow, 0, rows)]
  for first, second in itertools.product(config.widths, config.widths):
    same = (depth > _SHALLOW) & (widths[:, 0] == first) & (widths[:, 1] == second)
    if same.any():
      parts.append(Part(f"{first}_{second}", np.flatnonzero(same), 0, rows))
  parts.append(Part("shallow_seed1", shallow, 1, rows))
  parts += [Part(f"shallow_{n}_rows", shallow, 0, n) for n in (rows // 2, rows // 4)]
  return parts


def _keep(path: pathlib.Path, part: Part, children, dataset, start: float) -> None:
  """Writes one part atomically; percentages, as the table has them."""
  failed = [i for i, child in enumerate(children) if child.failure]
  if failed:
    raise InputError(f"{part.name}: {len(failed)} chains failed, first {failed[0]}")
  buffer = io.BytesIO()
  np.savez(
    buffer,
    valid=100 * np.stack([child.curve for child in children]),
    test=np.array([100 * accuracy(child, dataset.test) for child in children]),
    seconds=np.array([child.seconds for child in children]),
    wall_seconds=time.perf_counter() - start,
  )
  records.write_bytes(path, buffer.getvalue())


def accuracy(child: Child, split: Split) -> float:
  """Of a trained child on other rows, by NumPy: no program for each architecture."""
  x = split.x.astype(np.float32)
  activations: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "relu": lambda v: np.maximum(v, 0),
    "tanh": np.tanh,
    "sigmoid": lambda v: 0.5 * (1 + np.tanh(0.5 * v)),
    "elu": lambda v: np.where(v > 0, v, np.expm1(np.minimum(v, 0))),
  }
  assert child.weights is not None
  for layer, weights in zip(child.layers, child.weights):
    assert isinstance(layer, Dense)
    x = activations[layer.activation](x @ weights["kernel"] + weights["bias"])
  last = child.weights[-1]
  logits = x @ np.asarray(last["kernel"]) + np.asarray(last["bias"])
  return float((logits.argmax(-1) == split.y).mean())


def _finish(config, run: Run, genotypes, parts, read, dataset) -> None:
  """The table out of the parts, and what it says."""
  space = space_of(config)
  size, full = space.size, len(dataset.train.y)
  curve = np.full((size, config.epochs), np.nan)
  test, seconds = np.full(size, np.nan), np.full(size, np.nan)
  per_seed = np.full((size, 2), np.nan)
  fewer: dict[int, np.ndarray] = {}
  for part in parts:
    values = read[part.name]
    if part.rows < full:
      fewer.setdefault(part.rows, np.full(size, np.nan))[part.indices] = values[
        "valid"
      ][:, -1]
      continue
    per_seed[part.indices, part.seed] = values["valid"][:, -1]
    if part.seed == 0:
      curve[part.indices], test[part.indices] = values["valid"], values["test"]
      seconds[part.indices] = values["seconds"]
  layers = [space.layers(genotype) for genotype in genotypes]
  sizes = dataset.num_features, dataset.num_outputs
  arrays: dict[str, Any] = {
    "space": json.dumps(space.to_dict()),
    "genotypes": genotypes.astype(np.int8),
    "epochs": config.epochs,
    "one_training": True,
    f"{DATASET}_valid": curve[:, -1].astype(np.float32),
    f"{DATASET}_test": test.astype(np.float32),
    # Three digits: more would be noise that does not compress.
    f"{DATASET}_train_seconds": _rounded(seconds),
    f"{DATASET}_valid_per_seed": per_seed.astype(np.float32),
    f"{DATASET}_params_m": np.array([mlp.num_params(x, *sizes) for x in layers]) / 1e6,
    f"{DATASET}_flops_m": np.array([mlp.flops(x, *sizes) for x in layers]) / 1e6,
  }
  for k in range(1, config.epochs):
    arrays[f"ep{k}_{DATASET}_valid"] = curve[:, k - 1].astype(np.float32)
  for count, values in fewer.items():
    arrays[f"rows{count}_{DATASET}_valid"] = values.astype(np.float32)
  path = run.workdir / "mlp_digits.npz"
  benchmarks.write(path, arrays)
  wall = float(sum(values["wall_seconds"] for values in read.values()))
  order = np.argsort(-curve[:, -1], kind="stable")
  shown = []
  for name, at in (("best", 0), ("median", size // 2), ("worst", size - 1)):
    i = order[at]
    words = space.describe(genotypes[i])
    shown.append([name, words, f"{curve[i, -1]:.2f}", f"{test[i]:.2f}"])
  run.table("the table", ["", "architecture", "validation, %", "test, %"], shown)
  size_mb = path.stat().st_size / 1e6
  run.log(f"{path}: {size:,} chains, {size_mb:.2f} MB, trained in {wall:.0f} s")
  run.write_summary(
    {
      "experiment": run.experiment,
      "status": "finished",
      "rows": size,
      "trainings": sum(len(part.indices) for part in parts),
      "train_seconds": wall,
      "megabytes": size_mb,
      "shown": shown,
      "majority": common_run.majority_score(dataset),
      "environment": runtime.environment(),
      "command": run.command,
    }
  )


def _rounded(values: np.ndarray) -> np.ndarray:
  """Three significant digits."""
  return np.array([float(f"{v:.3g}") for v in values], np.float32)
