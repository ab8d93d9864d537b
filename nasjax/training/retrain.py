"""Retraining: the chosen architecture from scratch, then the one look at the test rows.

The survey trains its winner for 50 epochs in batches of 64 with patience 6, stopping on
a slice that the search has scored children on. Here the train and validation rows are
pooled. By default (`refit`) the network learns from all of them: what is held out only
to stop would be lost to it. It learns for all epochs at a rate that falls linearly to
zero, which ends without the noise of the last steps and needs no stopping: fewer
epochs, such as twice as many as early stopping found, were worse on digits and wine.
Without `refit`, or should that training diverge, a slice of the pool that is drawn from
the seed decides when to stop. Labels are smoothed: a network that has its training rows
right would go on growing its outputs for all those epochs.
"""

import math
from typing import NamedTuple

import jax
import numpy as np
from sklearn.model_selection import train_test_split

from nasjax.data.base import Dataset, Split
from nasjax.networks import mlp
from nasjax.spaces.mlp_chain import MLPChain
from nasjax.training.children import Child
from nasjax.training.losses import get_task
from nasjax.training.packing import Layout
from nasjax.training.population import device_data, population_trainer
from nasjax.training.step import Hyper, judge_alone, predict


class Retrained(NamedTuple):
  """A network worth keeping.

  Attributes:
    weights: exact weights, None when training failed.
    test_score: the task's metric on the test split; NaN when training failed or there
      are no test rows.
    test_loss: mean loss there.
    epochs_run: how many epochs the kept network learned.
    seconds: run time, compilation apart.
    failure: why it failed, or None.
  """

  weights: mlp.Weights | None
  test_score: float
  test_loss: float
  epochs_run: int
  seconds: float
  failure: str | None


def pooled(dataset: Dataset) -> Split:
  """The train and validation rows together: all that may be learned from."""
  return Split(
    np.concatenate([dataset.train.x, dataset.valid.x]),
    np.concatenate([dataset.train.y, dataset.valid.y]),
  )


def can_stratify(task: str, y: np.ndarray) -> bool:
  """Whether targets are classes with two rows each, one for either side of a split."""
  return task != "regression" and bool(np.unique(y, return_counts=True)[1].min() > 1)


def retrain(
  key: jax.Array,
  space: MLPChain,
  dataset: Dataset,
  genotype: np.ndarray,
  *,
  epochs: int = 50,
  batch_size: int = 64,
  learning_rate: float = 1e-3,
  patience: int = 6,
  stop_fraction: float = 0.1,
  refit: bool = True,
  monitor: str = "metric",
  label_smoothing: float = 0.1,
  layout: Layout = "exact",
  share_programs: bool = False,
  seed: int = 0,
) -> Retrained:
  """Trains one architecture from fresh weights and tests it once.

  Args:
    key: typed key.
    space: the space of the genotype.
    dataset: all three splits; the test split may be empty.
    genotype: `[D]` int32.
    epochs: at most.
    batch_size: rows of a step.
    learning_rate: Adam's.
    patience: without `refit`, epochs without a better one on the stopping slice before
      the end.
    stop_fraction: part of the pooled rows that is the stopping slice.
    monitor: what the stopping slice watches: "metric" (highest) or "loss" (lowest,
      the survey's).
    refit: learn from all pooled rows for all epochs at a falling rate, instead of
      stopping early.
    label_smoothing: see `losses.Task.train_loss`; 0 is the survey's.
    layout: of the one child, see `training.packing`.
    share_programs: see `training.population`.
    seed: draws that slice (stratified, where every class has two rows).

  Returns:
    A `Retrained`.
  """
  pool = pooled(dataset)
  task = get_task(dataset.task, label_smoothing)
  few = dataset.num_classes or 1  # at least so many rows on either side
  stop = np.clip(math.ceil(stop_fraction * len(pool.y)), few, len(pool.y) - few)
  fit_rows, stop_rows = train_test_split(
    np.arange(len(pool.y)),
    test_size=int(stop),
    random_state=seed,
    stratify=pool.y if can_stratify(dataset.task, pool.y) else None,
  )

  def fit(rows: np.ndarray, hyper: Hyper) -> Child:
    train = population_trainer(
      space,
      task,
      device_data((pool.x[rows], pool.y[rows]), (pool.x[stop_rows], pool.y[stop_rows])),
      dataset.num_outputs,
      epochs=epochs,
      batch_size=batch_size,
      layout=layout,
      share_programs=share_programs,
    )
    return train(key, np.asarray(genotype)[None], hyper)[0]

  child, seconds = None, 0.0
  if refit:
    child = fit(
      np.arange(len(pool.y)),
      Hyper(learning_rate, epochs, restore_best=False, final_rate=0.0),
    )
    seconds = child.seconds
  if child is None or child.failure:
    child = fit(
      fit_rows, Hyper(learning_rate, patience, monitor_metric=monitor == "metric")
    )
    seconds += child.seconds
  score = loss = float("nan")
  if child.weights is not None and len(dataset.test.y):
    outputs = test_outputs(child.weights, child.layers, dataset.test.x)
    tested = judge_alone(task, np.zeros(1, np.float32), outputs, dataset.test.y)
    score, loss = float(tested.metric), float(tested.valid_loss)
  return Retrained(
    weights=child.weights,
    test_score=score,
    test_loss=loss,
    epochs_run=child.epochs_run,
    seconds=seconds,
    failure=child.failure,
  )


def test_outputs(weights: mlp.Weights, layers, x: np.ndarray) -> jax.Array:
  """Outputs `[N, C]` of an exact network on rows `[N, F]`."""
  return jax.jit(lambda w, x: predict(lambda part: mlp.apply(w, layers, part), x))(
    weights, x
  )
