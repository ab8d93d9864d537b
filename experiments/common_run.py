"""The MLPNAS job from data to report: search, retrain, baselines, control, summary."""

import dataclasses
import time
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier, MLPRegressor

from experiments import common
from nasjax import runtime, search
from nasjax.core import keys
from nasjax.core.types import Round
from nasjax.data.base import Dataset, describe
from nasjax.estimators.trained import evaluation_of
from nasjax.results import analysis, report
from nasjax.spaces.mlp_chain import MLPChain, describe_layers
from nasjax.strategies.base import Strategy
from nasjax.training import portable
from nasjax.training.losses import get_task
from nasjax.training.packing import Plan
from nasjax.training.population import Child
from nasjax.training.retrain import Retrained, pooled, retrain

_BOUND_DELTA = 0.05

# These are in every summary; null where the job did not come to it, or was told not to.
_PROMISED = (
  "best_arch",
  "best_score",
  "test_accuracy",
  "test_loss",
  "num_params",
  "majority_accuracy",
  "sklearn_test_accuracy",
  "random_search_test_accuracy",
  "holdout_bound",
  "search_seconds",
)


def run_mlpnas(
  config: common.MLPNASConfig, run: runtime.Run, dataset: Dataset, space: MLPChain
) -> None:
  """Runs the whole job and leaves the run directory that README describes.

  On Ctrl-C what was recorded is kept, with the children of the round that was on; the
  report of it is written, and the KeyboardInterrupt goes on to the caller.

  Raises:
    InputError: for a config that cannot run; nothing was touched then.
  """
  job = _Job(config, run, dataset, space)
  run.begin()
  summary: dict[str, Any] = dict.fromkeys(_PROMISED) | {
    "experiment": run.experiment,
    "seed": run.seed,
    "status": "interrupted",
    "planned_evaluations": config.strategy.rounds * config.strategy.population,
    "metric": job.watch.metric,
    "data": _describe_data(dataset),
    "published": [
      dict(zip(("arch", "validation", "test", "note"), row))
      for row in common.PUBLISHED.get(config.published, ())
    ],
    "environment": runtime.environment(),
    "command": run.command,
    "warnings": list(dataset.warnings),
  }
  run.log(describe(dataset))
  for warning in dataset.warnings:
    run.warn(warning)
  try:
    job.work(summary)
    summary["status"] = "finished"
  finally:
    # Also when interrupted or failed: nothing that was measured is lost.
    summary |= run.compile_stats()
    run.write_summary(summary)
    path = report.write(run.workdir)
    run.log(f"report: {path}")
  _print_result(run, summary, analysis.leaderboard(run.read_records(), top=5))


class _Job:
  """The parts of a job, made before anything is written, and the work."""

  def __init__(self, config, run, dataset, space):
    self.config, self.run, self.dataset, self.space = config, run, dataset, space
    self.watch = _Watch(run, dataset)
    self.strategy = common.make_controller(config, space)
    self.control = common.make_control(config, space)
    self.estimator = common.make_estimator(
      config,
      space,
      dataset,
      on_child=self.watch.on_child,
      on_plan=self.watch.on_plan,
      log=run.log,
    )

  def work(self, summary: dict[str, Any]) -> None:
    """Search, retraining, baseline, control; enters what they gave."""
    config, run, dataset, space = self.config, self.run, self.dataset, self.space
    search_key, control_key, retrain_key = keys.named(
      run.key, "search", "control", "retrain"
    )
    fits = dict(metric=summary["metric"], dataset=dataset)
    start = time.perf_counter()
    rounds = self._search(self.strategy, search_key, "records", summary)
    best = search.best(rounds)
    summary["search_seconds"] = time.perf_counter() - start
    summary |= {"best_arch": space.describe(best.genotype), "best_score": best.score}
    _bound(summary, dataset)
    _scores(summary, "majority", majority_score(dataset), **fits)

    start = time.perf_counter()
    with run.step(f"retraining the best from scratch: {summary['best_arch']}"):
      final = _retrain(config, run, dataset, space, retrain_key, best.genotype)
    _scores(summary, "", final.test_score, **fits)
    child_info = search.evaluations(rounds).info
    summary |= {
      "test_loss": final.test_loss,
      "num_params": child_info["num_params"][best.evaluations - 1],
      "retrain_seconds": time.perf_counter() - start,
      "retrain_epochs": final.epochs_run,
    }
    if final.weights is not None:
      portable.save(
        run.workdir / "best",
        space=space,
        genotype=best.genotype,
        weights=final.weights,
        task=dataset.task,
        preprocessing=dataset.preprocessing,
        metrics={name: summary[name] for name in ("test_score", "test_loss")},
        log=run.log,
      )

    if config.baseline:
      with run.step("fitting scikit-learn's MLP on the same rows"):
        score = sklearn_score(dataset, run.seed)
      _scores(summary, "sklearn", score, **fits)
    if config.control:
      run.log("control: random search at the same budget")
      start = time.perf_counter()
      control = self._search(self.control, control_key, "control_records", {})
      chosen = search.best(control)
      with run.step("retraining random search's best"):
        final = _retrain(config, run, dataset, space, retrain_key, chosen.genotype)
      _scores(summary, "random_search", final.test_score, **fits)
      summary |= {
        "random_search_best_arch": space.describe(chosen.genotype),
        "random_search_best_score": chosen.score,
        "control_seconds": time.perf_counter() - start,
      }

  def _search(
    self,
    strategy: Strategy,
    key: jax.Array,
    name: str,
    summary: dict[str, Any],
  ) -> list[Round]:
    """One search with records, metrics and progress; the rounds that were done."""
    run, space, watch = self.run, self.space, self.watch
    num_rounds = self.config.strategy.rounds
    planned = num_rounds * self.config.strategy.population
    summary |= {"num_evaluations": 0, "num_failed": 0}
    rounds: list[Round] = []
    label = "search" if name == "records" else "control"
    with run.progress(planned, label) as progress, run.records(name) as records:

      def record(each: Round) -> None:
        done = summary["num_evaluations"]
        for row in _records(each, space, done, run.seed, watch.metric):
          records.write(row)
          summary["num_failed"] += row["score"] is None
        summary["num_evaluations"] = done + len(each.genotypes)

      watch.begin(label, progress)
      try:
        for each in search.run(strategy, self.estimator, key, num_rounds=num_rounds):
          record(each)
          rounds.append(each)
          watch.unfinished.clear()
          run.metrics.write(summary["num_evaluations"], _metrics(each, label, watch))
      except KeyboardInterrupt:
        if watch.unfinished:
          record(watch.unfinished_round(space, len(rounds)))
        raise
    done = summary["num_evaluations"]
    if done < planned:
      run.warn(
        f"{label}: nothing new to try after {done} of {planned} planned children "
        f"(the space has {space.size:,} architectures)"
      )
    predicted = [r.info["predicted"] for r in rounds if "predicted" in r.info]
    if predicted:
      scores = np.concatenate([r.evaluation.score for r in rounds])
      summary["predictor_tau"] = analysis.kendall_tau(np.concatenate(predicted), scores)
    return rounds


class _Watch:
  """What the one estimator of a job reports, passed on to the search that is on.

  One estimator serves the search and its control: the programs that the first compiled
  are there for the second.
  """

  def __init__(self, run: runtime.Run, dataset: Dataset) -> None:
    self._run = run
    self._sizes = dataset.num_features, dataset.num_outputs
    self.metric = get_task(dataset.task).metric_name
    self.unfinished: list[tuple[Child, float]] = []
    self.plans: list[Plan] = []
    self.best = float("-inf")

  def begin(self, label: str, progress) -> None:
    """A new search starts."""
    self._label, self._progress = label, progress
    self._done = self._round = 0
    self.best = float("-inf")

  def on_plan(self, plan: Plan, rung: int) -> None:
    """A round starts, or what is left of it after a rung."""
    if rung == 0:
      self.plans = []
      self._round += 1
    self.plans.append(plan)
    what = f", rung {rung + 1}" if rung else ""
    self._run.log(f"{self._label}, round {self._round}{what}: {plan.describe()}")

  def on_child(self, index: int, child: Child, score: float) -> None:
    """A child of the round is done."""
    del index
    self.unfinished.append((child, score))
    self._done += 1
    self.best = max(self.best, score) if np.isfinite(score) else self.best
    shown = f"{self.best:.4f}" if np.isfinite(self.best) else "-"
    self._progress.update(self._done, round=self._round, best=shown)

  def unfinished_round(self, space: MLPChain, number: int) -> Round:
    """The children of a round that was interrupted, in the order they were done in."""
    children, scores = zip(*self.unfinished)
    words = [describe_layers(child.layers) for child in children]
    genotypes = np.stack([space.parse(text) for text in words])
    evaluation = evaluation_of(children, scores, *self._sizes, [None] * len(children))
    return Round(number, genotypes, evaluation, {}, 0)


def _records(each: Round, space: MLPChain, first: int, seed: int, metric):
  """One dict a child, as `records.jsonl` holds them."""
  evaluation, info = each.evaluation, each.evaluation.info
  predicted = each.info.get("predicted", [None] * len(each.genotypes))
  for i, genotype in enumerate(each.genotypes):
    score = float(evaluation.score[i])
    yield {
      "index": first + i,
      "round": each.number,
      "genotype": genotype.tolist(),
      "arch": space.describe(genotype),
      "curve": [float(v) for v in evaluation.curve[i] if np.isfinite(v)],
      "score": score if np.isfinite(score) else None,
      "failure": info["failure"][i],
      "epochs_run": info["epochs_run"][i],
      "stopped_at_rung": info["stopped_at_rung"][i],
      "num_params": info["num_params"][i],
      "flops": info["flops"][i],
      "shared_layers": info["shared_layers"][i],
      "seconds": float(evaluation.cost[i]),
      "predicted_score": None if predicted[i] is None else float(predicted[i]),
      "seed": seed,
      "metric": metric,
    }


_PLANNED: dict[str, Callable[[Plan], float]] = {
  "programs": lambda plan: len(plan.groups),
  "framed_children": lambda plan: plan.num_framed,
  "tiled_children": lambda plan: plan.num_tiled,
  "new_programs": lambda plan: plan.num_new,
  "compile_seconds": lambda plan: plan.compile_seconds,
  "run_seconds": lambda plan: plan.run_seconds,
}


def _metrics(each: Round, label: str, watch: _Watch) -> dict[str, float]:
  scores = np.asarray(each.evaluation.score)
  finite = scores[np.isfinite(scores)]
  values = {
    "best_score": watch.best,
    "mean_score": finite.mean() if len(finite) else float("nan"),
    "round_seconds": float(np.sum(each.evaluation.cost)),
    "skipped": each.skipped,
    **{k: v for k, v in each.info.items() if np.ndim(v) == 0},
  }
  if watch.plans:  # several where rungs make stages of a round
    values |= {
      f"plan_{name}": sum(of(plan) for plan in watch.plans)
      for name, of in _PLANNED.items()
    }
  return {f"{label}/{k}": float(v) for k, v in values.items()}


def _retrain(config, run, dataset, space, key, genotype) -> Retrained:
  final = retrain(
    key,
    space,
    dataset,
    genotype,
    seed=run.seed,
    **dataclasses.asdict(config.retrain),
  )
  if final.failure:
    run.warn(f"retraining {space.describe(genotype)} failed: {final.failure}")
  return final


def _scores(summary, name, value, metric, dataset) -> None:
  """Sets `<name>_score` or `test_score`, and the accuracy key when it is one."""
  accuracy = value if metric == "accuracy" else None
  if name:
    summary |= {f"{name}_test_score": value}
    key = "majority_accuracy" if name == "majority" else f"{name}_test_accuracy"
    summary[key] = accuracy
  else:
    summary |= {"test_score": value, "test_accuracy": accuracy}


def _bound(summary, dataset) -> None:
  rows = len(dataset.valid.y)
  summary |= {"valid_rows": rows, "holdout_bound": None}
  if summary["metric"] == "accuracy":  # Hoeffding's bound needs values in [0, 1]
    summary["holdout_bound"] = analysis.hoeffding_bound(
      summary["num_evaluations"], rows, _BOUND_DELTA
    )


def majority_score(dataset: Dataset) -> float:
  """Test accuracy of the training rows' largest class; R2 of their mean."""
  pool = pooled(dataset)
  test = dataset.test.y
  if dataset.task == "regression":
    residual = np.square(test - pool.y.mean()).sum()
    return float(1 - residual / np.square(test - test.mean()).sum())
  return float((test == np.bincount(pool.y).argmax()).mean())


def sklearn_score(dataset: Dataset, seed: int) -> float:
  """scikit-learn's MLP (relu, adam, alpha 0.01) fitted on the same scaled rows.

  It learns from all that ours may learn from, train and validation rows, and is tested
  on the same test rows.
  """
  pool = pooled(dataset)
  model = MLPRegressor if dataset.task == "regression" else MLPClassifier
  options = dict(activation="relu", solver="adam", alpha=0.01, random_state=seed)
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", ConvergenceWarning)  # its default is 200 epochs
    # scikit-learn takes Ctrl-C for the end of its fit and only warns.
    warnings.filterwarnings("error", "Training interrupted by user", UserWarning)
    try:
      fitted = model(**options).fit(pool.x, pool.y)
    except UserWarning:
      raise KeyboardInterrupt from None
  return float(fitted.score(dataset.test.x, dataset.test.y))


def _describe_data(dataset: Dataset) -> dict[str, Any]:
  return {
    "name": dataset.name,
    "task": dataset.task,
    "rows": {
      split: len(getattr(dataset, split).y) for split in ("train", "valid", "test")
    },
    "features": dataset.num_features,
    "classes": list(dataset.class_names),
    "warnings": list(dataset.warnings),
  }


def _print_result(run, summary, leaders) -> None:
  metric = summary["metric"]
  run.table(
    "leaderboard",
    ["rank", "architecture", f"validation {metric}", "epochs", "parameters"],
    [
      [
        str(rank),
        record["arch"],
        "failed" if record["score"] is None else f"{record['score']:.4f}",
        str(record["epochs_run"]),
        f"{record['num_params']:,}",
      ]
      for rank, record in enumerate(leaders, 1)
    ],
  )
  names = {
    "test_score": "best child, retrained",
    "random_search_test_score": "random search's best, retrained",
    "sklearn_test_score": "scikit-learn MLP",
    "majority_test_score": "mean" if metric == "r2" else "majority class",
  }
  run.table(
    f"test {metric}",
    ["", metric],
    [
      [name, f"{summary[k]:.4f}"]
      for k, name in names.items()
      if summary.get(k) is not None
    ],
  )
