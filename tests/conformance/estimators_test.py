"""What every estimator keeps, run over the table of all of them."""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nasjax.core.types import Evaluation
from nasjax.data import embedded
from nasjax.data.benchmarks import Benchmark, Measured
from nasjax.estimators.base import Estimator
from nasjax.estimators.tabular import tabular
from nasjax.estimators.trained import trained
from nasjax.runtime import CompileCounter
from nasjax.spaces.mlp_chain import MLPChain

SPACE = MLPChain(widths=(4, 8), max_layers=4)
ARCHS = ("8 tanh", "8 relu - dropout 0.2 - 4 relu", "4 tanh")
GENOTYPES = np.stack([SPACE.parse(arch) for arch in ARCHS])
P = len(ARCHS)
SPOILED = 1  # the child that `Member.spoil` makes fail
DATA = embedded.load("iris")


class Member(NamedTuple):
  """An estimator and what it promises.

  Attributes:
    build: -> the estimator.
    spoil: `(state) -> state` in which the child `SPOILED` alone fails.
    tolerance: of a score whose neighbours change.
    says_why: whether `info` has the failure of each child.
    alone: whether a child does not depend on who else is in its round.
  """

  build: Callable[[], Estimator]
  spoil: Callable[[Any], Any]
  tolerance: float = 0.0
  says_why: bool = True
  alone: bool = True


def spoil_weights(state):
  """A table of shared weights with NaN for a pair of layers that one child has."""
  layer = {"kernel": np.full((8, 4), np.nan, np.float32), "bias": np.zeros(4, "f")}
  weights = {**state.shared.weights, "8 relu>4 relu": layer}
  return state._replace(shared=state.shared._replace(weights=weights))


def trained_member(tolerance=0.0, alone=True, **options):
  settings: dict[str, Any] = dict(
    epochs=3, batch_size=16, learning_rate=0.01, device="tpu-v5e"
  )
  return Member(
    lambda: trained(SPACE, DATA, **settings, **options),
    spoil_weights,
    tolerance,
    alone=alone,
  )


def tabular_estimator():
  """Scores of every chain, in the order of their numbers from behind."""
  number = np.arange(SPACE.size)[::-1]
  valid = np.float32([number / SPACE.size / 2, number / SPACE.size])
  measured = Measured(
    np.array([3, 9]),
    valid,
    valid[1],
    1 + valid,
    per_seed=None,
    fewer_rows={},
    figures={},
  )
  genotypes = np.asarray(jax.jit(jax.vmap(SPACE.at))(number))
  table = Benchmark("made", SPACE.to_dict(), (), genotypes, {"d": measured}, {})
  return tabular(SPACE, table, "d")


def spoil_row(state):
  number = SPACE.index(jnp.asarray(GENOTYPES[SPOILED]))
  return state._replace(valid=state.valid.at[:, number].set(jnp.nan))


MEMBERS = {
  "trained_exact": trained_member(layout="exact"),
  "trained_padded": trained_member(1e-5, layout="padded"),
  "trained_auto": trained_member(1e-5, layout="auto", score="best"),
  "trained_rungs": trained_member(layout="exact", rungs=(1, 3), eta=2, alone=False),
  "trained_one_shot": trained_member(layout="bucketed", one_shot="last"),
  "tabular": Member(tabular_estimator, spoil_row, says_why=False),
}


class Ready(NamedTuple):
  """A built member, its state after a first round, and an evaluation in that state."""

  estimator: Estimator
  state: Any
  spoiled: Any
  evaluation: Evaluation
  tolerance: float
  says_why: bool
  alone: bool


def evaluate(estimator, state, genotypes=GENOTYPES, seed=1):
  return estimator.estimate(jax.random.key(seed), state, genotypes)[1]


@pytest.fixture(scope="module", params=MEMBERS)
def member(request):
  build, spoil, *promises = MEMBERS[request.param]
  estimator = build()
  start = estimator.init(jax.random.key(9))
  state, _ = estimator.estimate(jax.random.key(0), start, GENOTYPES)
  evaluation = evaluate(estimator, state)
  return Ready(estimator, state, spoil(state), evaluation, *promises)


def same(a, b, tolerance=0.0):
  np.testing.assert_allclose(a.score, b.score, atol=tolerance)
  np.testing.assert_allclose(a.curve, b.curve, atol=tolerance)


def rows(evaluation, index):
  index = np.asarray(index)
  return evaluation._replace(
    score=evaluation.score[index], curve=evaluation.curve[index]
  )


def test_an_evaluation_has_a_row_for_every_child(member):
  evaluation = member.evaluation
  for array in evaluation[:3]:
    assert np.asarray(array).dtype == np.float32 and len(array) == P
  assert evaluation.score.shape == evaluation.cost.shape == (P,)
  assert evaluation.curve.ndim == 2 and evaluation.curve.shape[1] >= 1
  assert np.isfinite(evaluation.score).all() and (evaluation.cost >= 0).all()
  assert all(len(values) == P for values in evaluation.info.values())
  json.dumps(dict(evaluation.info))  # a record holds it


def test_the_same_key_gives_the_same_evaluation(member):
  again = evaluate(member.estimator, member.state)
  same(again, member.evaluation)
  assert again.info == member.evaluation.info


def test_estimating_leaves_the_given_state_alone(member):
  before = jax.tree.map(np.copy, member.state)
  evaluate(member.estimator, member.state, seed=3)
  jax.tree.map(np.testing.assert_array_equal, before, member.state)


def test_a_child_does_not_depend_on_its_neighbours_or_their_order(member):
  for order in ([2, 0, 1], [1, 2, 2])[: 2 if member.alone else 1]:
    other = evaluate(member.estimator, member.state, GENOTYPES[order])
    same(other, rows(member.evaluation, order), member.tolerance)


def test_compiles_once(member):
  with CompileCounter() as again:
    evaluate(member.estimator, member.state, GENOTYPES[::-1], seed=4)
  assert again.count == 0


def test_a_failed_child_is_nan_and_hurts_no_one(member):
  others = np.delete(np.arange(P), SPOILED)
  evaluation = evaluate(member.estimator, member.spoiled)
  assert np.isnan(evaluation.score[SPOILED])
  assert np.isfinite(evaluation.score[others]).all()
  if member.alone:
    same(rows(evaluation, others), rows(member.evaluation, others), member.tolerance)
  if member.says_why:
    assert evaluation.info["failure"][SPOILED]
    assert {evaluation.info["failure"][i] for i in others} == {None}
