"""Estimation by looking up a table: a benchmark's scores and simulated costs.

Jittable, so that whole searches over a table compile into one program
(`search.run_compiled`).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nasjax.core.types import Evaluation, InputError
from nasjax.data.benchmarks import Benchmark
from nasjax.estimators.base import Estimator
from nasjax.spaces.base import Enumerable
from nasjax.spaces.categorical import Categorical
from nasjax.spaces.mlp_chain import MLPChain
from nasjax.spaces.nasbench201 import EDGES, PRIMITIVES, NASBench201

_SPACES: dict[str, Any] = {
  "categorical": Categorical,
  "mlp_chain": MLPChain,
  "nasbench201": NASBench201,
}


def space_of(benchmark: Benchmark) -> Enumerable:
  """The space that a table is about.

  Raises:
    InputError: its kind is unknown, its fields do not fit, or the table names other
      operations or edges than the space has.
  """
  fields = dict(benchmark.space)
  kind = fields.pop("kind")
  if kind not in _SPACES:
    raise InputError(
      f"{benchmark.name}: unknown space {kind!r}; there are {', '.join(_SPACES)}"
    )
  fields = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
  try:
    space = _SPACES[kind](**fields)
  except (TypeError, ValueError) as error:
    raise InputError(f"{benchmark.name}: space {kind}: {error}") from None
  if kind == "nasbench201" and benchmark.op_names not in ((), PRIMITIVES):
    raise InputError(
      f"{benchmark.name}: op_names must be {', '.join(PRIMITIVES)}; got "
      f"{', '.join(benchmark.op_names)}"
    )
  if kind == "nasbench201" and benchmark.edges:
    for number, (given, known) in enumerate(zip(benchmark.edges, EDGES)):
      if given != known:
        raise InputError(
          f"{benchmark.name}: edge {number} must be {known[0]} to {known[1]}, got "
          f"{given[0]} to {given[1]}: its cells are written in another order"
        )
  return space


def rows_of(space: Enumerable, benchmark: Benchmark) -> np.ndarray:
  """`[size]`: the row of a table that holds each genotype, by the space's numbers.

  Raises:
    InputError: a row is not of the space, or a genotype of the space has no row: the
      line names the first.
  """
  genotypes = benchmark.genotypes
  if genotypes.shape[1] != space.length:
    raise InputError(
      f"{benchmark.name}: a genotype of this space has {space.length} decisions, the "
      f"table's have {genotypes.shape[1]}"
    )
  legal = np.asarray(jax.jit(jax.vmap(space.is_legal))(genotypes))
  if not legal.all():
    row = int(np.argmin(legal))
    raise InputError(
      f"{benchmark.name}, row {row}: {genotypes[row].tolist()} is no genotype of "
      f"the space {benchmark.space['kind']}"
    )
  number = np.asarray(jax.jit(jax.vmap(space.index))(genotypes))
  present = np.unique(number)
  if len(present) < space.size:  # of which there may be billions: no array of them all
    gaps = np.flatnonzero(present != np.arange(len(present)))
    missing = np.asarray(space.at(int(gaps[0]) if len(gaps) else len(present)))
    raise InputError(
      f"{benchmark.name}: {space.size - len(present):,} of {space.size:,} "
      f"architectures have no row; the first is {space.describe(missing)}"
    )
  rows = np.empty(space.size, int)
  rows[number] = np.arange(len(number))
  return rows


class TableState(NamedTuple):
  """What `tabular` looks up, by the space's numbers; R fidelities.

  Attributes:
    valid: `[R, size]` validation accuracy.
    seconds: `[R, size]` what the evaluation costs.
  """

  valid: jax.Array
  seconds: jax.Array


def tabular(
  space: Enumerable, benchmark: Benchmark, dataset: str, *, epochs: int | None = None
) -> Estimator:
  """Looks scores and costs up.

  Args:
    space: see `space_of`.
    benchmark: the table.
    dataset: which of its data sets.
    epochs: the fidelity of a score; the table's full one without it.

  Returns:
    A jittable `Estimator`. `curve` holds the fidelities up to the one asked for; the
    cost is in the table's (simulated) seconds; another `fidelity` may be given to
    `estimate`, as a number of epochs.

  Raises:
    InputError: the table is not whole, or does not hold the data set or the fidelity.
  """
  measured = benchmark.on(dataset)
  rows = rows_of(space, benchmark)

  def level(wanted: int | None) -> int:
    if wanted is None:
      return len(measured.epochs) - 1
    if wanted not in measured.epochs:
      raise InputError(
        f"{benchmark.name} has no scores after {wanted} epochs; it has "
        f"{', '.join(map(str, measured.epochs))}"
      )
    return int(np.searchsorted(measured.epochs, wanted))

  default = level(epochs)

  def init(key: jax.Array) -> TableState:
    del key
    return TableState(
      jnp.asarray(measured.valid[:, rows]), jnp.asarray(measured.seconds[:, rows])
    )

  # Compiled here too: a loop of rounds outside of jit would compile `index` in each.
  @functools.partial(jax.jit, static_argnums=2)
  def look_up(state, genotypes, at):
    number = jax.vmap(space.index)(genotypes)
    curve_RP = state.valid[: at + 1, number]
    return curve_RP[at], state.seconds[at, number], curve_RP.T

  def estimate(
    key: jax.Array, state: TableState, genotypes: Any, fidelity: int | None = None
  ) -> tuple[TableState, Evaluation]:
    del key
    at = default if fidelity is None else level(fidelity)
    score, cost, curve = look_up(state, jnp.asarray(genotypes), at)
    return state, Evaluation(score, cost, curve, {})

  return Estimator(init, estimate)
