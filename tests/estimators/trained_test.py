import jax
import numpy as np
import pytest

from nasjax.core.types import InputError
from nasjax.data import embedded
from nasjax.estimators.trained import trained
from nasjax.spaces.mlp_chain import MLPChain
from nasjax.training import rungs
from nasjax.training.step import epoch_weighted

SPACE = MLPChain(widths=(4, 8), max_layers=3)
DATA = embedded.load("iris")
GENOTYPES = np.stack([SPACE.parse(a) for a in ("8 relu", "8 relu - 4 tanh")])


def estimate(estimator, genotypes=GENOTYPES, state=None, seed=0):
  state = estimator.init(jax.random.key(9)) if state is None else state
  return estimator.estimate(jax.random.key(seed), state, genotypes)


def build(**options):
  settings = {"epochs": 3, "batch_size": 16, "learning_rate": 0.01, **options}
  return trained(SPACE, DATA, **settings)


def test_an_evaluation_says_everything_of_each_child():
  seen = []
  estimator = build(on_child=lambda i, child, score: seen.append((i, score)))
  state, evaluation = estimate(estimator)
  assert evaluation.curve.shape == (2, 3) and not state.shared.weights
  np.testing.assert_allclose(
    evaluation.score, epoch_weighted(evaluation.curve), rtol=1e-6
  )
  np.testing.assert_allclose([s for _, s in sorted(seen)], evaluation.score, rtol=1e-6)
  assert evaluation.info["num_params"] == [4 * 8 + 8 + 8 * 3 + 3, 40 + 36 + 15]
  assert evaluation.info["epochs_run"] == [3, 3]
  assert evaluation.info["shared_layers"] == [0, 0]
  assert (evaluation.cost > 0).all()


def test_the_test_split_is_not_looked_at():
  import dataclasses

  spoiled = dataclasses.replace(DATA, test=DATA.test._replace(x=DATA.test.x * np.nan))
  settings = {"epochs": 2, "batch_size": 16}
  _, a = estimate(trained(SPACE, DATA, **settings))
  _, b = estimate(trained(SPACE, spoiled, **settings))
  np.testing.assert_array_equal(a.score, b.score)


def test_one_shot_starts_from_what_was_stored():
  estimator = build(one_shot="last", learning_rate=0.0)
  state, _ = estimate(estimator)
  assert sorted(state.shared.weights) == [
    "4 tanh>output",
    "8 relu>4 tanh",
    "8 relu>output",
    "input>8 relu",
  ]
  # with a rate of 0 nothing is learned: the second round gives the stored weights back
  again, evaluation = estimate(estimator, state=state, seed=1)
  assert evaluation.info["shared_layers"] == [2, 3]
  for name, layer in state.shared.weights.items():
    np.testing.assert_array_equal(again.shared.weights[name]["kernel"], layer["kernel"])
  _, fresh = estimate(estimator, seed=1)
  assert np.abs(fresh.curve - evaluation.curve).max() > 0


def test_warm_starts_help_a_child_that_was_trained_before():
  estimator = build(one_shot="best", epochs=10)
  # One child: the layers of several need not go together.
  state, cold = estimate(estimator, GENOTYPES[:1])
  _, warm = estimate(estimator, GENOTYPES[:1], state=state, seed=1)
  assert warm.curve[0, 0] > cold.curve[0, 0]


ROUNDS = [
  ["8 relu", "8 tanh", "16 tanh"],
  ["8 sigmoid", "8 elu", "16 sigmoid"],
  ["32 relu", "8 sigmoid - 8 sigmoid", "16 elu"],
  ["32 tanh", "8 tanh - 8 sigmoid", "32 sigmoid"],
]
DIGITS_SPACE = MLPChain(widths=(8, 16, 32), max_layers=3)


def search_digits(layout, rungs, **options):
  """Rounds of small networks on digits: their evaluations and the last state."""
  estimator = trained(
    DIGITS_SPACE,
    embedded.load("digits"),
    epochs=9,
    patience=9,
    score="best",
    learning_rate=3e-3,
    layout=layout,
    rungs=rungs,
    **options,
  )
  state, found = estimator.init(jax.random.key(9)), []
  for number, archs in enumerate(ROUNDS):
    genotypes = np.stack([DIGITS_SPACE.parse(arch) for arch in archs])
    state, evaluation = estimator.estimate(jax.random.key(number), state, genotypes)
    found.append(evaluation)
  return found, state


def epochs_run(found):
  return [evaluation.info["epochs_run"] for evaluation in found]


def by_the_rule(full):
  """Epochs that each child runs, out of the curves of a search without rungs."""
  (halving,), expected = rungs.begin((1, 3, 9), 3, 9), []
  for whole in full:
    ran, left = np.full(3, 9), np.arange(3)
    for number, rung in enumerate((1, 3)):
      passes, halving = halving.choose(number, whole.curve[left, :rung].max(-1))
      ran[left[~passes]] = rung
      left = left[passes]
    expected.append(ran.tolist())
  return expected


def test_rungs_find_as_good_a_child_in_half_the_epochs_whatever_the_layout():
  full, _ = search_digits("tiled", ())
  halved, state = search_digits("tiled", (1, 3, 9))
  vmapped, _ = search_digits("padded", (1, 3, 9))
  best = [max(e.score.max() for e in found) for found in (full, halved)]
  assert best[0] - 0.02 < best[1] <= best[0]
  assert epochs_run(full) == [[9] * 3] * 4
  assert epochs_run(halved) == epochs_run(vmapped) == by_the_rule(full)
  assert np.sum(epochs_run(halved)) < 0.5 * 12 * 9
  for whole, part in zip(full, halved, strict=True):
    assert part.info["stopped_at_rung"] == [n < 9 for n in part.info["epochs_run"]]
    assert part.info["failure"] == [None] * 3 and (part.cost > 0).all()
    for i, epochs in enumerate(part.info["epochs_run"]):
      np.testing.assert_array_equal(part.curve[i, :epochs], whole.curve[i, :epochs])
      assert np.isnan(part.curve[i, epochs:]).all()
      assert part.score[i] == part.curve[i, :epochs].max()
  assert state.halving is not None and len(state.halving[0].seen[0]) == 12


def test_hyperband_halves_bracket_by_bracket():
  full, _ = search_digits("padded", ())
  found, state = search_digits("padded", (1, 9), halving="hyperband", eta=2)
  # Of three children two are in the bracket with both rungs; the other runs to the end.
  (halving, _), seen = rungs.begin((1, 9), 2, 9, "hyperband"), []
  for number, (whole, part) in enumerate(zip(full, found, strict=True)):
    bracket = np.array(part.info["bracket"])
    assert sorted(bracket) == [0, 0, 1], number
    first = bracket == 0
    seen += whole.curve[first, 0].tolist()
    passes, halving = halving.choose(0, whole.curve[first, 0])
    ran = np.full(3, 9)
    ran[first] = np.where(passes, 9, 1)
    assert part.info["epochs_run"] == ran.tolist()
    assert part.info["stopped_at_rung"] == (ran < 9).tolist()
    for i, epochs in enumerate(ran):
      np.testing.assert_array_equal(part.curve[i, :epochs], whole.curve[i, :epochs])
  np.testing.assert_array_equal(state.halving[0].seen[0], np.float32(seen))
  assert state.halving[1].seen == ()
  assert len({tuple(e.info["bracket"]) for e in found}) > 1  # who goes where is drawn


def test_every_child_is_told_once_and_every_plan_with_its_rung():
  told, plans = [], []
  estimator = build(
    epochs=3,
    rungs=(1, 3),
    on_child=lambda *args: told.append(args),
    on_plan=lambda *args: plans.append(args),
  )
  _, evaluation = estimate(estimator)
  assert sorted(i for i, _, _ in told) == list(range(len(GENOTYPES)))
  for i, child, score in told:
    assert child.epochs_run == evaluation.info["epochs_run"][i]
    assert score == evaluation.score[i]
    assert child.stopped_at_rung == evaluation.info["stopped_at_rung"][i]
  assert [rung for _, rung in plans] == [0, 1]
  counts = [sum(len(g.members) for g in plan.groups) for plan, _ in plans]
  assert counts == [len(GENOTYPES), epochs_run([evaluation])[0].count(3)]


def test_bad_options_are_refused():
  for options in (
    {"score": "median"},
    {"one_shot": "yes"},
    {"epochs": 0},
    {"rungs": (1, 4)},
    {"rungs": (1, 3), "eta": 1},
  ):
    with pytest.raises(InputError):
      build(**options)
  with pytest.raises(InputError, match="trains 3 epochs"):
    build().estimate(jax.random.key(0), None, GENOTYPES, fidelity=7)
