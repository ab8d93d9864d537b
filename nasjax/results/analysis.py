"""Figures that the report draws from records."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.stats


def finite_scores(records: Sequence[dict[str, Any]]) -> np.ndarray:
  """The scores `[N]` of records, NaN for a failed child."""
  values = np.array([_score(r) for r in records], float)
  return np.where(np.isfinite(values), values, np.nan)


def _score(record: dict[str, Any]) -> float:
  score = record.get("score")
  return math.nan if score is None else score


def leaderboard(records: Sequence[dict[str, Any]], top: int = 10) -> list[dict]:
  """The records with the highest scores, best first; failed ones last.

  Of equal scores the child that was evaluated first comes first.
  """
  scores = np.nan_to_num(finite_scores(records), nan=-np.inf)
  return [records[i] for i in np.argsort(-scores, kind="stable")[:top]]


def best(records: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
  """The record with the highest score; None when no child has one."""
  first = leaderboard(records, 1)
  return first[0] if first and math.isfinite(_score(first[0])) else None


def incumbent_curve(scores: Sequence[float | None] | np.ndarray) -> np.ndarray:
  """Best score so far after each child, `[N]`; NaN until one did not fail."""
  values = np.array([np.nan if s is None else s for s in scores], float)
  return np.fmax.accumulate(values) if len(values) else values


def kendall_tau(
  a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray
) -> float | None:
  """Kendall's tau-b over the pairs that are finite; None with fewer than three.

  None too when one side is constant, where a rank correlation means nothing.
  """
  a, b = np.asarray(a, float), np.asarray(b, float)
  both = np.isfinite(a) & np.isfinite(b)
  if both.sum() < 3:
    return None
  tau = float(scipy.stats.kendalltau(a[both], b[both]).statistic)
  return tau if math.isfinite(tau) else None


def hoeffding_bound(num_hypotheses: int, num_rows: int, delta: float = 0.05) -> float:
  """How far a validation accuracy may be from the true one, for all tried at once.

  With probability 1 - delta the accuracy of every one of M architectures fixed before
  the rows were drawn lies within sqrt(ln(2 M / delta) / (2 n)) of its mean over n rows:
  Hoeffding 1963 with a union bound, the survey's appendix B. A strategy that chooses
  the next child from earlier scores on the same rows is not covered: the bound then
  says the least that must be doubted.

  Args:
    num_hypotheses: M.
    num_rows: n.
    delta: probability that it does not hold.

  Returns:
    The half width, in units of the accuracy (0 to 1).

  Raises:
    ValueError: when M or n is not positive, or delta not in (0, 1).
  """
  if num_hypotheses < 1 or num_rows < 1 or not 0 < delta < 1:
    raise ValueError(f"no bound for M={num_hypotheses}, n={num_rows}, delta={delta}")
  return math.sqrt(math.log(2 * num_hypotheses / delta) / (2 * num_rows))


class Interval(NamedTuple):
  """Mean, standard deviation, and a confidence interval of the mean."""

  mean: float
  std: float
  low: float
  high: float


def mean_and_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
  """Mean of `[N]` with Student's t interval; one value has no interval (NaN).

  Raises:
    ValueError: no values, or confidence not in (0, 1).
  """
  if not len(values) or not 0 < confidence < 1:
    raise ValueError(f"no interval of {len(values)} values at {confidence}")
  x = np.asarray(values, float)
  if len(x) < 2:
    return Interval(float(x.mean()), math.nan, math.nan, math.nan)
  std = float(x.std(ddof=1))
  half = scipy.stats.t.ppf((1 + confidence) / 2, len(x) - 1) * std / math.sqrt(len(x))
  mean = float(x.mean())
  return Interval(mean, std, mean - float(half), mean + float(half))
