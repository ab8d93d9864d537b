import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nasjax.spaces import base as spaces
from nasjax.spaces.categorical import Categorical
from nasjax.spaces.mlp_chain import MLPChain
from nasjax.strategies.base import (
  candidates,
  empty_history,
  fill_up,
  is_known,
  remember,
  sample_new,
)

TINY = MLPChain(widths=(2, 3), activations=("relu",), dropout_rate=0.0, max_layers=3)


def rows(genotypes):
  return [genotype.tobytes() for genotype in np.asarray(genotypes)]


def prior(key):
  return spaces.sample(TINY, key)


@functools.partial(jax.jit, static_argnums=(1, 3))
def drawn_new(key, sampler, history, population):
  return sample_new(key, sampler, TINY, history, population)


ONLY = jnp.asarray(TINY.parse("2 relu"))


def collapsed(key):
  del key
  return ONLY


def test_history_keeps_the_latest_in_fixed_rows():
  history = empty_history(3, 2)
  for i in range(4):
    history = remember(history, jnp.full((1, 2), i), jnp.array([float(i)]))
  assert int(history.num_added) == 4
  assert sorted(history.scores.tolist()) == [1.0, 2.0, 3.0]


def test_no_repeats_among_themselves_or_with_the_history():
  assert TINY.size == 6
  tried = jnp.stack([jnp.asarray(TINY.parse(a)) for a in ("2 relu", "3 relu - 2 relu")])
  history = remember(empty_history(8, TINY.length), tried, jnp.zeros(2))
  for seed in range(5):
    found = rows(drawn_new(jax.random.key(seed), prior, history, 4))
    assert len(set(found)) == 4 and not set(found) & set(rows(tried))


def test_a_collapsed_policy_is_helped_out_by_the_prior():
  history = empty_history(8, TINY.length)
  found = drawn_new(jax.random.key(0), collapsed, history, 5)
  assert len(set(rows(found))) == 5
  assert rows(found)[0] == rows(ONLY[None])[0]  # the policy comes first


def test_an_exhausted_space_ends_in_repeats_that_are_legal():
  everything = itertools.product(range(TINY.num_tokens), repeat=TINY.length)
  vectors = np.array(list(everything), np.int32)
  legal = vectors[np.asarray(jax.vmap(TINY.is_legal)(vectors))]
  history = remember(empty_history(6, TINY.length), jnp.asarray(legal), jnp.zeros(6))
  found = drawn_new(jax.random.key(0), prior, history, 3)
  assert bool(jax.vmap(TINY.is_legal)(found).all())


# --- what a surrogate is asked about --------------------------------------------------

WIDE = Categorical((5,) * 8)
COUNTS = ("num_parents", "num_mutants", "num_draws")


@functools.partial(jax.jit, static_argnames=COUNTS)
def found_near(key, history, **counts):
  return candidates(key, WIDE, history, **counts)


def tried(scores):
  """A history with room of as many far genotypes; the k-th is all k."""
  genotypes = jnp.tile(jnp.arange(len(scores), dtype=jnp.int32)[:, None], (1, 8))
  return remember(empty_history(6, 8), genotypes, jnp.array(scores))


def test_known_is_what_was_tried_and_is_still_remembered():
  history = tried([0.1, jnp.nan])
  asked = jnp.array([[0] * 8, [0] * 7 + [1], [1] * 8, [-1] * 8, [2] * 8])
  # An empty row is no genotype, but equals what stands for none.
  assert is_known(history, asked[:3]).tolist() == [True, False, True]
  assert is_known(history, asked[4:]).tolist() == [False]
  for _ in range(6):
    history = remember(history, asked[1:2], jnp.array([0.5]))
  assert is_known(history, asked[:3]).tolist() == [False, True, False]


def test_a_population_is_filled_up_without_repeats():
  tiny = Categorical((2, 3))
  every = jax.vmap(tiny.at)(jnp.arange(6))
  history = remember(empty_history(6, 2), every[:2], jnp.zeros(2))
  chosen = every[jnp.array([0, 3, 1, 5])]  # two of them are known, and not used
  fill = jax.jit(functools.partial(fill_up, space=tiny, history=history))
  use = jnp.array([False, True, False, True])
  for seed in range(10):
    filled = np.asarray(fill(jax.random.key(seed), chosen=chosen, use=use))
    np.testing.assert_array_equal(filled[[1, 3]], every[jnp.array([3, 5])])
    assert {g.tobytes() for g in filled} == {g.tobytes() for g in np.asarray(every[2:])}


def test_candidates_are_mutations_of_the_best_and_draws():
  history = tried([0.3, jnp.nan, 0.9, jnp.inf, 0.5])
  found = np.asarray(
    found_near(jax.random.key(0), history, num_parents=2, num_mutants=40, num_draws=60)
  )
  assert found.shape == (100, 8) and found.dtype == np.int32
  assert bool(jax.vmap(WIDE.is_legal)(found).all())
  # The parents in turn, the best first; every other pair is changed a second time.
  parents = np.tile([2, 4], 20)[:, None]
  changes = (found[:40] != parents).sum(-1).reshape(-1, 2, 2)
  assert set(changes[:, 0].ravel()) == {1}
  assert set(changes[:, 1].ravel()) <= {0, 1, 2} and (changes[:, 1] == 2).mean() > 0.5
  share = np.stack([(found[40:] == k).mean() for k in range(5)])
  assert (abs(share - 1 / 5) < 0.08).all()  # 4 deviations of 480 draws
  assert len(np.unique(found, axis=0)) > 80


@pytest.mark.parametrize("scores", [[], [jnp.nan, jnp.nan]])
def test_without_a_parent_draws_stand_in(scores):
  history = tried(scores) if scores else empty_history(6, 8)
  found = found_near(jax.random.key(1), history, num_parents=3, num_mutants=30)
  assert found.shape == (30, 8) and bool(jax.vmap(WIDE.is_legal)(found).all())
  assert len(np.unique(found, axis=0)) == 30
  assert (np.asarray(found).std(-1) > 0).all()  # no mutations of [-1] * 8 or [0] * 8


def test_with_fewer_parents_than_asked_for_draws_stand_in_for_the_rest():
  found = np.asarray(
    found_near(jax.random.key(2), tried([0.1]), num_parents=3, num_mutants=30)
  )
  near = (found != 0).sum(-1) <= 2
  assert near.reshape(-1, 6)[:, [0, 3]].all()  # in turn with the five rows not filled
  assert near.sum() < 20
