import math

import numpy as np
import pytest

from nasjax.results import analysis


def scored(*scores):
  return [{"index": i, "score": score} for i, score in enumerate(scores)]


def indices(records):
  return [record["index"] for record in records]


def test_leaderboard_puts_failed_children_last_and_ties_in_order_of_evaluation():
  children = scored(0.5, None, 0.9, float("nan"), -3.0, 0.9, float("inf"))
  assert indices(analysis.leaderboard(children)) == [2, 5, 0, 4, 1, 3, 6]
  assert indices(analysis.leaderboard(children, top=2)) == [2, 5]
  assert analysis.leaderboard([]) == []


def test_best_is_the_first_highest_and_none_when_all_failed():
  assert analysis.best(scored(None, 0.1, 0.3, 0.3))["index"] == 2
  assert analysis.best(scored(None, float("nan"))) is None
  assert analysis.best([]) is None


def test_incumbent_curve_passes_over_failed_children():
  curve = analysis.incumbent_curve([None, 0.2, float("nan"), 0.1, 0.6])
  np.testing.assert_array_equal(curve, [np.nan, 0.2, 0.2, 0.2, 0.6])
  assert len(analysis.incumbent_curve([])) == 0


def test_kendall_tau_by_hand_and_without_what_is_not_finite():
  # Pairs of (1, 2, 3, 4) and (1, 3, 2, 4): five agree, one does not.
  assert analysis.kendall_tau([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(4 / 6)
  with_nan = analysis.kendall_tau([1, 2, np.nan, 3, 4], [1, 3, 9, 2, 4])
  assert with_nan == pytest.approx(4 / 6)


def test_kendall_tau_is_none_where_it_says_nothing():
  assert analysis.kendall_tau([1, 2, np.nan], [1, 2, 3]) is None
  assert analysis.kendall_tau([1, 1, 1], [1, 2, 3]) is None


def test_hoeffding_bound_by_hand_and_its_scaling():
  # ln(2 * 100 / 0.05) = ln 4000 = 8.29405; / (2 * 288) = 0.0143994
  assert analysis.hoeffding_bound(100, 288) == pytest.approx(math.sqrt(0.0143994), 1e-5)
  halved = analysis.hoeffding_bound(100, 4 * 288)
  assert halved == pytest.approx(analysis.hoeffding_bound(100, 288) / 2)


def test_hoeffding_bound_holds_for_all_hypotheses_at_once():
  rng = np.random.default_rng(0)
  num_hypotheses, rows, trials = 20, 50, 2000
  bound = analysis.hoeffding_bound(num_hypotheses, rows, delta=0.2)
  means = rng.binomial(rows, 0.5, (trials, num_hypotheses)) / rows
  missed = (np.abs(means - 0.5).max(axis=1) > bound).mean()
  assert missed <= 0.2
  # Half of it does not hold: the bound is not merely large.
  assert (np.abs(means - 0.5).max(axis=1) > bound / 2).mean() > 0.2


@pytest.mark.parametrize("arguments", [(0, 10), (10, 0), (10, 10, 0.0), (10, 10, 1.0)])
def test_hoeffding_bound_refuses_what_has_no_bound(arguments):
  with pytest.raises(ValueError, match="no bound"):
    analysis.hoeffding_bound(*arguments)


def test_interval_by_the_table_of_students_t():
  # t(0.975, 4 degrees) = 2.77645; std of 1..5 is sqrt(2.5)
  found = analysis.mean_and_interval([1, 2, 3, 4, 5])
  half = 2.77645 * math.sqrt(2.5 / 5)
  assert found.mean == 3
  assert found.std == pytest.approx(math.sqrt(2.5))
  assert (found.low, found.high) == pytest.approx((3 - half, 3 + half), abs=1e-4)


def test_one_value_has_no_interval_and_none_is_an_error():
  assert math.isnan(analysis.mean_and_interval([2.0]).low)
  with pytest.raises(ValueError, match="no interval"):
    analysis.mean_and_interval([])
