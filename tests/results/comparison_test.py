import itertools
import math

import numpy as np
import pytest
import scipy.stats

from nasjax.core.types import InputError
from nasjax.results import comparison
from nasjax.results.comparison import Pair

NAN = math.nan


def test_regret_keeps_failed_seeds_and_sides():
  found = comparison.regret([0.9, NAN, 0.96], 0.95)
  np.testing.assert_allclose(found, [0.05, NAN, -0.01], atol=1e-12)


def test_a_summary_by_hand():
  # Mean 2, std sqrt((1 + 0 + 1) / 2) = 1; t with two degrees of freedom is 4.302653.
  found = comparison.summary([1.0, 2.0, NAN, 3.0, math.inf])
  half = 4.302653 / math.sqrt(3)
  expected = (2.0, 1.0, 1 / math.sqrt(3), 2 - half, 2 + half, 3)
  np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.filterwarnings("error")
def test_a_summary_of_one_seed_or_none_has_no_spread():
  one, none = comparison.summary([0.5, NAN]), comparison.summary([])
  assert (one.mean, one.n, none.n) == (0.5, 1, 0)
  assert all(math.isnan(v) for v in (*one[1:5], *none[:5]))


@pytest.mark.parametrize(
  ("p_values", "expected"),
  [
    # 4 x 0.01, 3 x 0.015, 2 x 0.03, 1 x 0.04 pulled up to 0.06.
    ([0.03, 0.01, 0.04, 0.015], [0.06, 0.04, 0.06, 0.045]),
    ([0.5, 0.9], [1.0, 1.0]),
    ([0.02, 0.02, 0.02], [0.06, 0.06, 0.06]),
    ([0.2], [0.2]),
    ([], []),
  ],
)
def test_holm_by_hand(p_values, expected):
  np.testing.assert_allclose(comparison.holm(p_values), expected, atol=1e-12)


@pytest.mark.parametrize("bad", [[0.1, 1.5], [-0.1], [NAN], [[0.1]]])
def test_holm_takes_probabilities_only(bad):
  with pytest.raises(InputError, match="p values"):
    comparison.holm(bad)


def test_mann_whitney_by_hand():
  # All of a above all of b: one of C(6, 3) = 20 orders.
  (pair,) = comparison.pairwise({"b": [0.1, 0.2, 0.3], "a": [0.4, 0.5, 0.6]})
  assert pair[:2] == ("a", "b")
  np.testing.assert_allclose(pair[2:], [0.3, 0.05, 0.1], atol=1e-12)


def test_mann_whitney_with_ties_counts_every_arrangement():
  a, b = [0.9, 0.9, 0.9, 0.8], [0.9, 0.7, 0.8, 0.6]

  def u(left, right):
    return sum((x > y) + 0.5 * (x == y) for x in left for y in right)

  together = np.array(a + b)
  extreme = [
    u(together[list(chosen)], np.delete(together, list(chosen))) >= u(a, b)
    for chosen in itertools.combinations(range(8), 4)
  ]
  (pair,) = comparison.pairwise({"a": a, "b": b})
  np.testing.assert_allclose(pair.p, np.mean(extreme), atol=1e-12)


def test_all_pairs_in_order_with_holm_over_both_sides():
  values = {
    "low": [0.11, 0.15, 0.12, 0.19, 0.31],
    "high": [0.91, 0.72, 0.83, 0.94, 0.55],
    "middle": [0.51, 0.62, 0.43, 0.34, 0.75, NAN],
  }
  found = comparison.pairwise(values)
  assert [pair[:2] for pair in found] == [
    ("high", "low"),
    ("middle", "low"),
    ("high", "middle"),
  ]
  finite = {name: [v for v in seeds if v == v] for name, seeds in values.items()}
  exact = [
    scipy.stats.mannwhitneyu(
      finite[a], finite[b], alternative="greater", method="exact"
    ).pvalue
    for a, b, *_ in found
  ]
  np.testing.assert_allclose([pair.p for pair in found], exact, atol=1e-12)
  # 1, 1 and 7 of C(10, 5) = 252 orders.
  np.testing.assert_allclose(exact, [1 / 252, 1 / 252, 7 / 252], atol=1e-12)
  adjusted = [6 / 252, 6 / 252, 14 / 252]
  np.testing.assert_allclose([pair.p_holm for pair in found], adjusted, atol=1e-12)
  np.testing.assert_allclose(
    [pair.difference for pair in found], [0.614, 0.354, 0.26], atol=1e-12
  )


def test_lower_may_be_better():
  values = {"a": [1.0, 2.0, 3.0], "b": [4.0, 5.0, 6.0]}
  (higher,) = comparison.pairwise(values)
  (lower,) = comparison.pairwise(values, "less")
  assert higher[:3] == ("b", "a", 3.0)
  assert lower[:3] == ("a", "b", 3.0)
  assert higher.p == lower.p


def test_the_side_is_the_ranks_and_not_the_means():
  # One value of a outweighs all of b, which beats a in 20 of 25 comparisons.
  a, b = [0.1, 0.2, 0.3, 0.4, 100.0], [1.0, 2.0, 3.0, 4.0, 5.0]
  (pair,) = comparison.pairwise({"a": a, "b": b})
  assert pair[:2] == ("b", "a")
  assert pair.difference == pytest.approx(3.0 - 20.2)
  exact = [
    scipy.stats.mannwhitneyu(b, a, alternative=side, method="exact").pvalue
    for side in ("greater", "two-sided")
  ]
  np.testing.assert_allclose([pair.p, pair.p_holm], exact, atol=1e-12)
  (less,) = comparison.pairwise({"a": a, "b": b}, "less")
  assert less[:2] == ("a", "b") and less.p == pair.p
  assert comparison.sentence([pair._replace(p_holm=0.01)]) == (
    "b is better than a (by ranks; its mean is 1.72e+03 points worse, p = 0.01 after "
    "Holm's correction)."
  )
  # Paired: four small gains against one large loss.
  values = {"base": [0.0] * 5, "changed": [0.1, 0.2, 0.3, 0.4, -9.0]}
  (pair,) = comparison.pairwise(values, paired=True)
  assert pair[:2] == ("changed", "base") and pair.difference < 0
  test = scipy.stats.wilcoxon(values["changed"], alternative="greater")
  assert pair.p == pytest.approx(test.pvalue)


def test_even_ranks_are_no_difference_whatever_the_means():
  (pair,) = comparison.pairwise({"a": [0.1, 0.25, 0.5], "b": [0.2, 0.3, 9.0, 0.0]})
  assert pair.better == "b" and pair.p_holm == 1.0


def test_paired_by_seed_is_the_signed_rank_test():
  # Always better by a little, on seeds that differ much: 1 of 2^5 patterns of signs.
  base = np.array([0.1, 0.3, 0.5, 0.7, 0.9, 0.2])
  better = base + [0.01, 0.02, 0.03, 0.04, 0.05, NAN]
  values = {"base": base, "better": better}
  (pair,) = comparison.pairwise(values, paired=True)
  assert pair[:2] == ("better", "base")
  np.testing.assert_allclose(pair[2:], [0.03, 1 / 32, 1 / 16], atol=1e-12)
  assert comparison.pairwise({"base": base[:5], "better": better[:5]})[0].p > 0.3


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.filterwarnings("error")
def test_equal_strategies_are_not_told_apart(paired):
  (pair,) = comparison.pairwise({"a": [0.5] * 4, "b": [0.5] * 4}, paired=paired)
  assert pair == ("a", "b", 0.0, 1.0, 1.0)


def test_equal_strategies_are_seldom_told_apart_and_unequal_ones_often():
  rng = np.random.default_rng(0)
  equal, unequal = 0, 0
  for _ in range(300):
    draws = {name: rng.normal(size=10) for name in "abc"}
    equal += min(pair.p_holm for pair in comparison.pairwise(draws)) < 0.05
    draws["c"] = draws["c"] + 3
    found = {frozenset(pair[:2]): pair.p_holm for pair in comparison.pairwise(draws)}
    unequal += found[frozenset("ac")] < 0.05
  assert equal <= 24  # 15 expected at most, standard deviation 3.8
  assert unequal > 290


@pytest.mark.parametrize(
  ("values", "options", "message"),
  [
    ({"a": [1, 2]}, {}, "two strategies"),
    ({"a": [1, 2], "b": [1, NAN]}, {}, "a and b need two finite seeds"),
    ({"a": [1, 2], "b": [1, 2, 3]}, {"paired": True}, "a has 2 seeds and b 3"),
    ({"a": [1, 2], "b": [1, 2]}, {"alternative": "better"}, "greater or less"),
  ],
)
def test_what_cannot_be_compared_is_said(values, options, message):
  with pytest.raises(InputError, match=message):
    comparison.pairwise(values, **options)


def test_anytime_by_hand():
  curves = [[0.5, 0.6, 0.7, 0.7], [NAN, 0.4, 0.4, NAN]]
  # The first run's second and third evaluation end together; the second is shorter.
  budget = [[1.0, 2.0, 2.0, 5.0], [0.5, 3.0, 4.0, NAN]]
  found = comparison.anytime(curves, budget, [0.4, 1.0, 1.9, 2.0, 3.0, 100.0])
  expected = [[NAN, 0.5, 0.5, 0.7, 0.7, 0.7], [NAN, NAN, NAN, NAN, 0.4, 0.4]]
  np.testing.assert_array_equal(found, expected)


def test_anytime_is_a_plain_search():
  rng = np.random.default_rng(0)
  curves = np.maximum.accumulate(rng.random((5, 20)), 1)
  budget = np.cumsum(rng.integers(0, 3, (5, 20)), 1)
  grid = rng.uniform(-1, 25, 30)
  expected = [
    [max(np.where(cost <= g, curve, -1)) for g in grid]
    for curve, cost in zip(curves, budget)
  ]
  found = np.nan_to_num(comparison.anytime(curves, budget, grid), nan=-1)
  np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
  ("budget", "message"),
  [
    ([[1.0, 0.5]], "must not fall"),
    ([[NAN, 0.5]], "NaN before its end"),
    ([[1.0]], "S, N"),
  ],
)
def test_a_budget_accumulates(budget, message):
  with pytest.raises(InputError, match=message):
    comparison.anytime([[0.1, 0.2]], budget, [1.0])


@pytest.mark.filterwarnings("error")
def test_a_band_is_the_summary_at_each_point():
  values = np.array([[NAN, 0.5, 0.5], [NAN, NAN, 0.7], [NAN, NAN, 0.9]])
  mean, low, high = comparison.band(values)
  np.testing.assert_allclose(mean, [NAN, 0.5, 0.7])
  last = comparison.summary(values[:, 2])
  np.testing.assert_allclose(low, [NAN, NAN, last.low])
  np.testing.assert_allclose(high, [NAN, NAN, last.high])
  for function, argument in ((comparison.band, [1.0]), (comparison.band, [[[1.0]]])):
    with pytest.raises(InputError, match="S, G"):
      function(np.array(argument))
  with pytest.raises(InputError, match="confidence"):
    comparison.band(values, 1.0)


@pytest.mark.parametrize(
  ("predicted", "true", "k", "expected"),
  [
    ([3, 2, 1], [0.5, 0.9, 0.7], 1, 0.4),
    ([3, 2, 1], [0.5, 0.9, 0.7], 2, 0.0),
    ([1, 1, 1], [0.5, 0.9, 0.7], 1, 0.4),  # a tie: the first
    ([NAN, 2, 1], [0.9, 0.5, 0.7], 2, 0.2),
    ([3, 2, 1], [NAN, 0.5, 0.7], 2, 0.2),
    ([3, 2, 1], [NAN, 0.5, 0.7], 1, NAN),
    ([1, 2], [NAN, NAN], 2, NAN),
  ],
)
def test_top_k_regret_by_hand(predicted, true, k, expected):
  found = comparison.top_k_regret(predicted, true, k)
  np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("k", [0, 4])
def test_k_is_among_the_children(k):
  with pytest.raises(InputError, match=f"no top {k}"):
    comparison.top_k_regret([1, 2, 3], [1, 2, 3], k)


SURE, LIKELY = Pair("a", "b", 0.0031, 1e-6, 1e-5), Pair("a", "c", 0.012, 0.004, 0.016)
UNCLEAR = [Pair(*names, 0.001, 0.3, 0.9) for names in ("bc", "cd", "de", "ef")]


@pytest.mark.parametrize(
  ("pairs", "expected"),
  [
    (
      [UNCLEAR[0], LIKELY, SURE],
      "a is better than b (difference 0.31 points, p < 0.001 after Holm's correction)"
      " and c (difference 1.2 points, p = 0.016);"
      " between b and c no difference is shown.",
    ),
    (
      UNCLEAR[:2],
      "between b and c, or between c and d no difference is shown.",
    ),
    (UNCLEAR, "no difference is shown between any two of b, c, d, e and f."),
    (
      [SURE, *UNCLEAR],
      "a is better than b (difference 0.31 points, p < 0.001 after Holm's correction);"
      " no difference is shown for the other 4 pairs.",
    ),
  ],
)
def test_what_the_data_say(pairs, expected):
  assert comparison.sentence(pairs) == expected


def test_a_sentence_in_other_units_and_at_another_level():
  said = comparison.sentence([LIKELY], scale=1, unit="nats", alpha=0.1)
  assert said.startswith("a is better than c (difference 0.012 nats, p = 0.016 after")
  assert comparison.sentence([LIKELY], alpha=0.01).endswith("no difference is shown.")
  with pytest.raises(InputError, match="no pairs"):
    comparison.sentence([])
