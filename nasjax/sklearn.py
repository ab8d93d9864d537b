"""The search as scikit-learn estimators: `MLPSearchClassifier`, `MLPSearchRegressor`.

`fit` searches chains of dense layers on a validation slice of the rows and then trains
the best from scratch on all of them. The estimators go into pipelines,
cross-validation and grid searches, and pickle; prediction is NumPy's.
"""

import functools
import math
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from nasjax import search
from nasjax.core import keys
from nasjax.core.types import InputError, Round
from nasjax.data import preprocessing, standalone
from nasjax.data.base import Dataset, Split, TaskName
from nasjax.estimators.trained import trained
from nasjax.networks.tiled import Bounds
from nasjax.spaces.mlp_chain import ACTIVATIONS, MLPChain
from nasjax.strategies.bananas import bananas
from nasjax.strategies.base import Strategy
from nasjax.strategies.bayesian import bayesian
from nasjax.strategies.evolution import evolution
from nasjax.strategies.local_search import local_search
from nasjax.strategies.random_search import random_search
from nasjax.strategies.reinforce import reinforce
from nasjax.training import portable
from nasjax.training.packing import Layout
from nasjax.training.programs import MOST_TILE_BYTES
from nasjax.training.retrain import can_stratify, pooled, retrain

# `(space, P children a round, N evaluations)`: sized for searches of seconds.
STRATEGIES: dict[str, Callable[[MLPChain, int, int], Strategy]] = {
  "random_search": lambda space, p, n: random_search(
    space, population=p, max_evaluations=n
  ),
  "local_search": lambda space, p, n: local_search(space, children=p),
  "evolution": lambda space, p, n: evolution(
    space, population=2 * p, sample=p, children=p
  ),
  "reinforce": lambda space, p, n: reinforce(
    space, population=p, max_evaluations=n, hidden=32, updates=5, predictor=0.0
  ),
  "bayesian": lambda space, p, n: bayesian(
    space, population=p, max_evaluations=n, initial=2 * p, num_mutants=40, num_draws=10
  ),
  "bananas": lambda space, p, n: bananas(
    space, population=p, max_evaluations=n, initial=2 * p, num_mutants=60, steps=20
  ),
}
_MOST_EVALUATIONS = 200  # that a strategy has room for, where only time is limited
# Up to so many rows compiling is most of the time: of more children than this the tiled
# program is compiled once for all, of fewer each has its own.
_FEW_ROWS, _FEW_CHILDREN = 5000, 2


@functools.lru_cache(maxsize=32)
def _strategy(name: str, space: MLPChain, population: int, most: int) -> Strategy:
  """Kept: what a strategy compiles serves the next fit."""
  return STRATEGIES[name](space, population, most)


class _MLPSearch(BaseEstimator):
  """What both estimators share; the parameters are those of `MLPSearchClassifier`."""

  def __init__(
    self,
    *,
    strategy="evolution",
    evaluations=16,
    time_budget_seconds=None,
    population=4,
    epochs=10,
    refit_epochs=100,
    batch_size=32,
    learning_rate=3e-3,
    widths=(8, 16, 32, 64, 128),
    activations=ACTIVATIONS,
    dropout_rate=0.2,
    max_layers=4,
    validation_fraction=0.2,
    random_state=None,
  ):
    self.strategy = strategy
    self.evaluations = evaluations
    self.time_budget_seconds = time_budget_seconds
    self.population = population
    self.epochs = epochs
    self.refit_epochs = refit_epochs
    self.batch_size = batch_size
    self.learning_rate = learning_rate
    self.widths = widths
    self.activations = activations
    self.dropout_rate = dropout_rate
    self.max_layers = max_layers
    self.validation_fraction = validation_fraction
    self.random_state = random_state

  def __sklearn_tags__(self):
    """NaN is a missing value."""
    tags = super().__sklearn_tags__()
    tags.input_tags.allow_nan = True
    return tags

  def save(self, folder: str | os.PathLike) -> None:
    """Writes the model as a run's `best/`: see README, "Take the network home"."""
    check_is_fitted(self, "best_arch_")
    portable.save(
      folder,
      space=self._space(),
      genotype=self._genotype,
      weights=self._weights,
      task=self._target["task"],
      preprocessing={"features": self._features, "target": self._target},
      metrics={"best_score": self.best_score_},
      log=print,
    )

  def _space(self) -> MLPChain:
    return MLPChain(
      widths=tuple(self.widths),
      activations=tuple(self.activations),
      dropout_rate=self.dropout_rate,
      max_layers=self.max_layers,
    )

  def _check_options(self) -> None:
    """Raises InputError, which is a ValueError, naming the parameter."""
    if self.strategy not in STRATEGIES:
      raise InputError(
        f"unknown strategy {self.strategy!r}; there are {', '.join(STRATEGIES)}"
      )
    if self.evaluations is None and self.time_budget_seconds is None:
      raise InputError("give evaluations or time_budget_seconds: what ends the search?")
    for name in ("evaluations", "population", "epochs", "refit_epochs", "batch_size"):
      value = getattr(self, name)
      if not (value is None and name == "evaluations") and value < 1:
        raise InputError(f"{name} must be at least 1, got {value}")
    for name in ("time_budget_seconds", "learning_rate"):
      value = getattr(self, name)
      if value is not None and not value > 0:
        raise InputError(f"{name} must be positive, got {value}")
    if not 0 < self.validation_fraction < 1:
      raise InputError(
        f"validation_fraction must be between 0 and 1, got {self.validation_fraction}"
      )

  def _fit(self, x: np.ndarray, y: np.ndarray, task: TaskName, classes: list[str]):
    """Searches and trains; y `[N]` int32 classes or float64."""
    self._check_options()
    space = self._space()
    seed = int(check_random_state(self.random_state).randint(2**31 - 1))
    dataset = self._dataset(x, y, task, classes, seed)
    layout = self._layout(space, dataset)
    options: dict[str, Any] = dict(
      batch_size=self.batch_size,
      learning_rate=self.learning_rate,
      # One kind of program: what was run before in this process changes nothing.
      share_programs=layout != "auto",
    )
    estimator = trained(
      space,
      dataset,
      epochs=self.epochs,
      final_rate=0.0,
      score="best",
      layout=layout,
      num_devices=1,
      **options,
    )
    search_key, retrain_key = keys.named(jax.random.key(seed), "search", "retrain")
    rounds = self._search(space, estimator, search_key)
    best = search.best(rounds)
    final = retrain(
      retrain_key,
      space,
      dataset,
      best.genotype,
      epochs=self.refit_epochs,
      label_smoothing=0.0,
      layout="exact" if layout == "auto" else layout,
      seed=seed,
      **options,
    )
    if final.weights is None:
      raise InputError(
        f"training {space.describe(best.genotype)} failed: {final.failure}; a lower "
        "learning_rate may help"
      )
    self._genotype = best.genotype
    self._weights = [
      {part: np.asarray(value) for part, value in layer.items()}
      for layer in final.weights
    ]
    self._features = dataset.preprocessing["features"]
    self._target = dataset.preprocessing["target"]
    self.best_arch_ = space.describe(best.genotype)
    self.best_score_ = best.score
    self.leaderboard_ = _leaderboard(space, rounds)
    return self

  def _layout(self, space: MLPChain, dataset: Dataset) -> Layout:
    """How children are compiled: few rows do not need the planner, nor its profile."""
    if len(pooled(dataset).y) > _FEW_ROWS or jax.default_backend() != "cpu":
      return "auto"
    sizes = dataset.num_features, space.max_width, space.length - 1, dataset.num_outputs
    children = min(self.evaluations or _MOST_EVALUATIONS, space.size)
    tiles_fit = Bounds(*sizes).bytes < MOST_TILE_BYTES
    return "tiled" if tiles_fit and children > _FEW_CHILDREN else "exact"

  def _dataset(self, x, y, task: TaskName, classes: list[str], seed: int) -> Dataset:
    """Train and validation rows; no test rows, those are the caller's."""
    valid_rows = max(round(self.validation_fraction * len(y)), len(classes) or 1)
    train, valid = train_test_split(
      np.arange(len(y)),
      test_size=min(valid_rows, len(y) // 2),
      random_state=seed,
      stratify=y if can_stratify(task, y) else None,
    )
    features = preprocessing.fit({"x": x[train]}, {"x": "numeric"})
    if hasattr(self, "feature_names_in_"):
      features[0]["names"] = self.feature_names_in_.tolist()
    target: dict[str, Any] = {"task": task, "classes": classes}
    if task == "regression":
      mean, scale = float(y[train].mean()), float(y[train].std()) or 1.0
      y = ((y - mean) / scale).astype(np.float32)
      target |= {"mean": mean, "scale": scale}
    prepared = preprocessing.apply(features, {"x": x})
    return Dataset(
      name=type(self).__name__,
      task=task,
      train=Split(prepared[train], y[train]),
      valid=Split(prepared[valid], y[valid]),
      test=Split(prepared[:0], y[:0]),
      feature_names=tuple(preprocessing.feature_names(features)),
      class_names=tuple(classes),
      preprocessing={"features": features, "target": target},
    )

  def _search(self, space: MLPChain, estimator, key: jax.Array) -> list[Round]:
    """Rounds until the evaluations are made or the time is over; at least one."""
    most = self.evaluations or _MOST_EVALUATIONS
    population = min(self.population, most)
    strategy = _strategy(self.strategy, space, population, most)
    num_rounds = math.ceil(most / population) if self.evaluations else 2**31 - 1
    start, budget = time.monotonic(), self.time_budget_seconds
    seconds = math.inf if budget is None else budget
    return list(
      search.run(
        strategy,
        estimator,
        key,
        num_rounds=num_rounds,
        stop=lambda: time.monotonic() - start >= seconds,
      )
    )

  def _answers(self, X) -> np.ndarray:
    """Probabilities `[N, K]`, or values `[N]`."""
    check_is_fitted(self, "best_arch_")
    x = validate_data(self, X, reset=False, **_VALIDATION)
    weights = {
      f"layer_{i}/{part}": value
      for i, layer in enumerate(self._weights)
      for part, value in layer.items()
    }
    activations = tuple(
      part.split()[1]
      for part in self.best_arch_.split(" - ")
      if not part.startswith("dropout")
    )
    model = standalone.Model(activations, weights, self._features, self._target)
    return standalone.predict(model, {"x": x})


_VALIDATION: dict[str, Any] = {
  "dtype": (np.float64, np.float32),
  "ensure_all_finite": "allow-nan",
}


def _leaderboard(space: MLPChain, rounds: list[Round]) -> list[dict[str, Any]]:
  """One dict for each child, the best first and failed ones last."""
  evaluation = search.evaluations(rounds)
  genotypes = np.concatenate([each.genotypes for each in rounds])
  scores = np.asarray(evaluation.score, float)
  order = np.argsort(-np.where(np.isfinite(scores), scores, -np.inf), kind="stable")
  return [
    {
      "arch": space.describe(genotypes[i]),
      "score": float(scores[i]),
      "num_params": int(evaluation.info["num_params"][i]),
      "epochs_run": int(evaluation.info["epochs_run"][i]),
      "seconds": float(evaluation.cost[i]),
    }
    for i in order
  ]


class MLPSearchClassifier(ClassifierMixin, _MLPSearch):
  """Searches a multi-layer perceptron for classes of any type.

  Args:
    strategy: out of `STRATEGIES`.
    evaluations: children that are trained, in whole rounds; None for as many as the
      time allows.
    time_budget_seconds: of the search: the round that is on when it is over is the
      last. Training the best comes after it. None for no limit.
    population: children of a round.
    epochs: of a child, at most.
    refit_epochs: of the best, on all rows.
    batch_size: rows of a step.
    learning_rate: of Adam; it falls to zero.
    widths: units that a layer may have, as `activations`, `dropout_rate` and
      `max_layers` (output layer included) of `MLPChain`.
    activations: see `widths`.
    dropout_rate: see `widths`.
    max_layers: see `widths`.
    validation_fraction: of the rows, which children are scored on.
    random_state: of everything random. With a number, two fits are the same.

  Attributes:
    classes_: `[K]` labels.
    best_arch_: the best architecture in words.
    best_score_: its validation accuracy in the search, of its best epoch.
    leaderboard_: one dict for each child, the best first.
    n_features_in_: F.

  NaN is a missing value: it takes the median and is flagged. Numbers are standardised
  inside. Other columns go through an encoder of a pipeline.
  """

  def fit(self, X, y):
    """Searches on rows X `[N, F]` with labels y `[N]`, and trains the best."""
    x, y = validate_data(self, X, y, ensure_min_samples=2, **_VALIDATION)
    check_classification_targets(y)
    self.classes_, encoded = np.unique(y, return_inverse=True)
    if len(self.classes_) < 2:
      raise InputError(f"all rows are of one class, {self.classes_.tolist()[0]!r}")
    names = [str(label) for label in self.classes_.tolist()]
    task: TaskName = "binary" if len(names) == 2 else "multiclass"
    return self._fit(x, encoded.astype(np.int32), task, names)

  def predict_proba(self, X) -> np.ndarray:
    """Probabilities `[N, K]` of the classes, in the order of `classes_`."""
    return self._answers(X)

  def predict(self, X) -> np.ndarray:
    """Labels `[N]`."""
    probabilities = self.predict_proba(X)
    return self.classes_[probabilities.argmax(1)]


class MLPSearchRegressor(RegressorMixin, _MLPSearch):
  """Searches a multi-layer perceptron for a number.

  Parameters and attributes are those of `MLPSearchClassifier`, without `classes_`;
  `best_score_` is R2. The target is standardised inside.
  """

  def fit(self, X, y):
    """Searches on rows X `[N, F]` with numbers y `[N]`, and trains the best."""
    x, y = validate_data(
      self, X, y, y_numeric=True, ensure_min_samples=2, **_VALIDATION
    )
    return self._fit(x, y.astype(np.float64), "regression", [])

  def predict(self, X) -> np.ndarray:
    """Numbers `[N]`."""
    return self._answers(X)
