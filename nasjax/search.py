"""The search: a strategy and an estimator, round after round.

`run` is the loop for estimators that train; `run_compiled` is the same loop as one
compiled program, over many seeds at once, for those that compute or look up.
"""

import concurrent.futures
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nasjax.core import keys
from nasjax.core.types import Evaluation, InputError, Round
from nasjax.estimators.base import Estimator
from nasjax.strategies.base import Strategy
from nasjax.training import profile

# A strategy that finds nothing new for so long is at its end. (Local search that starts
# again where it was once climbs all of its way once more, a neighbor a round.)
MAX_IDLE_ROUNDS = 1000


class SearchState(NamedTuple):
  """Where a search is: with its key, all that the rounds to come depend on.

  Attributes:
    number: rounds that were done.
    idle: how many of the last found nothing new to try.
    strategy: its state.
    estimator: its state.
    genotypes: `[N, D]` int32, what was estimated, in that order.
    scores: `[N]` float32 of these.
    spent: their cost, and that of the one that would have passed the budget.
  """

  number: int
  idle: int
  strategy: Any
  estimator: Any
  genotypes: np.ndarray
  scores: np.ndarray
  spent: float


def begin(strategy: Strategy, estimator: Estimator, key: jax.Array) -> SearchState:
  """The state before the first round; see `run`."""
  (init_key,) = keys.named(key, "init")
  strategy_key, estimator_key = keys.named(init_key, "strategy", "estimator")
  # Not jitted: what it puts into the state would be constants of a program of its own.
  state = strategy.init(strategy_key)
  return SearchState(
    number=0,
    idle=0,
    strategy=state,
    estimator=estimator.init(estimator_key),
    genotypes=np.zeros((0, 0), np.int32),
    scores=np.zeros(0, np.float32),
    spent=0.0,
  )


def run(
  strategy: Strategy,
  estimator: Estimator,
  key: jax.Array,
  *,
  num_rounds: int,
  budget: float | None = None,
  stop: Callable[[], bool] = lambda: False,
  state: SearchState | None = None,
  on_state: Callable[[SearchState], None] = lambda state: None,
) -> Iterator[Round]:
  """Runs rounds of ask, estimate, tell; yields each as it is done.

  No architecture is estimated twice: an asked genotype that was estimated before gives
  the strategy its recorded score and is left out of the round. After `MAX_IDLE_ROUNDS`
  rounds on end in which nothing was new the search ends: the space, or the strategy's
  power to find something new in it, is exhausted. The caller sees it by the rounds that
  are missing.

  Args:
    strategy: which children are tried.
    estimator: how good they are.
    key: typed key of the run; round r uses `fold_in(key, r)` only, so a search that
      goes on from the state after some round equals one that was not interrupted.
    num_rounds: at most, those that the state has behind it included.
    budget: of cost, summed over evaluations (seconds, real ones or a table's); the
      evaluation that would pass it is not counted and ends the search, as in
      `run_compiled`, and whoever comes after it in its round is not counted either.
      None for no such limit.
    stop: asked before every round but the first of all, whether there shall be no more;
      for a limit on the clock.
    state: where to go on; None for `begin`.
    on_state: called with the state after every round, when the caller has dealt with
      what was yielded of it.

  Yields:
    One `Round` each.

  Raises:
    InputError: when `num_rounds` or the budget is not positive.
  """
  if num_rounds < 1:
    raise InputError(f"a search needs at least one round, got {num_rounds}")
  _check_budget(budget)
  (rounds_key,) = keys.named(key, "rounds")
  state = begin(strategy, estimator, key) if state is None else state
  ask, tell = jax.jit(strategy.ask), jax.jit(strategy.tell)
  known = {
    genotype.tobytes(): score for genotype, score in zip(state.genotypes, state.scores)
  }
  while state.number < num_rounds and state.idle < MAX_IDLE_ROUNDS:
    over = budget is not None and state.spent > budget
    if over or (len(state.genotypes) and stop()):
      return
    number = state.number
    round_key = jax.random.fold_in(rounds_key, number)
    ask_key, estimate_key, tell_key = keys.named(round_key, "ask", "estimate", "tell")
    asked, strategy_state = ask(ask_key, state.strategy)
    asked = np.asarray(asked, np.int32)
    names = [genotype.tobytes() for genotype in asked]
    fresh = [
      i for i, name in enumerate(names) if name not in known and names.index(name) == i
    ]
    if not fresh:
      scores = np.asarray([known[name] for name in names], np.float32)
      strategy_state, _ = tell(tell_key, strategy_state, asked, scores)
      state = state._replace(
        number=number + 1, idle=state.idle + 1, strategy=strategy_state
      )
      continue
    skipped = len(names) - len(fresh)
    estimator_state, evaluation = estimator.estimate(
      estimate_key, state.estimator, asked[fresh]
    )
    measured = np.asarray(evaluation.score, np.float32)
    known |= {names[i]: score for i, score in zip(fresh, measured)}
    scores = np.asarray([known[name] for name in names], np.float32)
    strategy_state, info = tell(tell_key, strategy_state, asked, scores)
    info = {name: np.asarray(value) for name, value in info.items()}
    spent = state.spent + np.cumsum(evaluation.cost, dtype=float)
    if budget is not None:
      fresh = fresh[: int((spent <= budget).sum())]
      evaluation = _first(evaluation, len(fresh))
    tried = state.genotypes.reshape(len(state.genotypes), asked.shape[1])
    state = SearchState(
      number=number + 1,
      idle=0,
      strategy=strategy_state,
      estimator=estimator_state,
      genotypes=np.concatenate([tried, asked[fresh]]),
      scores=np.concatenate([state.scores, measured[: len(fresh)]]),
      spent=float(spent[-1]),
    )
    if fresh:
      yield Round(
        number=number,
        genotypes=asked[fresh],
        evaluation=evaluation,
        info={k: v[fresh] if v.ndim else v.item() for k, v in info.items()},
        skipped=skipped,
      )
    on_state(state)


def _check_budget(budget: float | None) -> None:
  if budget is not None and not budget > 0:
    raise InputError(f"the budget must be positive, got {budget}")


def _first(evaluation: Evaluation, count: int) -> Evaluation:
  """The evaluation of the first children of a population."""
  if count == len(evaluation.score):
    return evaluation
  info = {name: values[:count] for name, values in evaluation.info.items()}
  score, cost, curve, _ = evaluation
  return Evaluation(score[:count], cost[:count], curve[:count], info)


class Best(NamedTuple):
  """The best child of a search: its genotype `[D]`, its score, when it was found."""

  genotype: np.ndarray
  score: float
  evaluations: int


def best(rounds: list[Round]) -> Best:
  """The child with the highest score; the first of equals.

  Where an estimator halves (its `info` has `rung`), the highest score of those that
  reached the highest rung: scores of different rungs are different measures.

  Raises:
    InputError: when every child failed.
  """
  genotypes = np.concatenate([r.genotypes for r in rounds])
  scores = np.concatenate([np.asarray(r.evaluation.score) for r in rounds])
  usable = np.isfinite(scores)
  if not usable.any():
    raise InputError(f"all {len(scores)} children failed; nothing to choose from")
  rung = np.concatenate([_rung_of(r.evaluation) for r in rounds])
  usable &= rung == rung[usable].max()
  winner = int(np.where(usable, scores, -np.inf).argmax())
  return Best(genotypes[winner], float(scores[winner]), winner + 1)


def _rung_of(evaluation: Evaluation) -> Any:
  """`[P]` the rung that each child reached; 0 of an estimator without rungs."""
  return evaluation.info.get("rung", np.zeros(len(evaluation.score), np.int32))


def evaluations(rounds: list[Round]) -> Evaluation:
  """The evaluations of several rounds as one, in order."""
  parts = [r.evaluation for r in rounds]
  info: dict[str, Any] = {
    name: [value for part in parts for value in part.info[name]]
    for name in parts[0].info
  }
  return Evaluation(
    score=np.concatenate([part.score for part in parts]),
    cost=np.concatenate([part.cost for part in parts]),
    curve=np.concatenate([part.curve for part in parts]),
    info=info,
  )


class Trajectories(NamedTuple):
  """Searches of S seeds, N evaluations each, in the order they were made.

  Attributes:
    genotypes: `[S, N, D]` int32; -1 where a search ended before its N-th evaluation.
    score: `[S, N]`; NaN likewise, and for a failed child.
    cost: `[S, N]`; 0 likewise.
    rung: `[S, N]` int32, the rung that an evaluation reached; 0 without rungs.
    num_evaluations: `[S]` int32, evaluations within the budget: with a budget in cost,
      those that ended before it was used up.
    ended: `[S]` bool, whether the budget ended the search before N evaluations were
      made; else they did, or nothing new could be found.
  """

  genotypes: np.ndarray
  score: np.ndarray
  cost: np.ndarray
  rung: np.ndarray
  num_evaluations: np.ndarray
  ended: np.ndarray

  def counted(self) -> np.ndarray:
    """`[S, N]` bool: which evaluations are within the budget."""
    return np.arange(self.score.shape[1]) < self.num_evaluations[:, None]

  def held(self) -> np.ndarray:
    """`[S, N]` the number of the best evaluation up to each; -1 before the first.

    Of those at the highest rung so far the one with the highest score, the first of
    equals; failed children do not count.
    """
    usable = self.counted() & np.isfinite(self.score)
    number = np.arange(self.score.shape[1])[None]
    held = np.full(self.score.shape, -1)
    for rung in np.unique(self.rung[usable]):
      score = np.where(usable & (self.rung == rung), self.score, -np.inf)
      best = np.maximum.accumulate(score, axis=1)
      before = np.concatenate([np.full((len(best), 1), -np.inf), best[:, :-1]], axis=1)
      at_rung = np.maximum.accumulate(np.where(best > before, number, -1), axis=1)
      held = np.where(at_rung >= 0, at_rung, held)
    return held

  def incumbents(self) -> tuple[np.ndarray, np.ndarray]:
    """The best child of each seed: genotypes `[S, D]` and evaluation numbers `[S]`.

    See `held`; of a search in which every child failed, its first one.
    """
    best = np.maximum(self.held()[:, -1], 0)
    return self.genotypes[np.arange(len(best)), best], best


class _Search(NamedTuple):
  """What the compiled loop carries of one seed."""

  strategy: Any
  genotypes: jax.Array  # [N, D]
  score: jax.Array  # [N]
  cost: jax.Array  # [N]
  rung: jax.Array  # [N]
  done: jax.Array  # evaluations so far
  spent: jax.Array
  idle: jax.Array  # rounds without a new child, on end
  ended: jax.Array


def run_compiled(
  strategy: Strategy,
  estimator: Estimator,
  keys_S: jax.Array,
  *,
  max_evaluations: int,
  budget: float | None = None,
  repeats: str = "free",
  max_seeds: int = 1024,
) -> Trajectories:
  """Runs whole searches as one compiled program, one for each key.

  Strategy and estimator are those of `run`, and a search does what `run` does with the
  same key: a repeated genotype gets its recorded score and costs nothing. The loop is a
  `while_loop` over rounds, vmapped over seeds inside; it ends when every seed is done,
  which a `scan` could not.

  Args:
    strategy: which children are tried.
    estimator: how good they are; jittable, and its state stays what it is.
    keys_S: `[S]` typed keys.
    max_evaluations: N, at most.
    budget: of cost, summed over evaluations; the evaluation that would pass it is not
      counted and ends the search. None for no such limit.
    repeats: "free", or "paid": a repeated genotype is evaluated again, at its cost
      (what the authors of NAS-Bench-201 did).
    max_seeds: at once. More are cut into equal pieces, which bounds the memory; pieces
      run side by side on the cores of a CPU, or each over all devices where there are
      several.

  Returns:
    `Trajectories`, on the host.

  Raises:
    InputError: when a number is not positive, or `repeats` is something else.
  """
  search = compile_search(
    strategy,
    estimator,
    len(keys_S),
    max_evaluations=max_evaluations,
    repeats=repeats,
    max_seeds=max_seeds,
  )
  return search(keys_S, budget)


def compile_search(
  strategy: Strategy,
  estimator: Estimator,
  num_seeds: int,
  *,
  max_evaluations: int,
  repeats: str = "free",
  max_seeds: int = 1024,
) -> Callable[..., Trajectories]:
  """Compiles what `run_compiled` runs, to be run several times.

  Returns:
    `(keys [S], budget=None, state=None) -> Trajectories`. `state` is an estimator's
    other than this one's first: another data set of the same table, for example.

  Raises:
    InputError: as `run_compiled`, which has the arguments.
  """
  if max_evaluations < 1 or max_seeds < 1 or num_seeds < 1:
    raise InputError("a search needs evaluations and at least one seed")
  if repeats not in ("free", "paid"):
    raise InputError(f"repeats are free or paid, got {repeats!r}")
  devices = jax.local_devices()
  on_one_cpu = len(devices) == 1 and devices[0].platform == "cpu"
  workers = profile.cores() if on_one_cpu else 1
  pieces = max(min(workers, num_seeds), math.ceil(num_seeds / max_seeds))
  size = math.ceil(num_seeds / pieces)
  size = math.ceil(size / len(devices)) * len(devices)
  # The last piece is filled up with repeats of the first seed.
  numbers = np.arange(math.ceil(num_seeds / size) * size)
  which = np.where(numbers < num_seeds, numbers, 0).reshape(-1, size)
  mesh = Mesh(np.array(devices), ("seeds",))
  by_seed = NamedSharding(mesh, PartitionSpec("seeds"))
  everywhere = NamedSharding(mesh, PartitionSpec())

  @functools.partial(jax.jit, in_shardings=(by_seed, everywhere, everywhere))
  def whole(keys_S, state, budget):
    return _search(
      strategy, estimator, keys_S, state, budget, max_evaluations, repeats == "paid"
    )

  first_state = estimator.init(jax.random.key(0))
  some_keys = jax.random.split(jax.random.key(0), size)
  compiled = whole.lower(some_keys, first_state, jnp.float32(0)).compile()

  def search(
    keys_S: jax.Array, budget: float | None = None, state: Any = None
  ) -> Trajectories:
    if len(keys_S) != num_seeds:
      raise InputError(f"compiled for {num_seeds} seeds, got {len(keys_S)}")
    _check_budget(budget)
    limit = jnp.float32(jnp.inf if budget is None else budget)
    given = first_state if state is None else state

    def piece(rows):
      keys = jax.device_put(keys_S[rows], by_seed)
      return jax.tree.map(np.asarray, compiled(keys, given, limit))

    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
      done = list(pool.map(piece, which))
    return Trajectories(*(np.concatenate(leaf)[:num_seeds] for leaf in zip(*done)))

  return search


def _search(
  strategy, estimator, keys_S, estimator_state, budget, max_evaluations, paid
) -> tuple[jax.Array, ...]:
  """The compiled loop: leaves of `Trajectories`."""

  def start(key):
    init_key, rounds_key = keys.named(key, "init", "rounds")
    strategy_state = strategy.init(keys.named(init_key, "strategy")[0])
    length = jax.eval_shape(strategy.ask, jax.random.key(0), strategy_state)[0].shape[1]
    state = _Search(
      strategy=strategy_state,
      genotypes=jnp.full((max_evaluations, length), -1, jnp.int32),
      score=jnp.full(max_evaluations, jnp.nan),
      cost=jnp.zeros(max_evaluations),
      rung=jnp.zeros(max_evaluations, jnp.int32),
      done=jnp.int32(0),
      spent=jnp.float32(0),
      idle=jnp.int32(0),
      ended=jnp.bool_(False),
    )
    return state, rounds_key

  def running(state):
    going = ~state.ended & (state.done < max_evaluations)
    return going & (state.idle < MAX_IDLE_ROUNDS)

  def one_round(state, rounds_key, number):
    round_key = jax.random.fold_in(rounds_key, number)
    ask_key, estimate_key, tell_key = keys.named(round_key, "ask", "estimate", "tell")
    asked, strategy_state = strategy.ask(ask_key, state.strategy)
    _, evaluation = estimator.estimate(estimate_key, estimator_state, asked)
    before_PN = (asked[:, None] == state.genotypes[None]).all(-1)
    twice_PP = jnp.tril((asked[:, None] == asked[None]).all(-1), -1)
    is_new = ~(before_PN.any(-1) | twice_PP.any(-1)) | paid
    # What is on record: of an earlier round, or earlier in this one.
    earlier = jnp.where(
      before_PN.any(-1),
      state.score[before_PN.argmax(-1)],
      evaluation.score[twice_PP.argmax(-1)],
    )
    score = jnp.where(is_new, evaluation.score, earlier)
    cost = jnp.where(is_new, evaluation.cost, 0.0)
    rung = _rung_of(evaluation)
    spent = state.spent + jnp.cumsum(cost)
    within = spent <= budget
    # A seed that is done goes on while others do, and nothing of it is kept.
    kept = is_new & within & running(state)
    place = jnp.where(kept, state.done + jnp.cumsum(kept) - 1, max_evaluations)
    # What is kept comes before what would pass the budget: if it alone fills all N
    # places it was those, and not the budget, that ended the search.
    total = state.done + kept.sum()
    strategy_state, _ = strategy.tell(tell_key, strategy_state, asked, score)
    return _Search(
      strategy=strategy_state,
      genotypes=state.genotypes.at[place].set(asked, mode="drop"),
      score=state.score.at[place].set(score, mode="drop"),
      cost=state.cost.at[place].set(cost, mode="drop"),
      rung=state.rung.at[place].set(jnp.asarray(rung, jnp.int32), mode="drop"),
      done=jnp.minimum(total, max_evaluations),
      spent=spent[-1],
      idle=jnp.where(is_new.any(), 0, state.idle + 1),
      ended=state.ended | (running(state) & ~within[-1] & (total < max_evaluations)),
    )

  state_S, rounds_key_S = jax.vmap(start)(keys_S)

  def body(carry):
    state_S, number = carry
    state_S = jax.vmap(one_round, (0, 0, None))(state_S, rounds_key_S, number)
    return state_S, number + 1

  def going(carry):
    return jax.vmap(running)(carry[0]).any()

  state_S, _ = jax.lax.while_loop(going, body, (state_S, jnp.int32(0)))
  return (
    state_S.genotypes,
    state_S.score,
    state_S.cost,
    state_S.rung,
    state_S.done,
    state_S.ended,
  )
