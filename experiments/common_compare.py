"""Strategies compared on a table: whole searches as compiled programs, over many seeds.

A protocol says on which data set is searched, at which fidelity and with what budget,
and of which data sets the winner's figures are then read. Every strategy gets the same
budget and seeds of its own.
"""

import dataclasses
import io
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import common_compare_report
from nasjax import runtime, search
from nasjax.core import keys
from nasjax.core.config import field
from nasjax.core.types import InputError
from nasjax.data.benchmarks import Benchmark
from nasjax.estimators.tabular import rows_of, space_of, tabular
from nasjax.results import analysis, comparison, records
from nasjax.runtime import Run
from nasjax.spaces.base import Enumerable
from nasjax.strategies.bananas import bananas
from nasjax.strategies.base import Strategy
from nasjax.strategies.bayesian import bayesian
from nasjax.strategies.evolution import evolution
from nasjax.strategies.local_search import local_search
from nasjax.strategies.random_search import random_search
from nasjax.strategies.reinforce import reinforce

_GRID = 60  # points of the anytime curves


def _reinforce_independent(space: Enumerable, n: int) -> Strategy:
  """Dong and Yang's: one child an update, the plain score, nothing but its policy."""
  return reinforce(
    space,
    policy="independent",
    population=1,
    max_evaluations=n,
    learning_rate=0.01,
    learning_rate_decay=0.0,
    clip_norm=math.inf,
    updates=1,
    utility="score",
    predictor=0.0,
    distinct=False,
  )


# Papers' values, but for what a table and its budget call for: evolution's P=10, S=3
# are NATS-Bench's, and the LSTM has 64 units and no predictor.
STRATEGIES: dict[str, Callable[[Enumerable, int], Strategy]] = {
  "random_search": lambda space, n: random_search(
    space, population=1, max_evaluations=n, distinct=False
  ),
  "local_search": lambda space, n: local_search(space),
  "local_search_steepest": lambda space, n: local_search(space, rule="steepest"),
  "evolution": lambda space, n: evolution(space, population=10, sample=3),
  "reinforce_independent": _reinforce_independent,
  "reinforce_lstm": lambda space, n: reinforce(
    space, max_evaluations=n, hidden=64, predictor=0.0
  ),
  "bayesian": lambda space, n: bayesian(space, max_evaluations=n),
  "bananas": lambda space, n: bananas(space, max_evaluations=n),
}
CONTROL = "random_search"


@dataclasses.dataclass(frozen=True)
class CompareConfig:
  """Configuration that comparisons share."""

  strategies: tuple[str, ...] = field(
    tuple(STRATEGIES), "who competes; random search always does", tuple(STRATEGIES)
  )
  seeds: int = field(500, "searches of each strategy")
  budget_evaluations: int | None = field(None, "of each search; none for no limit")
  budget_seconds: float | None = field(
    None, "of training that the table says each search costs; none for no limit"
  )
  repeats: str = field(
    "free", "what a child that was tried before costs", ("free", "paid")
  )


class Protocol(NamedTuple):
  """One way to search and to judge.

  Attributes:
    name: for the report.
    searched: data set whose validation accuracy is searched on.
    epochs: fidelity of the search; None for the full one.
    seconds: budget; None for none.
    judged: data sets whose full figures of the winner are read.
  """

  name: str
  searched: str
  epochs: int | None
  seconds: float | None
  judged: tuple[str, ...]


# Mean and standard deviation of validation and test accuracy in percent, over so many
# runs, by (data set, strategy).
_PUBLISHED_SEEDS = 500
Published = Mapping[tuple[str, str], tuple[float, float, float, float]]


def check(config: CompareConfig) -> tuple[str, ...]:
  """The strategies that run, random search first.

  Raises:
    InputError: naming the flag.
  """
  if config.seeds < 2:
    raise InputError(f"--config.seeds must be at least 2, got {config.seeds}")
  if config.budget_evaluations is not None and config.budget_evaluations < 1:
    raise InputError(
      f"--config.budget_evaluations must be positive, got {config.budget_evaluations}"
    )
  if config.budget_seconds is not None and not config.budget_seconds > 0:
    raise InputError(
      f"--config.budget_seconds must be positive, got {config.budget_seconds}"
    )
  if config.budget_evaluations is None and config.budget_seconds is None:
    raise InputError("give --config.budget_evaluations or --config.budget_seconds")
  return tuple(dict.fromkeys((CONTROL, *config.strategies)))


def compare(
  config: CompareConfig,
  run: Run,
  benchmark: Benchmark,
  protocols: list[Protocol],
  *,
  published: Published | None = None,
) -> None:
  """Runs every strategy under every protocol; leaves summary, winners and report.

  Raises:
    InputError: a table that is not whole, or a config that cannot run; nothing was
      touched then.
  """
  names = check(config)
  space = space_of(benchmark)
  rows = rows_of(space, benchmark)
  for protocol in protocols:
    for dataset in (protocol.searched, *protocol.judged):
      benchmark.on(dataset)
  estimators = [
    tabular(space, benchmark, p.searched, epochs=p.epochs) for p in protocols
  ]
  run.begin()
  summary: dict[str, Any] = {
    "experiment": run.experiment,
    "seed": run.seed,
    "status": "interrupted",
    "table": benchmark.name,
    "architectures": space.size,
    "seeds": config.seeds,
    "protocols": [protocol._asdict() for protocol in protocols],
    "fidelities": _fidelities(benchmark),
    "optimum": {d: _optimum(benchmark, d) for d in benchmark.measured},
    "results": [],
    "pairs": [],
    "environment": runtime.environment(),
    "command": run.command,
  }
  found: dict[tuple[int, str], search.Trajectories] = {}
  start = time.perf_counter()
  try:
    with run.progress(len(names) * len(protocols), "strategies") as progress:
      for name in names:
        tick = time.perf_counter()
        for i, done in enumerate(
          _searches(name, config, run, space, benchmark, protocols, estimators)
        ):
          found[i, name] = done
          progress.update(len(found), strategy=name, on=protocols[i].searched)
        run.log(f"{name}: {time.perf_counter() - tick:.1f} s")
    summary["search_seconds"] = time.perf_counter() - start
    curves = {}
    winners = {}
    for i, protocol in enumerate(protocols):
      judged: dict[str, dict[str, np.ndarray]] = {d: {} for d in protocol.judged}
      for name in names:
        done = found[i, name]
        winner = rows[_numbers(space, done.incumbents()[0])]
        winners[f"{protocol.name}/{name}"] = winner
        for dataset in protocol.judged:
          row, test = _result(
            benchmark, protocol, dataset, name, winner, done, published or {}
          )
          summary["results"].append(row)
          judged[dataset][name] = test
      for dataset, values in judged.items():
        if len(values) > 1:
          summary["pairs"] += [
            {"protocol": protocol.name, "dataset": dataset, **pair._asdict()}
            for pair in comparison.pairwise(values)
          ]
      curves[protocol.name] = {
        name: _anytime(found[i, name], benchmark, protocol, space, rows, config)
        for name in names
      }
    _keep(run, winners)
    summary["status"] = "finished"
  finally:
    summary |= run.compile_stats()
    run.write_summary(summary)
  run.log(f"report: {common_compare_report.write(run, summary, curves)}")
  for title, table in common_compare_report.tables_of(summary):
    run.table(title, [name for name, _ in table.columns], [list(r) for r in table.rows])


def _searches(name, config, run, space, benchmark, protocols, estimators):
  """`Trajectories` of one strategy under each protocol; one compilation for all.

  Protocols that search alike, and only read other figures, share their searches.
  """
  compiled: dict[Any, Any] = {}
  made: dict[Any, search.Trajectories] = {}
  for protocol, estimator in zip(protocols, estimators):
    alike = protocol.searched, protocol.epochs, protocol.seconds
    if alike in made:
      yield made[alike]
      continue
    measured = benchmark.on(protocol.searched)
    level = -1 if protocol.epochs is None else 0
    if protocol.epochs is not None:
      level = int(np.searchsorted(measured.epochs, protocol.epochs))
    capacity = config.budget_evaluations
    if protocol.seconds is not None:
      # Half as many again as children of mean cost fit; doubled where it is too few.
      fit = math.ceil(1.3 * protocol.seconds / float(measured.seconds[level].mean()))
      fit = math.ceil(max(fit, 20) / 10) * 10
      capacity = min(fit, config.budget_evaluations or fit)
    state = estimator.init(jax.random.key(0))
    search_key = keys.named(run.key, f"{name} on {protocol.searched}")[0]
    while True:
      kind = (capacity, level, len(measured.epochs))
      if kind not in compiled:
        compiled[kind] = search.compile_search(
          STRATEGIES[name](space, capacity),
          estimator,
          config.seeds,
          max_evaluations=capacity,
          repeats=config.repeats,
        )
      seed_keys = jax.random.split(jax.random.clone(search_key), config.seeds)
      done = compiled[kind](seed_keys, protocol.seconds, state)
      full = ~done.ended & (done.num_evaluations == capacity)
      limited = config.budget_evaluations is not None and (
        capacity >= config.budget_evaluations
      )
      if protocol.seconds is None or limited or not full.any():
        break
      capacity *= 2
    made[alike] = done
    yield done


def _result(benchmark, protocol, dataset, name, winner, done, published):
  """A row of the results, and test accuracies `[S]`."""
  measured = benchmark.on(dataset)
  optimum = _optimum(benchmark, dataset)
  valid, test = measured.valid[-1][winner], measured.test[winner]
  row: dict[str, Any] = {
    "protocol": protocol.name,
    "searched": protocol.searched,
    "dataset": dataset,
    "strategy": name,
    "valid": comparison.summary(valid)._asdict(),
    "test": comparison.summary(test)._asdict(),
    "valid_regret": comparison.summary(
      comparison.regret(valid, optimum["valid"])
    )._asdict(),
    "test_regret": comparison.summary(
      comparison.regret(test, optimum["test"])
    )._asdict(),
    "evaluations": float(done.num_evaluations.mean()),
    "seconds": float(np.where(done.counted(), done.cost, 0).sum(-1).mean()),
    "ended_early": int((~done.ended).sum()) if protocol.seconds else 0,
  }
  if (dataset, name) in published and protocol.name == "published":
    mean_valid, std_valid, mean_test, std_test = published[dataset, name]
    row["published"] = {
      "valid": mean_valid,
      "valid_std": std_valid,
      "test": mean_test,
      "test_std": std_test,
    }
    for split, mean, std in (
      ("valid", mean_valid, std_valid),
      ("test", mean_test, std_test),
    ):
      ours = row[split]
      error = math.hypot(100 * ours["sem"], std / math.sqrt(_PUBLISHED_SEEDS))
      row["published"][f"{split}_errors"] = (100 * ours["mean"] - mean) / error
  return row, test


def _optimum(benchmark: Benchmark, dataset: str) -> dict[str, float]:
  """What the table holds, no more: its best validation and its best test accuracy."""
  measured = benchmark.on(dataset)
  return {
    "valid": float(measured.valid[-1].max()),
    "test": float(measured.test.max()),
  }


def _fidelities(benchmark: Benchmark) -> list[dict[str, Any]]:
  """Kendall's tau of each lower fidelity with the full one and with the test."""
  rows = []
  for dataset, measured in benchmark.measured.items():
    for level, epochs in enumerate(measured.epochs[:-1]):
      rows.append(
        {
          "dataset": dataset,
          "epochs": int(epochs),
          "cost": float((measured.seconds[level] / measured.seconds[-1]).mean()),
          "tau_valid": analysis.kendall_tau(measured.valid[level], measured.valid[-1]),
          "tau_test": analysis.kendall_tau(measured.valid[level], measured.test),
        }
      )
  return rows


def _anytime(done, benchmark, protocol, space, rows, config) -> dict[str, np.ndarray]:
  """The incumbent's test regret by budget: grid, mean and interval `[G]`."""
  measured = benchmark.on(protocol.searched)
  usable = done.counted() & np.isfinite(done.score)
  score = np.where(usable, done.score, -np.inf)
  best = np.maximum.accumulate(score, axis=1)
  order = np.arange(score.shape[1])
  first = np.concatenate([np.full((len(best), 1), -np.inf), best[:, :-1]], axis=1)
  held = np.maximum.accumulate(np.where(best > first, order, 0), axis=1)
  genotypes = np.take_along_axis(done.genotypes, held[..., None], axis=1)
  number = _numbers(space, genotypes)
  optimum = _optimum(benchmark, protocol.searched)["test"]
  regret = np.where(
    np.isfinite(best), optimum - measured.test[rows[np.maximum(number, 0)]], np.nan
  )
  spent = np.where(done.counted(), np.cumsum(done.cost, axis=1), np.nan)
  end = protocol.seconds
  if end is None:
    spent = np.where(done.counted(), order + 1.0, np.nan)
    end = float(config.budget_evaluations)
  grid = np.geomspace(end / _GRID, end, _GRID)
  band = comparison.band(comparison.anytime(regret, spent, grid))
  return {"grid": grid, "mean": band.mean, "low": band.low, "high": band.high}


def _numbers(space: Enumerable, genotypes: np.ndarray) -> np.ndarray:
  """The space's numbers `[...]` of genotypes `[..., D]`."""
  flat = genotypes.reshape(-1, space.length)
  return np.asarray(jax.jit(jax.vmap(space.index))(flat)).reshape(genotypes.shape[:-1])


def _keep(run: Run, winners: Mapping[str, Any]) -> None:
  """`winners.npz`: the table's row of each seed's winner, by protocol and strategy."""
  buffer = io.BytesIO()
  arrays: dict[str, Any] = {name: np.asarray(rows) for name, rows in winners.items()}
  np.savez_compressed(buffer, **arrays)
  records.write_bytes(run.workdir / "winners.npz", buffer.getvalue())
