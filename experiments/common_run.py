"""The MLPNAS job from data to report: search, retrain, baselines, control, summary."""

import dataclasses
import time
import warnings
from typing import Any

import jax
import jaxlib
import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier, MLPRegressor

import nasjax
from experiments import common
from experiments.common_search import Watch, recorded_search
from nasjax import runtime, search
from nasjax.core import config as config_lib
from nasjax.core import keys, trees
from nasjax.core.types import Round
from nasjax.data.base import Dataset, describe
from nasjax.results import analysis, report
from nasjax.spaces.mlp_chain import MLPChain
from nasjax.strategies.base import Strategy
from nasjax.training import portable
from nasjax.training.kept_children import KeptChildren
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
  "checkpoint_seconds",
)


def run_mlpnas(
  config: common.MLPNASConfig, run: runtime.Run, dataset: Dataset, space: MLPChain
) -> None:
  """Runs the whole job and leaves the run directory that README describes.

  On Ctrl-C what was recorded is kept, with the children of the round that was on; the
  report of it is written, and the KeyboardInterrupt goes on to the caller. An
  unfinished run goes on after its last whole round, with what was kept of the next, and
  ends as if it had not stopped.

  Raises:
    InputError: for a config that cannot run; nothing was touched then.
  """
  if run.team and run.team.number:
    kept = _kept(config, run, dataset)
    if run.overwrite:
      kept.forget()
    common.serve(config, space, dataset, run.team, _identity(config, run), kept)
    kept.clear()  # the job is done, else it would have raised
    return
  with common.workers(config) as ray:
    _run(_Job(config, run, dataset, space, ray))


def _run(job: "_Job") -> None:
  config, run, dataset = job.config, job.run, job.dataset
  run.begin(resumes=True, data=trees.digest(dataset.train, dataset.valid, dataset.test))
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
    job.kept.clear()
    summary["status"] = "finished"
  finally:
    # Also when interrupted or failed: nothing that was measured is lost.
    summary |= run.compile_stats()
    run.write_summary(summary)
    path = report.write(run.workdir)
    run.log(f"report: {path}")
    if summary["status"] != "finished":
      run.log("the same command goes on from the last whole round")
  _print_result(run, summary, analysis.leaderboard(run.read_records(), top=5))


def _identity(config: common.MLPNASConfig, run: runtime.Run) -> str:
  """What all processes of a job have in common."""
  same = dataclasses.replace(config, distributed="")
  parts = (
    run.experiment,
    run.seed,
    run.smoke,
    *(nasjax.__version__, jax.__version__, jaxlib.__version__),
    # A plan is carried out alike where devices are of one kind and as many.
    *(jax.default_backend(), jax.local_device_count()),
  )
  return " ".join(map(str, (config_lib.fingerprint(same), *parts)))


def _kept(
  config: common.MLPNASConfig, run: runtime.Run, dataset: Dataset
) -> KeptChildren:
  """Where this process keeps the children of the round that is on."""
  folder = run.workdir / runtime.CHECKPOINTS / runtime.CHILDREN
  rows = trees.digest(dataset.train, dataset.valid)
  number = run.team.number if run.team else 0
  identity = f"{_identity(config, run)} {rows}"
  return KeptChildren(folder, number, identity, config.keep_seconds)


class _Job:
  """The parts of a job, made before anything is written, and the work."""

  def __init__(self, config, run, dataset, space, ray):
    self.config, self.run, self.dataset, self.space = config, run, dataset, space
    self.watch = Watch(run, dataset)
    self.strategy = common.make_controller(config, space)
    self.control = common.make_control(config, space)
    self.kept = _kept(config, run, dataset)
    self.estimator = common.make_estimator(
      config,
      space,
      dataset,
      ray,
      run.team,
      _identity(config, run),
      self.kept,
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
    rounds, state = self._search(self.strategy, search_key, "search", summary)
    best = search.best(rounds)
    summary |= {"best_arch": space.describe(best.genotype), "best_score": best.score}
    _bound(summary, dataset)
    _scores(summary, "majority", majority_score(dataset), **fits)

    def retrained() -> dict[str, Any]:
      start = time.perf_counter()
      with run.step(f"retraining the best from scratch: {summary['best_arch']}"):
        final = _retrain(config, run, dataset, space, retrain_key, best.genotype)
      child_info = search.evaluations(rounds).info
      found: dict[str, Any] = {
        "test_loss": final.test_loss,
        "num_params": child_info["num_params"][best.evaluations - 1],
        "retrain_seconds": time.perf_counter() - start,
        "retrain_epochs": final.epochs_run,
      }
      _scores(found, "", final.test_score, **fits)
      if final.weights is not None:
        portable.save(
          run.workdir / "best",
          space=space,
          genotype=best.genotype,
          weights=final.weights,
          task=dataset.task,
          preprocessing=dataset.preprocessing,
          metrics={name: found[name] for name in ("test_score", "test_loss")},
          log=run.log,
        )
      return found

    summary |= run.once("retraining", retrained)
    if config.baseline:

      def baseline() -> dict[str, Any]:
        with run.step("fitting scikit-learn's MLP on the same rows"):
          return {"score": sklearn_score(dataset, run.seed)}

      score = run.once("baseline", baseline)["score"]
      _scores(summary, "sklearn", score, **fits)
    if config.control:
      run.log("control: random search at the same budget")
      # It finds compiled what the search has compiled, in whichever process that was.
      planned, found = state.estimator.planned, dict[str, Any]()
      # As many rounds as the search had time for. (One that ended because its children
      # fail has no state after the last.)
      done = max(state.number, rounds[-1].number + 1)
      num_rounds = done if config.strategy.max_seconds else None
      control, _ = self._search(
        self.control, control_key, "control", found, planned, num_rounds
      )
      chosen = search.best(control)

      def control_retrained() -> dict[str, Any]:
        start = time.perf_counter()
        with run.step("retraining random search's best"):
          final = _retrain(config, run, dataset, space, retrain_key, chosen.genotype)
        seconds = time.perf_counter() - start
        return {"score": final.test_score, "seconds": seconds}

      after = run.once("control_retraining", control_retrained)
      _scores(summary, "random_search", after["score"], **fits)
      summary |= {
        "random_search_best_arch": space.describe(chosen.genotype),
        "random_search_best_score": chosen.score,
        "control_seconds": found["search_seconds"] + after["seconds"],
      }

  def _search(
    self, strategy: Strategy, *args
  ) -> tuple[list[Round], search.SearchState]:
    return recorded_search(
      self.config,
      self.run,
      self.space,
      self.estimator,
      self.watch,
      self.kept,
      strategy,
      *args,
    )


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
    ["rank", "architecture", "score", "epochs", "parameters"],
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
