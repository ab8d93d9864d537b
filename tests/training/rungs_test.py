import numpy as np
import pytest

from nasjax.core.types import InputError
from nasjax.training import rungs

RUNGS, ETA = (1, 3, 9), 3


def reference(values, before, eta):
  """The rule one child at a time, with sorted lists."""
  passes = []
  for value in values:
    good = True
    for others in (list(values), [*before, *values]):
      last = sorted(others, reverse=True)[max(1, len(others) // eta) - 1]
      good &= value >= last
    passes.append(good)
  return passes


@pytest.mark.parametrize("eta", [2, 3, 5])
def test_who_goes_on_is_as_the_plain_rule_says(eta):
  rng = np.random.default_rng(eta)
  (halving,), before = rungs.begin(RUNGS, eta, 9), {0: [], 1: []}
  passed = []
  for number in range(20):
    rung = number % 2
    # Two decimals: many are equal, also at the cut.
    values = rng.random(rng.integers(1, 9)).round(1).astype(np.float32)
    passes, halving = halving.choose(rung, values)
    assert passes.tolist() == reference(values, before[rung], eta)
    before[rung] += values.tolist()
    np.testing.assert_array_equal(halving.seen[rung], before[rung])
    passed += passes.tolist()
  assert set(passed) == {True, False}


def test_the_best_of_all_so_far_goes_on_and_a_poor_round_does_not():
  first, halving = rungs.begin(RUNGS, ETA, 9)[0].choose(0, [0.5, 0.6, 0.7, 0.8])
  assert first.tolist() == [False, False, False, True]
  assert halving.choose(0, [0.9])[0].tolist() == [True]
  poor, after = halving.choose(0, [0.1, 0.2, 0.3])
  assert not poor.any() and len(after.seen[0]) == 7
  nobody, after = halving.choose(1, [])
  assert nobody.shape == (0,) and [len(seen) for seen in after.seen] == [4, 0]
  # In a good round not everybody does who would have among all.
  good, _ = halving.choose(0, [0.91, 0.92, 0.93])
  assert good.tolist() == [False, False, True]


@pytest.mark.parametrize(
  ("given", "eta", "line"),
  [
    ((3, 1, 10), 3, "--config.estimator.rungs must be positive and rise, got 3,1,10"),
    ((0, 10), 3, "--config.estimator.rungs must be positive"),
    ((1, 1, 10), 3, "must be positive and rise"),
    ((), 3, "got none"),
    ((1, 3), 3, "--config.estimator.rungs must end with all 10 epochs, got 3"),
    ((1, 10), 1, "--config.estimator.eta must be at least 2, got 1"),
  ],
)
def test_rungs_that_cannot_be_are_refused(given, eta, line):
  with pytest.raises(InputError, match=line):
    rungs.begin(given, eta, 10, name="--config.estimator.rungs")


def test_hyperband_has_a_bracket_from_every_rung_on():
  brackets = rungs.begin(RUNGS, ETA, 9, "hyperband")
  assert [each.rungs for each in brackets] == [(1, 3, 9), (3, 9), (9,)]
  assert [len(each.seen) for each in brackets] == [2, 1, 0]
  with pytest.raises(InputError, match="unknown halving 'both'; there are successive,"):
    rungs.begin(RUNGS, ETA, 9, "both")
