"""One MLPNAS search with records, metrics, progress and checkpoints."""

import itertools
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments import common
from nasjax import runtime, search
from nasjax.core import interrupts
from nasjax.core.types import Evaluation, Round
from nasjax.data.base import Dataset
from nasjax.estimators.base import Estimator
from nasjax.estimators.trained import evaluation_of
from nasjax.results import analysis
from nasjax.spaces.mlp_chain import MLPChain, describe_layers
from nasjax.strategies.base import Strategy
from nasjax.training.children import Child
from nasjax.training.kept_children import KeptChildren
from nasjax.training.losses import get_task
from nasjax.training.packing import Plan
from nasjax.training.planned import Planned

_RECORDS = {"search": "records", "control": "control_records"}


class Watch:
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
    self.progress: Any = None

  def begin(self, label: str, rounds: list[Round]) -> None:
    """A search starts, or goes on after these rounds."""
    self._label, self._round = label, rounds[-1].number + 1 if rounds else 0
    scores = [score for each in rounds for score in each.evaluation.score]
    self._done = len(scores)
    self.best = max(filter(np.isfinite, scores), default=float("-inf"))
    self.unfinished.clear()

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
    self.progress.update(self._done, round=self._round, best=shown)

  def unfinished_round(self, space: MLPChain, number: int) -> Round:
    """The children of a round that was interrupted, in the order they were done in."""
    children, scores = zip(*self.unfinished)
    words = [describe_layers(child.layers) for child in children]
    genotypes = np.stack([space.parse(text) for text in words])
    evaluation = evaluation_of(children, scores, *self._sizes, [None] * len(children))
    return Round(number, genotypes, evaluation, {}, 0)


def recorded_search(
  config: common.MLPNASConfig,
  run: runtime.Run,
  space: MLPChain,
  estimator: Estimator,
  watch: Watch,
  kept: KeptChildren,
  strategy: Strategy,
  key: jax.Array,
  label: str,
  summary: dict[str, Any],
  planned: Planned | None = None,
  num_rounds: int | None = None,
) -> tuple[list[Round], search.SearchState]:
  """One search with records, metrics, progress and checkpoints.

  Args:
    config: of the experiment.
    run: where it is recorded.
    space: of the genotypes.
    estimator: whose reports `watch` gets.
    watch: passes them on.
    kept: children that the estimator finds; their time counts as if they were trained.
    strategy: of the search.
    key: its key.
    label: "search" or "control".
    summary: gets how many were evaluated and failed, and the seconds.
    planned: what an earlier search has compiled.
    num_rounds: as many, however long they take; None for the config's rounds, or those
      that begin within its seconds.

  Returns:
    The rounds that were done, those of an earlier process included, and the state
    after them.
  """
  name = _RECORDS[label]
  max_seconds = config.strategy.max_seconds if num_rounds is None else None
  num_rounds = config.strategy.rounds if num_rounds is None else num_rounds
  total = num_rounds * config.strategy.population
  state = search.begin(strategy, estimator, key)
  if planned is not None:
    state = state._replace(estimator=state.estimator._replace(planned=planned))
  rounds: list[Round] = []
  checkpoints = run.checkpoints(label)
  seconds = 0.0
  if run.resumed:
    saved = checkpoints.restore((state, seconds))
    state, seconds = saved[1] if saved else (state, seconds)
    done = len(state.genotypes)
    rounds = _rounds_of(run.rewind(name, done, label), config.estimator.epochs)
    if done:
      run.log(f"{label}: goes on after round {state.number}, with {done} children")
  start = time.perf_counter() - seconds + kept.seconds

  def elapsed() -> float:
    return time.perf_counter() - start + kept.seconds

  def is_late() -> bool:
    # By what the last checkpoint says: a search that goes on finds the same.
    return max_seconds is not None and seconds >= max_seconds

  summary |= {
    "num_evaluations": len(state.genotypes),
    "num_failed": int((~np.isfinite(state.scores)).sum()),
  }
  watch.begin(label, rounds)
  with (
    checkpoints,
    run.progress(total, label) as progress,
    run.records(name) as records,
  ):
    watch.progress = progress

    def record(each: Round) -> None:
      done = summary["num_evaluations"]
      for row in _records(each, space, done, run.seed, watch.metric):
        records.write(row)
        summary["num_failed"] += row["score"] is None
      summary["num_evaluations"] = done + len(each.genotypes)

    def save(after: search.SearchState) -> None:
      nonlocal state, seconds
      state, seconds = after, elapsed()
      checkpoints.save(after.number, (after, seconds))

    searching = search.run(
      strategy,
      estimator,
      key,
      num_rounds=num_rounds,
      stop=is_late,
      state=state,
      on_state=save,
    )
    failing = _failing(rounds)
    try:
      for each in searching:
        with interrupts.held():
          record(each)
          rounds.append(each)
          watch.unfinished.clear()
          run.metrics.write(summary["num_evaluations"], _metrics(each, label, watch))
        failing = _failing(rounds)
        if 0 < config.max_failures <= failing:
          run.warn(f"{label}: the last {failing} children failed; it stops here")
          break
    except KeyboardInterrupt:
      if watch.unfinished:
        record(watch.unfinished_round(space, len(rounds)))
      raise
  summary["search_seconds"] = elapsed()
  summary["checkpoint_seconds"] = checkpoints.seconds  # those of this process
  done = summary["num_evaluations"]
  if state.number < num_rounds and is_late():
    run.log(
      f"{label}: its {max_seconds:g} seconds were over after round {state.number} of "
      f"{num_rounds}, with {done} children"
    )
  elif done < total and not 0 < config.max_failures <= failing:
    run.warn(
      f"{label}: nothing new to try after {done} of {total} planned children "
      f"(the space has {space.size:,} architectures)"
    )
  predicted = [r.info["predicted"] for r in rounds if "predicted" in r.info]
  if predicted:
    scores = np.concatenate([r.evaluation.score for r in rounds])
    summary["predictor_tau"] = analysis.kendall_tau(np.concatenate(predicted), scores)
  return rounds, state


def _failing(rounds: list[Round]) -> int:
  """How many of the last children failed, one after the other."""
  count = 0
  for each in reversed(rounds):
    for score in reversed(np.asarray(each.evaluation.score)):
      if np.isfinite(score):
        return count
      count += 1
  return count


# What `Evaluation.info` has of a child and a record keeps under the same name.
_KEPT = (
  "failure",
  "epochs_run",
  "stopped_at_rung",
  "bracket",
  "num_params",
  "flops",
  "shared_layers",
)


def _rounds_of(records: list[dict[str, Any]], epochs: int) -> list[Round]:
  """The rounds that records are of; the inverse of `_records`, but for the scalars that
  the strategy reported, which nobody asks for again."""
  rounds = []
  for number, rows in itertools.groupby(records, lambda record: record["round"]):
    children = list(rows)
    curve = np.full((len(children), epochs), np.nan, np.float32)
    for row, child in zip(curve, children):
      row[: len(child["curve"])] = child["curve"]
    scores = [child["score"] for child in children]
    evaluation = Evaluation(
      score=np.array([np.nan if s is None else s for s in scores], np.float32),
      cost=np.array([child["seconds"] for child in children], np.float32),
      curve=curve,
      info={name: [child.get(name) for child in children] for name in _KEPT},
    )
    predicted = [child["predicted_score"] for child in children]
    info = {} if None in predicted else {"predicted": np.array(predicted, np.float32)}
    genotypes = np.array([child["genotype"] for child in children], np.int32)
    rounds.append(Round(number, genotypes, evaluation, info, 0))
  return rounds


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
      **{name: info[name][i] for name in _KEPT},
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


def _metrics(each: Round, label: str, watch: Watch) -> dict[str, float]:
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
