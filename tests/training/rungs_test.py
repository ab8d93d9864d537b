import numpy as np
import pytest

from nasjax.core.types import InputError
from nasjax.training import rungs
from nasjax.training.step import EarlyStopping, EpochResult, Hyper

RUNGS, ETA = (1, 3, 9), 3


def follow(book, curves):
  """Enters made curves `[P, T]` epoch by epoch, as a trainer does."""
  for epoch in range(curves.shape[1]):
    (members,) = np.nonzero(book.active)
    if len(members):
      zeros = np.zeros(len(members))
      book.record(members, EpochResult(zeros, zeros - epoch, curves[members, epoch]))
  return book


def reference(rounds, eta=ETA):
  """The rule one child at a time, with plain lists: epochs that each child ran."""
  reached = {rung: [] for rung in RUNGS[:-1]}
  epochs_run = []
  for curves in rounds:
    new = {rung: [] for rung in reached}
    for curve in curves:
      ran = RUNGS[-1]
      for rung in RUNGS[:-1]:
        value = max(curve[:rung])
        new[rung].append(value)
        everyone = sorted([*reached[rung], value], reverse=True)
        if len(everyone) >= eta and value < everyone[len(everyone) // eta - 1]:
          ran = rung
          break
      epochs_run.append(ran)
    reached = {rung: reached[rung] + new[rung] for rung in reached}
  return epochs_run


@pytest.mark.parametrize("eta", [2, 3, 5])
def test_children_stop_as_the_plain_rule_says(eta):
  rng = np.random.default_rng(eta)
  # Two decimals: many are equal, also at the cut.
  rounds = rng.random((12, 4, 9)).cumsum(-1).round(1).astype(np.float32)
  halving, ran, stopped = rungs.begin(RUNGS, eta, 9), [], []
  for curves in rounds:
    book = follow(EarlyStopping(4, 9, Hyper(1.0, 99, halving=halving)), curves)
    halving = halving.after(book.curve, book.diverged)
    ran += book.epochs_run.tolist()
    stopped += book.stopped_at_rung.tolist()
  assert ran == reference(rounds, eta)
  assert set(ran) == set(RUNGS)
  assert stopped == [epochs < 9 for epochs in ran]
  assert [len(seen) for seen in halving.seen] == [48, sum(e >= 3 for e in ran)]


def test_nobody_stops_a_child_that_has_nobody_to_be_compared_with():
  halving = rungs.begin(RUNGS, ETA, 9)
  for size in (1, 7):  # alone, and a whole first round
    book = follow(
      EarlyStopping(size, 9, Hyper(1.0, 99, halving=halving)),
      np.tile(np.arange(size, dtype=np.float32)[:, None], 9),
    )
    assert (book.epochs_run == 9).all() and not book.stopped_at_rung.any()
  # Two others are too few for eta = 3 until the child itself is counted.
  after = halving.after(np.array([[0.5] * 9]), [False])
  assert after.goes_on(np.array([1]), np.array([0.1])).all()
  after = halving.after(np.array([[0.5] * 9, [0.4] * 9]), [False, False])
  assert after.goes_on(np.array([1, 1, 2]), np.array([0.5, 0.4, 0.0])).tolist() == [
    True,  # as good as the best
    False,
    True,  # no rung
  ]


def test_what_failed_or_did_not_reach_a_rung_is_compared_with_nobody():
  curves = np.full((3, 9), np.nan, np.float32)
  curves[0, :2], curves[1, :4], curves[2] = 0.9, 0.8, 0.7
  halving = rungs.begin(RUNGS, ETA, 9).after(curves, [False, True, False])
  np.testing.assert_allclose(halving.seen[0], [0.7, 0.9])
  np.testing.assert_allclose(halving.seen[1], [0.7])


def test_only_rungs_count_as_stopped_at_a_rung():
  halving = rungs.begin((1, 3), 2, 3).after(np.full((4, 3), 0.9, np.float32), [0] * 4)
  book = EarlyStopping(3, 3, Hyper(1.0, 1, halving=halving))
  # A good one, a bad one, and a bad one that diverges in the same epoch.
  losses, metrics = np.array([1.0, 1.0, np.inf]), np.array([0.9, 0.1, 0.1])
  book.record(np.arange(3), EpochResult(np.zeros(3), losses, metrics))
  assert book.active.tolist() == [True, False, False]
  assert book.stopped_at_rung.tolist() == [False, True, False]


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
    rungs.begin(given, eta, 10, "--config.estimator.rungs")
