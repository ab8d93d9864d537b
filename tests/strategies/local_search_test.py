import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nasjax.core.types import InputError
from nasjax.spaces.categorical import Categorical
from nasjax.spaces.mlp_chain import MLPChain
from nasjax.strategies.local_search import local_search

SPACE = Categorical((3, 3, 2, 3))
NEAR = 2 + 2 + 1 + 2  # neighbors of a genotype
TARGET = np.array([2, 0, 1, 1])
RULES = ("steepest", "first")


@functools.cache
def compiled(rule, children=1, space=SPACE):
  strategy = local_search(space, rule=rule, children=children)
  return strategy._replace(ask=jax.jit(strategy.ask), tell=jax.jit(strategy.tell))


def search(strategy, score, num_rounds, seed=0):
  """Yields the state before, asked genotypes, their scores, the state after, info."""
  state = strategy.init(jax.random.key(seed))
  for number in range(num_rounds):
    ask, tell = jax.random.split(jax.random.key(1000 * seed + number))
    before = state
    genotypes, state = strategy.ask(ask, state)
    genotypes = np.asarray(genotypes)
    scores = np.float32([score(g) for g in genotypes])
    state, info = strategy.tell(tell, state, genotypes, jnp.asarray(scores))
    yield before, genotypes, scores, state, {k: int(v) for k, v in info.items()}


def unimodal(genotype):
  """Every decision that is the target's is worth something of its own."""
  return ((genotype == TARGET) * [0.1, 0.17, 0.2, 0.3]).sum()


def rugged(genotype):
  return np.random.default_rng(genotype.tolist()).random()


@pytest.mark.parametrize("children", [1, 3])
@pytest.mark.parametrize("rule", RULES)
def test_every_climb_of_a_unimodal_score_ends_at_the_optimum(rule, children):
  ends = []
  for before, _, _, _, info in search(compiled(rule, children), unimodal, 150):
    if info["restarts"] > len(ends):
      ends.append(np.asarray(before.center))
  assert len(ends) >= 3
  for end in ends:
    np.testing.assert_array_equal(end, TARGET)


def test_steepest_sees_every_neighbor_and_moves_to_the_best():
  seen: dict[bytes, float] = {}
  moves = 0
  for before, genotypes, scores, after, info in search(
    compiled("steepest"), rugged, 120
  ):
    if not int(before.num_neighbors):  # a start
      assert info["moved"] and not seen
      np.testing.assert_array_equal(after.center, genotypes[0])
      continue
    assert (genotypes[0] != before.center).sum() == 1
    assert genotypes[0].tobytes() not in seen
    seen[genotypes[0].tobytes()] = float(scores[0])
    if len(seen) < NEAR:
      assert not info["moved"]
      np.testing.assert_array_equal(after.center, before.center)
      continue
    best = max(seen, key=lambda name: seen[name])
    better = seen[best] > float(before.center_score)
    assert info["moved"] == better
    if better:
      assert np.asarray(after.center).tobytes() == best
      assert float(after.center_score) == seen[best]
      moves += 1
    seen = {}
  assert moves > 3


def test_first_moves_at_once_and_else_sees_every_neighbor():
  asked: set[bytes] = set()
  moves = 0
  for before, genotypes, scores, after, info in search(compiled("first"), rugged, 120):
    if not int(before.num_neighbors):
      assert info["moved"]
      asked = set()
      continue
    assert (genotypes[0] != before.center).sum() == 1
    assert genotypes[0].tobytes() not in asked
    asked.add(genotypes[0].tobytes())
    better = scores[0] > float(before.center_score)
    assert info["moved"] == better
    if better:
      np.testing.assert_array_equal(after.center, genotypes[0])
      asked, moves = set(), moves + 1
  assert moves > 3


@pytest.mark.parametrize("rule", RULES)
def test_it_restarts_at_a_local_optimum_and_counts(rule):
  restarts, asked_here = 0, 0
  for before, _, scores, after, info in search(compiled(rule), rugged, 120):
    asked_here = asked_here + 1 if int(before.num_neighbors) else 0
    at_top = asked_here == NEAR and not info["moved"]
    restarts += at_top
    assert info["restarts"] == int(after.restarts) == restarts
    if at_top:
      assert max(float(scores[0]), float(before.best_score)) <= before.center_score
      assert int(after.num_neighbors) == 0  # a draw is next
    if info["moved"]:
      asked_here = 0
  assert restarts >= 3


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rule", RULES)
def test_it_never_stands_on_a_failed_child(rule, bad):
  failed = 0
  for _, _, scores, after, _ in search(
    compiled(rule, 3), lambda g: bad if g[0] == 2 else rugged(g), 60
  ):
    failed += (~np.isfinite(scores)).sum()
    if int(after.num_neighbors):
      assert int(after.center[0]) != 2 and np.isfinite(after.center_score)
    assert not np.isnan(after.best_score) and after.best_score < 1
  assert failed > 10


def test_when_all_fail_it_draws_on_and_counts_no_restarts():
  drawn = set()
  for _, genotypes, _, after, info in search(compiled("first"), lambda g: np.nan, 20):
    assert info == {"restarts": 0, "moved": 0} and not int(after.num_neighbors)
    drawn.add(genotypes.tobytes())
  assert len(drawn) > 8


@pytest.mark.parametrize(
  ("space", "rule"),
  [
    (Categorical((1, 1)), "steepest"),
    (MLPChain((8,), ("relu",), dropout_rate=0.0, max_layers=2), "first"),
  ],
  ids=["categorical", "mlp_chain"],
)
def test_a_space_of_one_architecture_is_asked_again(space, rule):
  assert space.size == 1
  strategy = compiled(rule, 2, space)
  for _, genotypes, _, after, info in search(strategy, lambda g: 0.5, 5):
    assert (genotypes == genotypes[0]).all() and bool(space.is_legal(genotypes[0]))
    assert info["restarts"] == 0 and not np.isnan(after.center_score)


@pytest.mark.parametrize("rule", RULES)
def test_it_beats_random_search(planted, beats_random_search, rule):
  beats_random_search(local_search(planted, rule=rule), population=1, num_rounds=120)


def test_what_it_refuses():
  with pytest.raises(InputError, match="unknown rule 'best'; there are steepest, fir"):
    local_search(SPACE, rule="best")  # type: ignore[arg-type]
  with pytest.raises(InputError, match="children must be positive, got 0"):
    local_search(SPACE, children=0)
