"""Cheaper estimates of what a table's architectures score: `compare_fidelities`'s."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from nasjax.core import keys
from nasjax.data.benchmarks import Measured
from nasjax.predictors import curves, encodings, regressors
from nasjax.results.tables import counted
from nasjax.spaces.base import Space

FULL, EPOCHS, ROWS = "full training", "fewer epochs", "fewer rows"
SEED, CURVE, PREDICTOR = "another seed", "curve extrapolated", "predictor"
FEWEST = 20  # architectures that a rank correlation is worth computing of
_CHUNK = 1024  # curves that are extrapolated at one go
_NOISE = 0.01  # of an accuracy over some hundred validation rows

_init = jax.jit(
  regressors.init, static_argnums=1, static_argnames=("members", "hidden")
)
_fit = jax.jit(regressors.fit, static_argnames="steps")
_predict = jax.jit(regressors.predict)


class Estimate(NamedTuple):
  """A cheaper estimate of the same architectures.

  Attributes:
    kind: what sort of estimate.
    name: which of them.
    cost: of all that it takes, as a share of training all architectures fully; NaN
      where it is not known.
    repeats: what it says, and of which architectures, against what: `(predicted [n],
      index [n], true validation [n])`, one for each draw or seed.
  """

  kind: str
  name: str
  cost: float
  repeats: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]


def groups_of(measured: Measured, chosen: np.ndarray) -> list[np.ndarray]:
  """Which architectures are ranked together: all, then those with what not all have.

  Args:
    measured: of one data set.
    chosen: `[n]` rows of it, ascending.

  Returns:
    Rows, ascending; the first are all that were chosen.
  """
  partial = [*measured.fewer_rows.values()]
  seeds = [_known(measured, s)[chosen] for s in other_seeds(measured)]
  if seeds and not any(known.all() for known in seeds):
    assert measured.per_seed is not None
    partial += [measured.per_seed[:, s] for s in other_seeds(measured)]
  found = {tuple(chosen): chosen}
  for column in partial:
    has = chosen[np.isfinite(column[chosen])]
    if len(has) >= FEWEST:
      found.setdefault(tuple(has), has)
  return list(found.values())


def _known(measured: Measured, s: int) -> np.ndarray:
  assert measured.per_seed is not None
  return np.isfinite(measured.per_seed[:, s])


def other_seeds(measured: Measured) -> list[int]:
  """Training seeds whose score is not the table's own."""
  if measured.per_seed is None:
    return []
  own = measured.valid[-1]
  both = [np.isfinite(column) for column in measured.per_seed.T]
  return [
    s
    for s, known in enumerate(both)
    if known.any() and (measured.per_seed[known, s] != own[known]).any()
  ]


def view(measured: Measured, group: np.ndarray) -> Measured:
  """Some architectures of a table."""
  seeds = measured.per_seed
  return measured._replace(
    valid=measured.valid[:, group],
    test=measured.test[group],
    seconds=measured.seconds[:, group],
    per_seed=None if seeds is None else seeds[group],
    fewer_rows={n: column[group] for n, column in measured.fewer_rows.items()},
    figures={},
  )


def estimates(
  config: Any,
  key: jax.Array,
  space: Space,
  genotypes: np.ndarray,
  measured: Measured,
  full_rows: int | None,
) -> Iterator[Estimate]:
  """Every estimate that all of these architectures have; the full training first."""
  truth = measured.valid[-1]
  everything = np.arange(len(truth))
  full = measured.epochs[-1]
  total = measured.seconds[-1].astype(float).sum()

  def one(kind, name, cost, predicted):
    return Estimate(kind, name, float(cost), [(predicted, everything, truth)])

  yield one(FULL, counted(full, "epoch"), 1.0, truth)
  shares = measured.seconds.astype(float).sum(-1) / total
  for level, epochs in enumerate(measured.epochs[:-1]):
    yield one(EPOCHS, counted(epochs, "epoch"), shares[level], measured.valid[level])
  for rows, column in measured.fewer_rows.items():
    if np.isfinite(column).all():
      cost = rows / full_rows if full_rows else math.nan
      yield one(ROWS, counted(rows, "row"), cost, column)
  yield from _another_seed(measured)
  yield from _extrapolated(config, measured, shares)
  yield from _predicted(config, key, space, genotypes, measured)


def _another_seed(measured: Measured) -> Iterator[Estimate]:
  """Each other seed against the mean of the seeds that are not it.

  Against the table's own score where that is a mean over seeds, a seed would rank
  itself in part.
  """
  everything = np.arange(len(measured.test))
  repeats = []
  for s in other_seeds(measured):
    assert measured.per_seed is not None
    rest = np.delete(measured.per_seed, s, axis=1)
    mine, known = measured.per_seed[:, s], np.isfinite(rest)
    if np.isfinite(mine).all() and known.any(-1).all():
      others = np.where(known, rest, 0).sum(-1) / known.sum(-1)
      repeats.append((mine, everything, others))
  if repeats:
    yield Estimate(SEED, f"{counted(measured.epochs[-1], 'epoch')}", 1.0, repeats)


def _extrapolated(config, measured: Measured, shares) -> Iterator[Estimate]:
  """Learning curves from their first fidelities, at the full one."""
  unit, last = measured.epochs[0], measured.epochs[-1]
  count = len(measured.epochs)
  if count < 3 or (measured.epochs % unit).any():
    return  # curves are fitted at the epochs 1, 2, ... of some unit
  width = int(measured.epochs[-2] // unit)
  everything = np.arange(len(measured.test))
  for points in config.curve_points:
    if points >= count:
      continue
    curve = np.full((len(everything), width), np.nan, np.float32)
    curve[:, measured.epochs[:points] // unit - 1] = measured.valid[:points].T
    found = np.empty(len(everything))
    for start in range(0, len(curve), _CHUNK):
      part = curve[start : start + _CHUNK]
      # Padded to one shape: one program for all chunks and points.
      padded = np.pad(part, ((0, _CHUNK - len(part)), (0, 0)), constant_values=np.nan)
      done = curves.extrapolate(padded, int(last // unit), noise=_NOISE)
      found[start : start + len(part)] = np.asarray(done.predicted)[: len(part)]
    name = f"from {counted(measured.epochs[points - 1], 'epoch')}"
    repeats = [(found, everything, measured.valid[-1])]
    yield Estimate(CURVE, name, float(shares[points - 1]), repeats)


def _predicted(config, key, space, genotypes, measured) -> Iterator[Estimate]:
  """Ensembles that learned from a few full trainings, on all the others."""
  truth, seconds = measured.valid[-1], measured.seconds[-1].astype(float)
  features: dict[str, np.ndarray] = {}
  for name in config.encodings:
    encode = jax.jit(jax.vmap(encodings.ENCODINGS[name](space)))
    x = np.asarray(encode(jnp.asarray(genotypes)))
    # A space without paths has one-hot features by both names.
    if not any(np.array_equal(x, other) for other in features.values()):
      features[name] = x
  sizes = [n for n in sorted(set(config.trained)) if len(truth) - n >= FEWEST]
  for name, x in features.items():
    for n in sizes:
      repeats, costs = [], []
      for draw in range(config.draws):
        # The same architectures for each kind of features.
        drawn = jax.random.fold_in(jax.random.fold_in(key, n), draw)
        order_key, fit_key = keys.named(drawn, "order", "fit")
        order = np.asarray(jax.random.permutation(order_key, len(truth)))
        seen, rest = order[:n], order[n:]
        said = _learn(config, fit_key, x, seen, truth[seen], max(sizes))
        repeats.append((said[rest], rest, truth[rest]))
        costs.append(seconds[seen].sum() / seconds.sum())
      kind = f"{PREDICTOR}, {name.replace('_', '-')}"
      yield Estimate(kind, f"{n} trained", float(np.mean(costs)), repeats)


def _learn(config, key, x, seen, scores, most) -> np.ndarray:
  """What a new ensemble says of all `[N]` after it learned from `[n]` of them."""
  init_key, fit_key = keys.named(key, "init", "fit")
  new = _init(init_key, x.shape[1], members=config.members, hidden=config.hidden)
  # Padded to the most that is learned from, with scores that `fit` leaves out: one
  # program for all numbers.
  features = np.zeros((most, x.shape[1]), np.float32)
  target = np.full(most, np.nan, np.float32)
  features[: len(seen)] = x[seen]
  if config.target == "rank":
    scores = scipy.stats.rankdata(scores) / len(scores)
  target[: len(seen)] = scores
  fitted = _fit(fit_key, new, features, target, steps=config.steps)
  return np.asarray(_predict(fitted, x)[0])
