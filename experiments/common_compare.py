"""Strategies compared on a table: whole searches as compiled programs, over many seeds.

A protocol says on which data set is searched, at which fidelity and with what budget,
and of which data sets the winner's figures are then read. Every strategy gets the same
budget and seeds of its own. (Successive halving and Hyperband search at the table's
rungs, whatever the protocol's fidelity is: `common_strategies.rungs_of`.)
"""

import dataclasses
import functools
import io
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import common_compare_report
from experiments.common_strategies import (
  CONTROL,
  STRATEGIES,
  Setting,
  eta_of,
  rungs_of,
)
from nasjax import runtime, search
from nasjax.core import keys
from nasjax.core.config import field
from nasjax.core.types import InputError
from nasjax.data.benchmarks import Benchmark, Measured
from nasjax.estimators.tabular import rows_of, space_of, tabular
from nasjax.results import analysis, comparison, records
from nasjax.runtime import Run

_GRID = 60  # points of the anytime curves
_MAX_EVALUATIONS = 100_000  # of one search; every seed has an array of so many


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
    None, "of a search, in seconds of training by the table, instead of evaluations"
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
  if config.budget_evaluations is not None and config.budget_seconds is not None:
    raise InputError(
      "give --config.budget_evaluations or --config.budget_seconds, not both"
    )
  if not config.policy_learning_rate > 0:
    raise InputError(
      "--config.policy_learning_rate must be positive, got "
      f"{config.policy_learning_rate}"
    )
  return tuple(dict.fromkeys((CONTROL, *config.strategies)))


def budget(
  config: CompareConfig, default: tuple[float, str], times: float = 1.0
) -> tuple[float, str]:
  """The budget and its unit; seconds are multiplied.

  Args:
    config: what was given.
    default: what holds where no budget was.
    times: for data sets whose trainings take so many times as long.
  """
  amount, unit = default
  if config.budget_evaluations is not None:
    amount, unit = float(config.budget_evaluations), "evaluations"
  elif config.budget_seconds is not None:
    amount, unit = config.budget_seconds, "seconds"
  return (times * amount if unit == "seconds" else amount), unit


def _level(measured: Measured, protocol: Protocol) -> int:
  """The index of the protocol's fidelity."""
  if protocol.epochs is None:
    return len(measured.epochs) - 1
  return int(np.searchsorted(measured.epochs, protocol.epochs))


def _costs(measured: Measured, protocol: Protocol) -> np.ndarray:
  """`[R, N]` what each fidelity costs in the unit of the protocol."""
  if protocol.unit == "seconds":
    return measured.seconds
  share = measured.epochs / measured.epochs[_level(measured, protocol)]
  return np.broadcast_to(share.astype(np.float32)[:, None], measured.seconds.shape)


def _check_budget(
  names: Sequence[str], benchmark: Benchmark, protocol: Protocol
) -> None:
  """Refuses a budget that some first child would exceed, or that hardly ends."""
  measured = benchmark.on(protocol.searched)
  costs = _costs(measured, protocol)
  if not (costs > 0).all():
    level, row = np.argwhere(costs <= 0)[0]
    raise InputError(
      f"{benchmark.name}, row {row}: {measured.epochs[level]} epochs on "
      f"{protocol.searched} cost nothing; a budget in seconds needs costs above 0"
    )
  given = f"a budget of {protocol.budget:g} {protocol.unit}"
  for name in names:
    first = dearest = costs[_level(measured, protocol)]
    if STRATEGIES[name].wrapper is not None:
      at = np.searchsorted(measured.epochs, rungs_of(measured.epochs))
      first = costs[at[0]]
      dearest = costs[-1] if benchmark.one_training else costs[at].sum(0)
    if np.float32(protocol.budget) < dearest.max():
      raise InputError(
        f"{name}: {given} is too small: one child on {protocol.searched} may cost "
        f"{dearest.max():g}"
      )
    if protocol.budget > _MAX_EVALUATIONS * first.mean(dtype=float):
      raise InputError(
        f"{name}: {given} is too large: more than {_MAX_EVALUATIONS:,} children of a "
        f"search on {protocol.searched}"
      )


def compare(
  config: CompareConfig,
  run: Run,
  benchmark: Benchmark,
  protocols: list[Protocol],
  *,
  published: Published | None = None,
) -> None:
  """Runs every strategy under every protocol; leaves summary, winners and report.

  Args:
    config: see `CompareConfig`.
    run: where everything goes; after Ctrl-C what the strategies that were done found.
    benchmark: the table.
    protocols: of which the one named "published" has `published` beside it.
    published: figures to stand beside ours.

  Raises:
    InputError: a table that is not whole, or a config that cannot run; nothing was
      touched then. (But where costs are so uneven that a search of average costs has
      room and another has not, that is found by searching.)
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
  for protocol in protocols:
    _check_budget(names, benchmark, protocol)
  run.begin()
  seconds: dict[str, float] = {}
  summary: dict[str, Any] = {
    "experiment": run.experiment,
    "seed": run.seed,
    "status": "interrupted",
    "table": benchmark.name,
    "architectures": space.size,
    "seeds": config.seeds,
    "protocols": [_described(names, benchmark, protocol) for protocol in protocols],
    "fidelities": _fidelities(benchmark),
    "optimum": {d: _optimum(benchmark, d) for d in benchmark.measured},
    "results": [],
    "pairs": [],
    "sentences": [],
    "anytime": {},
    "strategy_seconds": seconds,
    "environment": runtime.environment(),
    "command": run.command,
  }
  found: dict[tuple[int, str], search.Trajectories] = {}
  done: list[str] = []
  start = time.perf_counter()
  try:
    total = len(names) * len(protocols)
    with run.progress(total, "comparison", "searches") as progress:
      for name in names:
        tick = time.perf_counter()
        for i, trajectories in enumerate(
          _searches(name, config, run, space, benchmark, protocols, estimators)
        ):
          found[i, name] = trajectories
          progress.update(len(found), strategy=name, on=protocols[i].searched)
        seconds[name] = time.perf_counter() - tick
        run.log(f"{name}: {seconds[name]:.1f} s")
        done.append(name)
    summary["status"] = "finished"
  finally:
    # Also when interrupted: the strategies that were done are compared.
    summary["search_seconds"] = time.perf_counter() - start
    if done:
      _judge(done, found, run, space, rows, benchmark, protocols, published, summary)
    summary |= run.compile_stats()
    run.write_summary(summary)
    if done:
      run.log(f"report: {common_compare_report.write(run, summary)}")
  for title, table in common_compare_report.tables_of(summary):
    run.table(title, [name for name, _ in table.columns], [list(r) for r in table.rows])


def _judge(
  names: Sequence[str],
  found: Mapping[tuple[int, str], search.Trajectories],
  run: Run,
  space: Any,
  rows: np.ndarray,
  benchmark: Benchmark,
  protocols: Sequence[Protocol],
  published: Published | None,
  summary: dict[str, Any],
) -> None:
  """Enters what the searches of these strategies found; keeps their winners."""
  winners = {}
  for i, protocol in enumerate(protocols):
    judged: dict[str, dict[str, np.ndarray]] = {d: {} for d in protocol.judged}
    for name in names:
      trajectories = found[i, name]
      winner = rows[_numbers(space, trajectories.incumbents()[0])]
      winners[f"{protocol.name}/{name}"] = winner
      for dataset in protocol.judged:
        row, test = _result(
          benchmark, protocol, dataset, name, winner, trajectories, published or {}
        )
        summary["results"].append(row)
        judged[dataset][name] = test
    for dataset, values in judged.items():
      if len(values) > 1:
        summary["pairs"] += [
          {"protocol": protocol.name, "dataset": dataset, **pair._asdict()}
          for pair in comparison.pairwise(values)
        ]
    summary["anytime"][protocol.name] = {
      name: _anytime(found[i, name], benchmark, protocol, space, rows) for name in names
    }
  summary["sentences"] = common_compare_report.sentences(summary, CONTROL)
  _keep(run, winners)


def _described(
  names: Sequence[str], benchmark: Benchmark, protocol: Protocol
) -> dict[str, Any]:
  """A protocol as the summary has it: with who searches at rungs, and at which."""
  rungs = rungs_of(benchmark.on(protocol.searched).epochs)
  halving = [name for name in names if STRATEGIES[name].wrapper is not None]
  described = {**protocol._asdict(), "halving": halving}
  return described | ({"rungs": rungs, "eta": eta_of(rungs)} if halving else {})


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
    level = _level(measured, protocol)
    state = estimator.init(jax.random.key(0))
    if protocol.unit == "evaluations":
      # Of each fidelity one cost, so the order of rows does not matter.
      state = state._replace(seconds=jax.numpy.asarray(_costs(measured, protocol)))
    rungs = rungs_of(measured.epochs)
    eta = eta_of(rungs)
    if competitor.wrapper is not None:
      level = int(np.searchsorted(measured.epochs, rungs[0]))  # of most children
      estimator = competitor.wrapper(
        estimator, rungs=rungs, eta=eta, resumed=benchmark.one_training
      )
    # Room for a third more than children of mean cost; twice it where that is too few.
    room = 1.3 * protocol.budget / float(np.asarray(state.seconds)[level].mean())
    capacity = min(10 * math.ceil(max(room, 20) / 10), _MAX_EVALUATIONS)
    search_key = keys.named(run.key, f"{name} on {protocol.searched}")[0]
    fidelities = tuple(measured.epochs.tolist())
    while True:
      kind = capacity, level, fidelities
      if kind not in compiled:
        setting = Setting(space, capacity, rungs, eta, config.policy_learning_rate)
        compiled[kind] = search.compile_search(
          competitor.strategy(setting),
          estimator,
          config.seeds,
          max_evaluations=capacity,
          repeats=config.repeats,
        )
      seed_keys = jax.random.split(jax.random.clone(search_key), config.seeds)
      done = compiled[kind](seed_keys, protocol.budget, state)
      if not (~done.ended & (done.num_evaluations == capacity)).any():
        break
      if capacity == _MAX_EVALUATIONS:
        raise InputError(
          f"{name}: a budget of {protocol.budget:g} {protocol.unit} is too large: a "
          f"search on {protocol.searched} had {capacity:,} children and was not done"
        )
      capacity = min(2 * capacity, _MAX_EVALUATIONS)
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
    with np.errstate(divide="ignore", invalid="ignore"):  # a table without costs
      shares = measured.seconds / measured.seconds[-1:]
    for level, epochs in enumerate(measured.epochs[:-1]):
      rows.append(
        {
          "dataset": dataset,
          "epochs": int(epochs),
          "cost": float(shares[level].mean()),
          "tau_valid": analysis.kendall_tau(measured.valid[level], measured.valid[-1]),
          "tau_test": analysis.kendall_tau(measured.valid[level], measured.test),
        }
      )
  return rows


def _anytime(done, benchmark, protocol, space, rows) -> dict[str, np.ndarray]:
  """The incumbent's test regret by budget: that, mean and interval `[G]`."""
  measured = benchmark.on(protocol.searched)
  held = done.held()
  at = np.maximum(held, 0)[..., None]
  number = _numbers(space, np.take_along_axis(done.genotypes, at, axis=1))
  optimum = _optimum(benchmark, protocol.searched)["test"]
  test = measured.test[rows[np.maximum(number, 0)]]
  regret = np.where(held >= 0, optimum - test, np.nan)
  spent = np.where(done.counted(), np.cumsum(done.cost, axis=1), np.nan)
  grid = np.geomspace(protocol.budget / _GRID, protocol.budget, _GRID)
  band = comparison.band(comparison.anytime(regret, spent, grid))
  return {"budget": grid, "mean": band.mean, "low": band.low, "high": band.high}


def _numbers(space: Any, genotypes: np.ndarray) -> np.ndarray:
  """The space's numbers `[...]` of genotypes `[..., D]`."""
  flat = genotypes.reshape(-1, space.length)
  return np.asarray(_index(space)(flat)).reshape(genotypes.shape[:-1])


@functools.cache
def _index(space: Any) -> Callable[..., jax.Array]:
  """`space.index` of many, compiled once for each shape."""
  return jax.jit(jax.vmap(space.index))


def _keep(run: Run, winners: Mapping[str, Any]) -> None:
  """`winners.npz`: the table's row of each seed's winner, by protocol and strategy."""
  buffer = io.BytesIO()
  arrays: dict[str, Any] = {name: np.asarray(rows) for name, rows in winners.items()}
  np.savez_compressed(buffer, **arrays)
  records.write_bytes(run.workdir / "winners.npz", buffer.getvalue())
