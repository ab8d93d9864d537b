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
from nasjax.estimators.base import Estimator
from nasjax.estimators.successive_halving import (
  brackets,
  hyperband,
  successive_halving,
)
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


def _reinforce_independent(
  space: Enumerable, n: int, rungs: tuple[int, ...], config: "CompareConfig"
) -> Strategy:
  """Dong and Yang's: one child an update, the plain score, nothing but its policy."""
  del rungs
  return reinforce(
    space,
    policy="independent",
    population=1,
    max_evaluations=n,
    learning_rate=config.policy_learning_rate,
    learning_rate_decay=0.0,
    clip_norm=math.inf,
    updates=1,
    corrected=True,
    utility="score",
    predictor=0.0,
    distinct=False,
  )


class Competitor(NamedTuple):
  """A strategy, and the wrapper of the estimator that it is used with.

  Attributes:
    strategy: `(space, max_evaluations, rungs, config) -> Strategy`.
    wrapper: out of `estimators.successive_halving`; None to measure at the protocol's
      fidelity.
  """

  strategy: Callable[[Enumerable, int, tuple[int, ...], "CompareConfig"], Strategy]
  wrapper: Callable[..., Estimator] | None = None


_ETA = 3  # of the halving rungs, Hyperband's own

# Papers' values, but for what a table and its budget call for. Evolution's P and S
# are NATS-Bench's; rounds of halving start with as many children as leave one at the
# last rung. So that ten strategies take minutes, the LSTM has 32 units, five updates a
# round and no predictor, and surrogates judge fewer candidates than by default.
STRATEGIES: dict[str, Competitor] = {
  "random_search": Competitor(
    lambda space, n, rungs, config: random_search(
      space, population=1, max_evaluations=n, distinct=False
    )
  ),
  "local_search": Competitor(lambda space, n, rungs, config: local_search(space)),
  "local_search_steepest": Competitor(
    lambda space, n, rungs, config: local_search(space, rule="steepest")
  ),
  "evolution": Competitor(
    lambda space, n, rungs, config: evolution(space, population=10, sample=3)
  ),
  "reinforce_independent": Competitor(_reinforce_independent),
  "reinforce_lstm": Competitor(
    lambda space, n, rungs, config: reinforce(
      space, max_evaluations=n, hidden=32, updates=5, predictor=0.0
    )
  ),
  "bayesian": Competitor(
    lambda space, n, rungs, config: bayesian(
      space, max_evaluations=n, num_mutants=40, num_draws=10
    )
  ),
  "bananas": Competitor(
    lambda space, n, rungs, config: bananas(
      space, max_evaluations=n, num_mutants=60, steps=20
    )
  ),
  "successive_halving": Competitor(
    lambda space, n, rungs, config: random_search(
      space, population=_ETA ** (len(rungs) - 1), max_evaluations=n
    ),
    successive_halving,
  ),
  "hyperband": Competitor(
    lambda space, n, rungs, config: random_search(
      space, population=sum(brackets(len(rungs), _ETA)), max_evaluations=n
    ),
    hyperband,
  ),
}
CONTROL = "random_search"


@dataclasses.dataclass(frozen=True)
class CompareConfig:
  """Configuration that comparisons share."""

  strategies: tuple[str, ...] = field(
    tuple(STRATEGIES), "who competes; random search always does", tuple(STRATEGIES)
  )
  seeds: int = field(500, "searches of each strategy")
  budget_evaluations: int | None = field(
    None,
    "of a search, in full evaluations, instead of seconds; a third of the epochs "
    "is a third of one",
  )
  budget_seconds: float | None = field(
    None, "of a search, in seconds of training by the table"
  )
  repeats: str = field(
    "free", "what a child that was tried before costs", ("free", "paid")
  )
  policy_learning_rate: float = field(
    0.01, "of reinforce_independent's Adam; NATS-Bench states 0.01"
  )


class Protocol(NamedTuple):
  """One way to search and to judge.

  Attributes:
    name: for the report.
    searched: data set whose validation accuracy is searched on.
    epochs: fidelity of the search; None for the full one.
    budget: of a search.
    unit: of the budget, "seconds" of training as the table has them, or "evaluations"
      at the fidelity of the search.
    judged: data sets whose full figures of the winner are read.
  """

  name: str
  searched: str
  epochs: int | None
  budget: float
  unit: str
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
  if not config.policy_learning_rate > 0:
    raise InputError(
      "--config.policy_learning_rate must be positive, got "
      f"{config.policy_learning_rate}"
    )
  return tuple(dict.fromkeys((CONTROL, *config.strategies)))


def budget(config: CompareConfig, times: float = 1.0) -> tuple[float, str]:
  """The budget and its unit; seconds are multiplied.

  Raises:
    InputError: there is none.
  """
  if config.budget_evaluations is not None:
    return float(config.budget_evaluations), "evaluations"
  if config.budget_seconds is not None:
    return times * config.budget_seconds, "seconds"
  raise InputError("give --config.budget_evaluations or --config.budget_seconds")


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
        name: _anytime(found[i, name], benchmark, protocol, space, rows)
        for name in names
      }
    _keep(run, winners)
    summary["status"] = "finished"
  finally:
    summary |= run.compile_stats()
    run.write_summary(summary)
  run.log(f"report: {common_compare_report.write(run, summary, curves, CONTROL)}")
  for title, table in common_compare_report.tables_of(summary):
    run.table(title, [name for name, _ in table.columns], [list(r) for r in table.rows])


def _searches(name, config, run, space, benchmark, protocols, estimators):
  """`Trajectories` of one strategy under each protocol; one compilation for all.

  Protocols that search alike, and only read other figures, share their searches.
  """
  competitor = STRATEGIES[name]
  compiled: dict[Any, Any] = {}
  made: dict[Any, search.Trajectories] = {}
  for protocol, estimator in zip(protocols, estimators):
    alike = protocol.searched, protocol.epochs, protocol.budget, protocol.unit
    if alike in made:
      yield made[alike]
      continue
    measured = benchmark.on(protocol.searched)
    level = len(measured.epochs) - 1
    if protocol.epochs is not None:
      level = int(np.searchsorted(measured.epochs, protocol.epochs))
    state = estimator.init(jax.random.key(0))
    if protocol.unit == "evaluations":
      share = (measured.epochs / measured.epochs[level]).astype(np.float32)
      state = state._replace(
        seconds=jax.numpy.broadcast_to(share[:, None], state.seconds.shape)
      )
    rungs = _rungs(measured.epochs)
    if competitor.wrapper is not None:
      level = 0  # most of its children are measured cheaply
      estimator = competitor.wrapper(
        estimator, rungs=rungs, eta=_ETA, resumed=benchmark.one_training
      )
    # Room for a third more than children of mean cost; twice it where that is too few.
    room = 1.3 * protocol.budget / float(np.asarray(state.seconds)[level].mean())
    capacity = 10 * math.ceil(max(room, 20) / 10)
    search_key = keys.named(run.key, f"{name} on {protocol.searched}")[0]
    while True:
      kind = capacity, level, rungs
      if kind not in compiled:
        compiled[kind] = search.compile_search(
          competitor.strategy(space, capacity, rungs, config),
          estimator,
          config.seeds,
          max_evaluations=capacity,
          repeats=config.repeats,
        )
      seed_keys = jax.random.split(jax.random.clone(search_key), config.seeds)
      done = compiled[kind](seed_keys, protocol.budget, state)
      if not (~done.ended & (done.num_evaluations == capacity)).any():
        break
      capacity *= 2
    empty = int((done.num_evaluations == 0).sum())
    if empty:
      raise InputError(
        f"{name}: a budget of {protocol.budget:g} {protocol.unit} is too small: "
        f"{empty} of {config.seeds} searches on {protocol.searched} end before their "
        "first evaluation"
      )
    made[alike] = done
    yield done


def _rungs(epochs: np.ndarray) -> tuple[int, ...]:
  """Fidelities for halving: from the full one down, each at most a third of the last.

  Args:
    epochs: `[R]` that the table has, ascending.
  """
  rungs = [int(epochs[-1])]
  while (epochs * _ETA <= rungs[0]).any():
    rungs.insert(0, int(epochs[epochs * _ETA <= rungs[0]][-1]))
  return tuple(rungs)


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
    "spent": float(np.where(done.counted(), done.cost, 0).sum(-1).mean()),
    "exhausted": int((~done.ended).sum()),  # found nothing new any more
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


def _anytime(done, benchmark, protocol, space, rows) -> dict[str, np.ndarray]:
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
  grid = np.geomspace(protocol.budget / _GRID, protocol.budget, _GRID)
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
