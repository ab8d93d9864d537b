"""Comparing search strategies over seeds: regret, tests, anytime curves. On the host.

Values are one number a seed; of strategies that ran on seeds of their own, seed i of
one has nothing to do with seed i of another.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import scipy.stats

from nasjax.core.types import InputError

Values = Sequence[float] | np.ndarray
_MAX_ENUMERATED = 20_000  # rearrangements of tied values that are all gone through
_MAX_PAIRS_NAMED = 3  # that show no difference; of more the number is said


class Summary(NamedTuple):
  """What a strategy reached over its seeds.

  Attributes:
    mean: over the seeds that are finite.
    std: their standard deviation (n - 1); NaN below two.
    sem: the standard error of the mean; NaN below two.
    low: lower end of Student's t interval of the mean; NaN below two.
    high: its upper end.
    n: how many seeds are finite.
  """

  mean: float
  std: float
  sem: float
  low: float
  high: float
  n: int


class Pair(NamedTuple):
  """Two strategies and whether the seeds tell them apart, see `pairwise`.

  Attributes:
    better: the one whose values rank higher, which is what is tested.
    worse: the other.
    difference: of the means; negative where a few values outweigh the ranks.
    p: of the one-sided test that `better` is no better.
    p_holm: what to compare with a significance level: corrected for the choice of the
      side and for the number of pairs.
  """

  better: str
  worse: str
  difference: float
  p: float
  p_holm: float


class Band(NamedTuple):
  """Mean over seeds and its 95 % interval at each grid point, `[G]` each."""

  mean: np.ndarray
  low: np.ndarray
  high: np.ndarray


def regret(values: Values, optimum: float) -> np.ndarray:
  """How far `[S]` values lie below the optimum, `[S]`; a NaN stays one.

  Negative where a value exceeds what was taken to be the optimum.
  """
  return optimum - np.asarray(values, float)


def summary(values: Values, confidence: float = 0.95) -> Summary:
  """Mean, spread and Student's t interval of `[S]` values.

  Values that are not finite (failed seeds) are left out; `n` says how many are not.

  Raises:
    InputError: when confidence is not in (0, 1).
  """
  _check_confidence(confidence)
  x = np.asarray(values, float)
  mean, std, half = (float(v[0]) for v in _moments(x.reshape(-1, 1), confidence))
  n = int(np.isfinite(x).sum())
  sem = std / math.sqrt(n) if n else math.nan
  return Summary(mean, std, sem, mean - half, mean + half, n)


def _check_confidence(confidence: float) -> None:
  if not 0 < confidence < 1:
    raise InputError(f"confidence must be in (0, 1), got {confidence}")


def _moments(values_SG: np.ndarray, confidence: float) -> tuple[np.ndarray, ...]:
  """Mean, standard deviation and half width of the interval, `[G]` each."""
  known = np.isfinite(values_SG)
  n = known.sum(0)
  some, several = np.where(n > 0, n, np.nan), np.where(n > 1, n, np.nan)
  mean = np.where(known, values_SG, 0.0).sum(0) / some
  squares = np.where(known, np.square(values_SG - mean), 0.0).sum(0)
  std = np.sqrt(squares / (several - 1))
  half = scipy.stats.t.ppf((1 + confidence) / 2, several - 1) * std / np.sqrt(several)
  return mean, std, half


def holm(p_values: Values) -> np.ndarray:
  """Adjusted p values `[M]`: each may be compared with the level of the whole family.

  Holm, "A simple sequentially rejective multiple test procedure", 1979: the i-th
  smallest of M is multiplied by M - i + 1, may not be below the ones before it, and is
  at most 1.

  Raises:
    InputError: when a value is not in [0, 1].
  """
  p = np.asarray(p_values, float)
  if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
    raise InputError(f"p values must be [M] in [0, 1], got {p_values}")
  order = np.argsort(p, kind="stable")
  adjusted = np.empty_like(p)
  steps = np.arange(len(p), 0, -1) * p[order]
  adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
  return adjusted


def pairwise(
  values: Mapping[str, Values],
  alternative: Literal["greater", "less"] = "greater",
  *,
  paired: bool = False,
) -> list[Pair]:
  """Tests every pair of strategies, the one that ranks higher against the other.

  Unpaired, the Mann-Whitney U test: the null hypothesis is that both strategies draw
  from one distribution, the alternative that the better one's values tend to be the
  greater. Paired (only where seed i means the same for all: the same data, the same
  first children), Wilcoxon's signed-rank test of the differences by seed: the null
  hypothesis is that they lie symmetrically about zero. Both are exact for few seeds.

  `p` is one-sided. Which side is tested is read off the same ranks (means decide where
  these are even), so `p` alone is half of what it would have to be: `p_holm` is Holm's
  adjustment, over all pairs, of min(2 p, 1), that is of the two-sided test.

  Args:
    values: `[S]` of each strategy, by name. What is not finite (a failed seed) is left
      out, with its partner if paired: a strategy whose seeds fail looks better than it
      is.
    alternative: "greater" when higher values are better, "less" when lower ones are.
    paired: whether seeds correspond.

  Returns:
    A `Pair` for each two strategies, in the order of their names in `values`.

  Raises:
    InputError: for fewer than two strategies, fewer than two finite seeds of one, or
      numbers of seeds that differ when paired.
  """
  if alternative not in ("greater", "less"):
    raise InputError(f"alternative must be greater or less, got {alternative!r}")
  if len(values) < 2:
    raise InputError(f"a comparison needs two strategies, got {list(values)}")
  found = [
    _compare(a, b, values, alternative, paired)
    for a, b in itertools.combinations(values, 2)
  ]
  adjusted = holm([min(2 * pair.p, 1.0) for pair in found])
  return [pair._replace(p_holm=float(p)) for pair, p in zip(found, adjusted)]


def _compare(
  first: str, second: str, values: Mapping[str, Values], alternative: str, paired: bool
) -> Pair:
  sign = 1.0 if alternative == "greater" else -1.0
  a, b = (sign * np.asarray(values[name], float) for name in (first, second))
  if paired:
    if len(a) != len(b):
      raise InputError(f"{first} has {len(a)} seeds and {second} {len(b)}: not paired")
    both = np.isfinite(a) & np.isfinite(b)
    a, b = a[both], b[both]
  a, b = a[np.isfinite(a)], b[np.isfinite(b)]
  if min(len(a), len(b)) < 2:
    raise InputError(f"{first} and {second} need two finite seeds each to be compared")
  lead = _paired_lead(a - b) if paired else _lead(a, b)
  if lead < 0 or (lead == 0 and b.mean() > a.mean()):
    first, second, a, b = second, first, b, a
  p = _signed_rank(a - b) if paired else _mann_whitney(a, b)
  return Pair(first, second, float(a.mean() - b.mean()), p, math.nan)


def _lead(a: np.ndarray, b: np.ndarray) -> float:
  """Mann-Whitney's U of `a` less that of `b`: above zero where `a` ranks higher."""
  ranks = scipy.stats.rankdata(np.concatenate([a, b]))[: len(a)]
  u = ranks.sum() - len(a) * (len(a) + 1) / 2
  return float(2 * u - len(a) * len(b))


def _paired_lead(differences: np.ndarray) -> float:
  """Wilcoxon's sum of the positive ranks less that of the negative ones."""
  moved = differences[differences != 0]
  return float((np.sign(moved) * scipy.stats.rankdata(np.abs(moved))).sum())


def _signed_rank(differences: np.ndarray) -> float:
  if not differences.any():
    return 1.0
  return float(scipy.stats.wilcoxon(differences, alternative="greater").pvalue)


def _mann_whitney(a: np.ndarray, b: np.ndarray) -> float:
  together = np.concatenate([a, b])
  if (together == together[0]).all():
    return 1.0
  method: str | scipy.stats.PermutationMethod = "auto"
  tied = len(np.unique(together)) < len(together)
  if tied and math.comb(len(together), len(a)) <= _MAX_ENUMERATED:
    # Seeds that reach the same child tie, and scipy's exact distribution knows no ties.
    method = scipy.stats.PermutationMethod(n_resamples=_MAX_ENUMERATED)
  test = scipy.stats.mannwhitneyu(a, b, alternative="greater", method=method)
  return float(test.pvalue)


def anytime(curves: np.ndarray, budget: np.ndarray, grid: Values) -> np.ndarray:
  """The incumbent's value at each budget of a grid, `[S, G]`.

  A step function: the value after the last evaluation whose cumulative cost is at most
  the grid's, so of evaluations at equal cost the last; NaN before the first. Past the
  end of a run its last value holds.

  Args:
    curves: `[S, N]` incumbent values, as of `analysis.incumbent_curve`.
    budget: `[S, N]` cumulative cost after each evaluation; NaN after a run's end.
    grid: `[G]` costs, in any order.

  Raises:
    InputError: for shapes that differ or a budget that falls.
  """
  values, costs = np.asarray(curves, float), np.asarray(budget, float)
  points = np.asarray(grid, float)
  if values.ndim != 2 or values.shape != costs.shape or points.ndim != 1:
    shapes = f"{values.shape}, {costs.shape} and {points.shape}"
    raise InputError(f"curves and budget must be [S, N] and grid [G], got {shapes}")
  costs = np.where(np.isnan(costs), np.inf, costs)
  if (costs[:, 1:] < costs[:, :-1]).any():
    raise InputError("a cumulative budget must not fall, nor be NaN before its end")
  steps = [np.searchsorted(row, points, side="right") for row in costs]
  done = np.array(steps, int).reshape(len(costs), len(points))
  before = np.full((len(values), 1), np.nan)
  return np.take_along_axis(np.concatenate([before, values], 1), done, axis=1)


def band(values_SG: np.ndarray, confidence: float = 0.95) -> Band:
  """Mean over seeds at each grid point, with Student's t interval.

  NaN seeds are left out, so early means are over the seeds that have a value by then:
  NaN where none has, and an interval where at least two have.

  Raises:
    InputError: when values are not `[S, G]` or confidence is not in (0, 1).
  """
  _check_confidence(confidence)
  values = np.asarray(values_SG, float)
  if values.ndim != 2:
    raise InputError(f"a band needs values [S, G], got {values.shape}")
  mean, _, half = _moments(values, confidence)
  return Band(mean, mean - half, mean + half)


def top_k_regret(predicted: Values, true: Values, k: int) -> float:
  """The best true value of all less the best of the k that were predicted highest.

  Of equal predictions the first ones count as higher; a prediction that is not finite
  counts as the lowest. True values that are not finite (failed children) are never the
  best; NaN when the chosen ones, or all, are of that kind.

  Args:
    predicted: `[N]`.
    true: `[N]`, in the same order.
    k: from 1 to N.

  Raises:
    InputError: for shapes that differ or k out of range.
  """
  guess, truth = np.asarray(predicted, float), np.asarray(true, float)
  if guess.ndim != 1 or guess.shape != truth.shape or not 1 <= k <= len(guess):
    raise InputError(f"no top {k} of shapes {guess.shape} and {truth.shape}")
  guess = np.where(np.isfinite(guess), guess, -np.inf)
  truth = np.where(np.isfinite(truth), truth, -np.inf)
  chosen = truth[np.argsort(-guess, kind="stable")[:k]].max()
  return float(truth.max() - chosen) if np.isfinite(chosen) else math.nan


def sentence(
  pairs: Sequence[Pair],
  *,
  alpha: float = 0.05,
  scale: float = 100.0,
  unit: str = "points",
) -> str:
  """What the tests of `pairwise` say, in one sentence, surest first.

  Args:
    pairs: of `pairwise`, at least one.
    alpha: level below which `p_holm` counts as a difference.
    scale: what differences are multiplied by, 100 for accuracies in points.
    unit: the name of that.

  Raises:
    InputError: without pairs.
  """
  if not pairs:
    raise InputError("there are no pairs to speak of")
  told: dict[str, list[str]] = {}
  for pair in sorted(pairs, key=lambda pair: pair.p_holm):
    if pair.p_holm < alpha:
      p = "p < 0.001" if pair.p_holm < 0.001 else f"p = {pair.p_holm:.2g}"
      after = "" if told else " after Holm's correction"
      difference = f"difference {pair.difference * scale:.3g} {unit}"
      if pair.difference < 0:
        difference = (
          f"by ranks; its mean is {-pair.difference * scale:.3g} {unit} worse"
        )
      told.setdefault(pair.better, []).append(
        f"{pair.worse} ({difference}, {p}{after})"
      )
  parts = [f"{name} is better than {_listed(worse)}" for name, worse in told.items()]
  unclear = [pair for pair in pairs if pair.p_holm >= alpha]
  if len(unclear) > _MAX_PAIRS_NAMED and not told:
    names = dict.fromkeys(name for pair in pairs for name in (pair.better, pair.worse))
    parts.append(f"no difference is shown between any two of {_listed([*names])}")
  elif len(unclear) > _MAX_PAIRS_NAMED:
    parts.append(f"no difference is shown for the other {len(unclear)} pairs")
  elif unclear:
    between = [f"between {pair.better} and {pair.worse}" for pair in unclear]
    parts.append(f"{', or '.join(between)} no difference is shown")
  return "; ".join(parts) + "."


def _listed(words: Sequence[str]) -> str:
  return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
