"""How fast a population trains: our layouts beside what a user would write.

Every way trains the same chains, in a process of its own. They take turns within one
run, so that a noisy machine is noisy for all, and the machine's own ceiling (a large
matrix product, and the bytes that Adam moves) is measured between them. On the steady
workloads compilation is timed apart. The campaigns are whole jobs from a cold start,
which no round divides evenly: there a turn is so many seconds, after which the way's
process is stopped where it stands.

Command: python run.py --experiment=throughput      (peers: pip install -e ".[peers]")
Result: benchmarks/RESULTS.md.
"""

import dataclasses
import functools
import math
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import common_ways
from experiments.common_ways import WAYS, Worker, Workload
from nasjax import runtime
from nasjax.core.config import field
from nasjax.core.types import InputError
from nasjax.networks import mlp
from nasjax.results import plots, report, tables
from nasjax.runtime import Run
from nasjax.spaces.mlp_chain import Dense, MLPChain
from nasjax.training import flops
from nasjax.training.losses import get_task

# Shapes: features, classes, train rows of an epoch, valid rows, batch size.
_MNIST, _WINE, _DIGITS = (784, 10, 48000), (11, 3, 3136), (64, 10, 1150)
STEADY = {"mnist_32": (*_MNIST, 32), "mnist_128": (*_MNIST, 128)}
CAMPAIGNS = ("wine_rounds", "digits_all")
WORKLOADS = (*STEADY, *CAMPAIGNS)
_WIDTHS = (8, 16, 32, 64, 128, 256, 512)
_CAMPAIGN_BATCH = 32
_SWEPT = 2**24  # values, at least, of a measurement of the bandwidth
_ADAM_BYTES = 28  # a parameter and step: four values read, three written


@dataclasses.dataclass(frozen=True)
class Config:
  """Configuration of `throughput`."""

  workloads: tuple[str, ...] = field(WORKLOADS, "which", WORKLOADS)
  ways: tuple[str, ...] = field(tuple(WAYS), "who competes", tuple(WAYS))
  population: int = field(10, "children of a round")
  epochs: int = field(10, "of every child, over which compilation is spread")
  rounds: int = field(10, "of the wine campaign, fresh children each")
  steps: int = field(240, "timed steps of the steady workloads, a turn")
  repeats: int = field(5, "turns of each way, interleaved")
  chains: int = field(812, "of the digits campaign: all of one or two layers")
  digits_epochs: int = field(30, "of the digits campaign")
  sample: int = field(24, "chains of the digits campaign, without shared programs")
  max_width: int = field(512, "of the sampled chains")
  turn_seconds: float = field(5.0, "of a way in a campaign, until it is another's turn")

  def smoke(self) -> "Config":
    """The seconds-long version that the tests run end to end."""
    return dataclasses.replace(
      self,
      workloads=("mnist_32", "digits_all"),
      ways=("auto", "one_jit"),
      population=2,
      epochs=1,
      steps=4,
      repeats=2,
      chains=4,
      digits_epochs=1,
      sample=2,
      max_width=8,
      turn_seconds=0.5,
    )


def _check(config: Config) -> None:
  for name, value in dataclasses.asdict(config).items():
    if isinstance(value, int | float) and not 0 < value < math.inf:
      raise InputError(f"config.{name} must be positive, got {value}")
  if config.max_width < min(_WIDTHS):
    raise InputError(f"config.max_width must be at least {min(_WIDTHS)}")
  if not config.workloads or not config.ways:
    raise InputError("give at least one of config.workloads and of config.ways")


def run(config: Config, run: Run) -> None:
  """Runs the experiment."""
  _check(config)
  common_ways.share_device()
  run.begin()
  rows: list[dict[str, Any]] = []
  summary: dict[str, Any] = {
    "experiment": run.experiment,
    "seed": run.seed,
    "status": "interrupted",
    "environment": runtime.environment(),
    "command": run.command,
  }
  try:
    for name in config.workloads:
      steady = name in STEADY
      rows += (_steady if steady else _campaign)(name, config, run)
    summary["status"] = "finished"
  finally:
    summary["rows"] = rows
    run.write_summary(summary)
    run.log(f"report: {_report(run, summary)}")
  for table in _tables(rows):
    heading, cells = table
    names = [name for name, _ in cells.columns]
    run.table(heading, names, [list(row) for row in cells.rows])


def _space(config: Config, max_layers: int = 10) -> MLPChain:
  widths = tuple(width for width in _WIDTHS if width <= config.max_width)
  return MLPChain(widths=widths, max_layers=max_layers)


def _start(ways, work: Workload, run: Run) -> list[Worker]:
  """Workers for the ways that can be here."""
  workers = []
  for way in ways:
    try:
      workers.append(Worker(way, work))
    except RuntimeError as error:
      run.warn(f"left out: {error} (the extra [peers] has torch and keras)")
  return workers


def _steady(name: str, config: Config, run: Run) -> list[dict[str, Any]]:
  """Seconds of a step of the whole population, compilation apart."""
  features, classes, full_rows, batch_size = STEADY[name]
  space = _space(config)
  rounds = common_ways.random_rounds(space, run.seed, 1, config.population)
  work = Workload(
    name=name,
    features=features,
    classes=classes,
    rows=config.steps * batch_size,
    valid_rows=batch_size,  # the peers validate nothing, and we cannot but do
    batch_size=batch_size,
    epochs=1,
    rounds=rounds,
    space=space,
    seed=run.seed,
    share=config.steps / (config.epochs * (full_rows // batch_size)),
  )
  chains = [space.layers(genotype) for genotype in rounds[0]]
  params = sum(mlp.num_params(chain, features, classes) for chain in chains)
  shape = (features, classes, batch_size)
  useful = sum(_step_flops(chain, *shape) for chain in chains)
  ceiling = _Ceiling(params)
  workers = _start(config.ways, work, run)
  first: dict[str, float] = {}
  times: dict[str, list[float]] = {worker.way: [] for worker in workers}
  try:
    for worker in list(workers):
      try:
        first[worker.way] = worker.train()
      except RuntimeError as error:
        run.warn(f"{name}: left out: {error}")
        workers.remove(worker)
        continue
      run.log(f"{name}: {worker.way} is ready after {first[worker.way]:.1f} s")
    for _ in range(config.repeats):
      for worker in workers:
        times[worker.way].append(worker.train())
      ceiling.measure()
  finally:
    for worker in workers:
      worker.close()
  rows = []
  steps_an_epoch = full_rows // batch_size
  for worker in workers:
    run_seconds = statistics.median(times[worker.way])
    step = run_seconds / config.steps
    compiling = max(first[worker.way] - run_seconds, 0.0)
    children = config.population * config.epochs
    total = compiling + config.epochs * steps_an_epoch * step
    rows.append(
      {
        "workload": name,
        "way": worker.way,
        "step_ms": 1e3 * step,
        "compile_seconds": compiling,
        "rate": config.population / (steps_an_epoch * step),
        "amortised_rate": children / total,
        "total_seconds": total,
        **ceiling.reached(useful, params, step),
        "peak_gb": worker.peak_bytes / 1e9,
        "num_compiles": worker.num_compiles,
        "spread": (max(times[worker.way]) - min(times[worker.way])) / run_seconds,
      }
    )
  return rows


def _step_flops(chain, features: int, classes: int, batch_size: int) -> int:
  """Of one training step of one child: what an exact program computes."""
  weights = mlp.init(0, chain, features, classes)
  x = jnp.zeros((batch_size, features))
  y = jnp.zeros(batch_size, jnp.int32)
  task = get_task("multiclass")

  def loss(weights):
    return task.loss(mlp.apply(weights, chain, x), y).mean()

  return flops.count(jax.value_and_grad(loss), weights)


class _Ceiling:
  """What the machine does at best: the median of what was measured between the ways."""

  def __init__(self, params: int):
    # An accelerator needs more work in a call than its dispatch takes.
    on_cpu = jax.default_backend() == "cpu"
    size, self._params = (1024, max(params, 2**14)) if on_cpu else (8192, 2**27)
    # Nor may a sweep over few values be little else than its call.
    self._sweeps = max(1, _SWEPT // self._params)
    matrix, vector = jnp.ones((size, size)), jnp.ones(self._params)

    def sweep(_, carry, gradient):  # Adam's traffic, without its root
      weights, first, second = carry
      first = 0.9 * first + gradient
      second = 0.9 * second + gradient * gradient
      return weights - first * second, first, second

    def sweeps(start, gradient):
      each = functools.partial(sweep, gradient=gradient)
      return jax.lax.fori_loop(0, self._sweeps, each, (start,) * 3)

    self._product = jax.jit(lambda m: m @ m)
    self._sweep = jax.jit(sweeps)
    self._inputs = (matrix,), (vector, vector)
    self._size = size
    self._flops: list[float] = []
    self._bandwidth: list[float] = []
    self.measure()

  def measure(self) -> None:
    """One more measurement."""
    product, sweep = (
      min(self._timed(function, inputs) for _ in range(5))
      for function, inputs in zip((self._product, self._sweep), self._inputs)
    )
    self._flops.append(2 * self._size**3 / product)
    self._bandwidth.append(_ADAM_BYTES * self._params * self._sweeps / sweep)

  @staticmethod
  def _timed(function, inputs) -> float:
    start = time.perf_counter()
    jax.block_until_ready(function(*inputs))
    return time.perf_counter() - start

  def reached(self, flops: float, params: float, seconds: float) -> dict[str, float]:
    """Columns of a row: what was done in the time, and what part of the ceiling it is.

    Args:
      flops: useful ones.
      params: parameters that Adam updated, counted once for every update.
      seconds: that both took.
    """
    rate, bandwidth = map(statistics.median, (self._flops, self._bandwidth))
    return {
      "gflops": flops / seconds / 1e9,
      "of_matrix_rate": flops / seconds / rate,
      "of_floor": (flops / rate + _ADAM_BYTES * params / bandwidth) / seconds,
      "ceiling_gflops": rate / 1e9,
      "ceiling_gb_per_s": bandwidth / 1e9,
    }


def _campaign(name: str, config: Config, run: Run) -> list[dict[str, Any]]:
  """Seconds of a whole job of fresh architectures, compilation included, from cold."""
  if name == "wine_rounds":
    space = _space(config)
    rounds = common_ways.random_rounds(
      space, run.seed, config.rounds, config.population
    )
    (features, classes, rows), epochs = _WINE, config.epochs
  else:
    space = _space(config, max_layers=3)
    everything = _chains_of_one_or_two(space)[: config.chains]
    rounds, epochs = (everything,), config.digits_epochs
    features, classes, rows = _DIGITS
  chains = [space.layers(genotype) for genotypes in rounds for genotype in genotypes]
  num_updates = epochs * (rows // _CAMPAIGN_BATCH)
  shape = (features, classes, _CAMPAIGN_BATCH)
  useful = num_updates * sum(_step_flops(chain, *shape) for chain in chains)
  params = sum(mlp.num_params(chain, features, classes) for chain in chains)
  ceiling = _Ceiling(params // len(chains))
  whole = Workload(
    name=name,
    features=features,
    classes=classes,
    rows=rows,
    valid_rows=rows // 4,
    batch_size=_CAMPAIGN_BATCH,
    epochs=epochs,
    rounds=rounds,
    space=space,
    seed=run.seed,
  )
  part = whole
  if name == "digits_all" and config.sample < len(chains):
    picked = np.random.default_rng(run.seed).permutation(len(chains))
    part = dataclasses.replace(whole, rounds=(rounds[0][picked[: config.sample]],))
  sampled: dict[Worker, float] = {}
  left: dict[Worker, list[int]] = {}
  for way in config.ways:
    # Programs that children share are compiled once, however many children there are:
    # scaling a sample would count them many times.
    work = whole if way in ("auto", "bucketed") else part
    for worker in _start((way,), work, run):
      left[worker] = list(range(len(work.rounds)))
      sampled[worker] = 1.0 if work is whole else len(chains) / config.sample
      if way == "padded" and sampled[worker] > 1:
        left[worker].append(0)  # once more, with its program there
  rows_out = []
  # Work that is queued on an accelerator would go on in another's turn.
  most = config.turn_seconds if jax.default_backend() == "cpu" else None
  times = _in_turns(name, left, most, ceiling, run)
  for worker, rounds_of in times.items():
    factor = sampled[worker]
    if factor > 1 and worker.way == "padded":  # one program: only running is scaled
      seconds = rounds_of[0] + (factor - 1) * rounds_of[1]
    else:
      seconds = factor * sum(rounds_of)
    rows_out.append(
      {
        "workload": name,
        "way": worker.way,
        "total_seconds": seconds,
        "amortised_rate": len(chains) * epochs / seconds,
        **ceiling.reached(useful, num_updates * params, seconds),
        "peak_gb": worker.peak_bytes / 1e9,
        "num_compiles": worker.num_compiles,
        "sampled": factor,
      }
    )
  return rows_out


def _in_turns(
  name: str,
  rounds: dict[Worker, list[int]],
  turn_seconds: float | None,
  ceiling: _Ceiling,
  run: Run,
) -> dict[Worker, list[float]]:
  """Seconds of those rounds of every worker; each has its turns until all are done, of
  so many seconds or, where that is None, of a round."""
  left = {worker: list(numbers) for worker, numbers in rounds.items()}
  times: dict[Worker, list[float]] = {worker: [] for worker in rounds}
  turn = "a round" if turn_seconds is None else f"{turn_seconds:g} s"
  run.log(f"{name}: {len(left)} ways take turns of {turn}")
  try:
    while left:
      for worker, numbers in list(left.items()):
        try:
          seconds = worker.go_on(numbers[0], turn_seconds)
        except RuntimeError as error:
          run.warn(f"{name}: left out: {error}")
          del left[worker], times[worker]
          continue
        if seconds is None:
          continue
        times[worker].append(seconds)
        del numbers[0]
        if not numbers:
          run.log(f"{name}: {worker.way} is done after {sum(times[worker]):.1f} s")
          worker.close()
          del left[worker]
      ceiling.measure()
  finally:
    for worker in rounds:
      worker.close()
  return times


def _chains_of_one_or_two(space: MLPChain) -> np.ndarray:
  """All chains of one or two dense layers without dropout, `[812, D]`."""
  dense = [Dense(w, a) for w in space.widths for a in space.activations]
  words = [f"{layer.width} {layer.activation}" for layer in dense]
  words += [f"{first} - {second}" for first in words for second in list(words)]
  return np.stack([space.parse(text) for text in words])


_COLUMNS = (
  ("way", "way", str),
  ("ms a step", "step_ms", lambda v: f"{v:.3g}"),
  ("compile, s", "compile_seconds", lambda v: f"{v:.1f}"),
  ("children x epochs a second", "rate", lambda v: f"{v:.3g}"),
  ("with compile", "amortised_rate", lambda v: f"{v:.3g}"),
  ("whole job, s", "total_seconds", lambda v: f"{v:.1f}"),
  ("useful GFLOP/s", "gflops", lambda v: f"{v:.1f}"),
  ("of matrix rate", "of_matrix_rate", lambda v: f"{v:.2f}"),
  ("floor / time", "of_floor", lambda v: f"{v:.2f}"),
  ("auto is faster by", "auto_faster", lambda v: f"{v:.1f}x"),
  ("same, with compile", "auto_faster_amortised", lambda v: f"{v:.1f}x"),
  ("peak memory, GB", "peak_gb", lambda v: f"{v:.2f}"),
  ("programs", "num_compiles", lambda v: str(v or tables.DASH)),
  ("spread", "spread", lambda v: f"{100 * v:.0f} %"),
)


def _tables(rows: list[dict[str, Any]]) -> list[tuple[str, tables.Table]]:
  """A table a workload, with `auto` against each other way."""
  made = []
  for name in dict.fromkeys(row["workload"] for row in rows):
    mine = [dict(row) for row in rows if row["workload"] == name]
    auto = next((row for row in mine if row["way"] == "auto"), {})
    for row in mine:
      for ratio, key in (
        ("auto_faster", "rate"),
        ("auto_faster_amortised", "amortised_rate"),
      ):
        if row is not auto and key in auto and key in row:
          row[ratio] = auto[key] / row[key]
    cells = [
      [show(row[key]) if key in row else tables.DASH for _, key, show in _COLUMNS]
      for row in mine
    ]
    columns = [(title, key != "way") for title, key, _ in _COLUMNS]
    table = tables.table(columns, cells)
    if table is not None:
      made.append((name, table))
  return made


def _report(run: Run, summary: dict[str, Any]):
  """`report.html` and `report.md`."""
  rows = summary["rows"]
  sections = []
  for name, table in _tables(rows):
    mine = [row for row in rows if row["workload"] == name]
    notes = []
    if "ceiling_gflops" in mine[0]:
      notes.append(
        f"Ceiling in the same run: {mine[0]['ceiling_gflops']:.0f} GFLOP/s in a large "
        f"matrix product, {mine[0]['ceiling_gb_per_s']:.0f} GB/s in a sweep over as "
        "many values as there are parameters. Floor: useful arithmetic at the one "
        "rate, then Adam's bytes at the other."
      )
    if any(row.get("sampled", 1) > 1 for row in mine):
      notes.append(
        "All ways but auto and bucketed: time of a sample of the chains, scaled to all "
        "of them; their programs are those of the sample."
      )
    figure = plots.bars(
      [(row["way"], row["amortised_rate"]) for row in mine],
      "children x epochs a second",
      f"{name}, compilation included",
    )
    picture = {"svg": plots.to_svg(figure), "note": "Longer is faster.", "title": name}
    sections.append(report.Section(name, table, notes, [picture]))
  environment = report.Section(
    "Environment", tables.pairs(summary["environment"].items())
  )
  again = report.Section("Run it again", command=summary["command"])
  return report.write_page(
    run.workdir,
    {
      "experiment": run.experiment,
      "status": f"seed {run.seed}, {summary['status']}",
      "headline": _headline(rows),
      "warnings": [],
      "sections": [*sections, environment, again],
    },
  )


def _headline(rows: list[dict[str, Any]]) -> str:
  """What auto is worth, workload by workload."""
  parts = []
  for name in dict.fromkeys(row["workload"] for row in rows):
    rates = {
      row["way"]: row["amortised_rate"] for row in rows if row["workload"] == name
    }
    others = [
      f"{rates['auto'] / rate:.1f}x {way}"
      for way, rate in rates.items()
      if way != "auto" and "auto" in rates
    ]
    if others:
      parts.append(f"{name}: auto is {', '.join(others)}")
  return (
    "Compile included, " + "; ".join(parts) + "." if parts else "Nothing to compare."
  )
