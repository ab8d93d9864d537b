"""Successive halving and Hyperband over an estimator that knows several fidelities.

Everybody is measured cheaply, the best are measured better, and so on. Successive
halving is Jamieson and Talwalkar's ("Non-stochastic best arm identification and
hyperparameter optimization", AISTATS 2016); Hyperband, which hedges against a first
rung that misleads, is by Li et al. (JMLR 18, 2018).

Both work on the population that they are given, so a child's evaluation depends on its
neighbours. In `search.run_compiled` a genotype that was seen before still takes part in
its round (its score stays the recorded one), where `search.run` leaves it out: searches
with these wrappers agree in both as long as nothing is asked for twice.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nasjax.core import keys
from nasjax.core.types import Array, Evaluation, InputError
from nasjax.estimators.base import Estimator
from nasjax.training.rungs import check_rungs


def successive_halving(
  estimator: Estimator, *, rungs: Sequence[int], eta: int = 3, resumed: bool = True
) -> Estimator:
  """Measures a population at the first rung, the best 1 / eta at the next, and so on.

  Args:
    estimator: what measures; jittable for a jittable result, of a score, a cost and a
      curve at each rung.
    rungs: fidelities of the estimator, ascending; the last is the full one.
    eta: of n children at a rung the best ceil(n / eta) go on. (Rounded up, where
      Hyperband's algorithm 1 rounds down: the only child goes on to the end.)
    resumed: training goes on from rung to rung, so a child costs what its last rung
      does; False where a rung is a training of its own, as the 12 epochs of
      NAS-Bench-201 are: then costs add up.

  Returns:
    An `Estimator`. A child's score is the one at the highest rung that it reached, as
    it is: scores of different rungs stand side by side, and a child that was stopped
    may have the higher one. (`search.best` looks at the highest rung alone.) Its curve
    is that of its rung, NaN beyond. `info` has `rung [P]`, the index of that rung, and
    nothing of the wrapped one's. A child whose score is not finite does not go on.
    Equals are told apart by a draw that depends on the genotype alone, so that a
    permuted population has permuted results.

  Raises:
    InputError: the rungs do not rise or eta is below 2; from `estimate`, for a fidelity
      that is not the last rung.
  """
  check_rungs(rungs, eta)

  def evaluate(key, state, genotypes, draw):
    return _halve(estimator, key, state, genotypes, draw, rungs, 0, eta, resumed)

  return _wrapped(estimator, rungs, evaluate)


def hyperband(
  estimator: Estimator, *, rungs: Sequence[int], eta: int = 3, resumed: bool = True
) -> Estimator:
  """Splits a population over brackets of successive halving, by their first rung.

  The brackets share the population as they do in Li et al.'s algorithm 1 (see
  `bracket_sizes`), where it says how many configurations there are; who goes where is
  drawn, by genotype. Their rungs are a factor eta apart there, which is not asked for
  here.

  Args:
    estimator: see `successive_halving`, as are the others.
    rungs: of the first bracket; another bracket leaves the first ones out, the last has
      but the full fidelity.
    eta: one of so many goes on.
    resumed: whether costs do not add up.

  Returns:
    An `Estimator` as `successive_halving`'s; `info` has `bracket [P]` too, the index of
    the rung at which a child began. Children are compared inside their bracket only.

  Raises:
    InputError: see `successive_halving`.
  """
  check_rungs(rungs, eta)

  def evaluate(key, state, genotypes, draw):
    split_key, key = keys.named(key, "brackets", "rungs")
    place = jax.vmap(jax.random.uniform)(keys.for_genotypes(split_key, genotypes))
    order = jnp.argsort(place)
    sizes = bracket_sizes(len(genotypes), len(rungs), eta)
    parts = []
    for first, members in enumerate(jnp.split(order, np.cumsum(sizes)[:-1])):
      if not len(members):
        continue
      state, part = _halve(
        estimator,
        jax.random.fold_in(key, first),
        state,
        genotypes[members],
        draw[members],
        rungs,
        first,
        eta,
        resumed,
      )
      bracket = jnp.full(len(members), first)
      parts.append(part._replace(info={**part.info, "bracket": bracket}))
    width = max(part.curve.shape[1] for part in parts)
    parts = [part._replace(curve=_widened(part.curve, width)) for part in parts]
    back = jnp.argsort(order)
    return state, jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[back], *parts)

  return _wrapped(estimator, rungs, evaluate)


def brackets(num_rungs: int, eta: int) -> tuple[int, ...]:
  """How many configurations the brackets of Hyperband have, the longest first.

  Bracket s, with s + 1 rungs of R, has ceil(R / (s + 1) * eta^s) (Li et al. 2018,
  algorithm 1, with their s_max = R - 1): each spends about the same.
  """
  return tuple(
    math.ceil(num_rungs * eta**s / (s + 1)) for s in reversed(range(num_rungs))
  )


def bracket_sizes(population: int, num_rungs: int, eta: int) -> tuple[int, ...]:
  """How many of a population each bracket of Hyperband gets, the longest first.

  A population of another size than `brackets` have together is shared out in
  proportion, what is left over to the largest remainders.
  """
  wanted = brackets(num_rungs, eta)
  shares = [divmod(population * n, sum(wanted)) for n in wanted]
  sizes = [whole for whole, _ in shares]
  by_rest = sorted(range(num_rungs), key=lambda i: -shares[i][1])
  for i in by_rest[: population - sum(sizes)]:
    sizes[i] += 1
  return tuple(sizes)


def _wrapped(estimator: Estimator, rungs: Sequence[int], evaluate: Any) -> Estimator:
  """What both share: the fidelity is checked, ties get their draws."""

  def estimate(
    key: jax.Array, state: Any, genotypes: Array, fidelity: int | None = None
  ) -> tuple[Any, Evaluation]:
    if fidelity not in (None, rungs[-1]):
      raise InputError(
        f"these rungs end at {rungs[-1]}; build another estimator for {fidelity}"
      )
    genotypes = jnp.asarray(genotypes)
    tie_key, key = keys.named(key, "ties", "estimate")
    draw = jax.vmap(jax.random.uniform)(keys.for_genotypes(tie_key, genotypes))
    return evaluate(key, state, genotypes, draw)

  return Estimator(estimator.init, estimate)


def _halve(
  estimator: Estimator,
  key: jax.Array,
  state: Any,
  genotypes: jax.Array,
  draw: jax.Array,
  rungs: Sequence[int],
  first: int,
  eta: int,
  resumed: bool,
) -> tuple[Any, Evaluation]:
  """Halving from rung `first` on; `draw [P]` decides between equals."""

  def key_of(rung: int) -> jax.Array:
    # A training that goes on is one training: all rungs measure it with its key.
    return jax.random.clone(key) if resumed else jax.random.fold_in(key, rung)

  state, whole = estimator.estimate(key_of(first), state, genotypes, rungs[first])
  score, cost, curve = map(jnp.asarray, whole[:3])
  at = jnp.full(len(genotypes), first)
  places = math.ceil(len(genotypes) / eta)
  for rung in range(first + 1, len(rungs)):
    # A child counts with those of the highest rung so far only; the others are last.
    here = (at == rung - 1) & jnp.isfinite(score)
    members = jnp.lexsort((draw, -score, ~here))[:places]
    state, part = estimator.estimate(
      key_of(rung), state, genotypes[members], rungs[rung]
    )
    # Where too many failed, those that were put into the last places are dropped.
    to = jnp.where(here[members], members, len(genotypes))
    spent = part.cost if resumed else part.cost + cost[members]
    width = max(curve.shape[1], part.curve.shape[1])
    curve, new_curve = _widened(curve, width), _widened(part.curve, width)
    score, cost, curve, at = (
      old.at[to].set(new, mode="drop")
      for old, new in zip(
        (score, cost, curve, at), (part.score, spent, new_curve, rung)
      )
    )
    places = math.ceil(places / eta)
  return state, Evaluation(score, cost, curve, {"rung": at})


def _widened(curve: Array, width: int) -> jax.Array:
  """A curve `[P, T]` with NaN up to `width` epochs."""
  missing = width - curve.shape[1]
  return jnp.pad(jnp.asarray(curve), ((0, 0), (0, missing)), constant_values=np.nan)
