import itertools

import jax
import jax.numpy as jnp
import numpy as np

from nasjax.spaces import base as spaces
from nasjax.spaces.mlp_chain import MLPChain
from nasjax.strategies.base import empty_history, remember, sample_new

TINY = MLPChain(widths=(2, 3), activations=("relu",), dropout_rate=0.0, max_layers=3)


def rows(genotypes):
  return [genotype.tobytes() for genotype in np.asarray(genotypes)]


def prior(key):
  return spaces.sample(TINY, key)


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
    found = rows(sample_new(jax.random.key(seed), prior, TINY, history, 4))
    assert len(set(found)) == 4 and not set(found) & set(rows(tried))


def test_a_collapsed_policy_is_helped_out_by_the_prior():
  history = empty_history(8, TINY.length)
  found = sample_new(jax.random.key(0), collapsed, TINY, history, 5)
  assert len(set(rows(found))) == 5
  assert rows(found)[0] == rows(ONLY[None])[0]  # the policy comes first


def test_an_exhausted_space_ends_in_repeats_that_are_legal():
  everything = itertools.product(range(TINY.num_tokens), repeat=TINY.length)
  vectors = np.array(list(everything), np.int32)
  legal = vectors[np.asarray(jax.vmap(TINY.is_legal)(vectors))]
  history = remember(empty_history(6, TINY.length), jnp.asarray(legal), jnp.zeros(6))
  found = sample_new(jax.random.key(0), prior, TINY, history, 3)
  assert bool(jax.vmap(TINY.is_legal)(found).all())
