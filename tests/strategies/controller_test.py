import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from nasjax.spaces import base
from nasjax.spaces.categorical import Categorical
from nasjax.spaces.mlp_chain import MLPChain
from nasjax.strategies.controller import (
  independent_controller,
  lstm_controller,
  orthogonal,
)

SPACE = MLPChain(widths=(8, 16), activations=("relu",), max_layers=4)
CONTROLLER = lstm_controller(SPACE, hidden=6)


def every_genotype():
  everything = itertools.product(range(SPACE.num_tokens), repeat=SPACE.length)
  vectors = np.array(list(everything), np.int32)
  return vectors[np.asarray(jax.vmap(SPACE.is_legal)(vectors))]


def trained_like(seed):
  """Parameters whose policy is far from the prior."""
  params = CONTROLLER.init(jax.random.key(seed))
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
  moved = [
    leaf + 0.7 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves)
  ]
  return jax.tree.unflatten(tree, moved)


def log_p(params, genotypes):
  return jax.vmap(lambda g: CONTROLLER.log_probs(params, g)[0].sum())(genotypes)


def test_an_untrained_controller_is_the_prior():
  genotypes = every_genotype()
  params = CONTROLLER.init(jax.random.key(0))
  prior = jax.vmap(lambda g: base.log_prob(SPACE, g))(genotypes)
  np.testing.assert_allclose(log_p(params, genotypes), prior, atol=1e-5)


def test_probability_lives_on_legal_genotypes_alone():
  params = trained_like(0)
  total = np.exp(log_p(params, every_genotype())).sum()
  np.testing.assert_allclose(total, 1.0, rtol=1e-5)
  illegal = jnp.array([[4, 0, 0, 0], [1, 0, 1, 4], [1, 2, 1, 2]], jnp.int32)
  assert np.isneginf(log_p(params, illegal)).all()


def test_sampled_frequencies_match_teacher_forced_probabilities():
  params, genotypes = trained_like(1), every_genotype()
  count = 20_000
  keys = jax.random.split(jax.random.key(7), count)
  sampled = np.asarray(jax.jit(jax.vmap(lambda k: CONTROLLER.sample(params, k)))(keys))
  index = {genotype.tobytes(): i for i, genotype in enumerate(genotypes)}
  observed = np.bincount(
    [index[genotype.tobytes()] for genotype in sampled], minlength=len(genotypes)
  )
  expected = np.exp(np.asarray(log_p(params, genotypes), float)) * count
  expected *= count / expected.sum()
  rare = expected < 5  # chi-square needs cells that fill

  def merge(cells):
    return np.append(cells[~rare], cells[rare].sum()) if rare.any() else cells

  result = scipy.stats.chisquare(merge(observed), merge(expected))
  assert result.pvalue > 1e-3
  # and the test can tell: the prior would be refused
  prior = jax.vmap(lambda g: base.log_prob(SPACE, g))(genotypes)
  wrong = np.exp(np.asarray(prior, float)) * count
  wrong *= merge(observed).sum() / wrong.sum()
  assert scipy.stats.chisquare(merge(observed), merge(wrong)).pvalue < 1e-9


def test_entropy_is_that_of_the_masked_distribution():
  params = CONTROLLER.init(jax.random.key(0))
  _, entropy, is_choice = CONTROLLER.log_probs(
    params, jnp.asarray(SPACE.parse("8 relu - 16 relu"))
  )
  # position 0: two widths; then dropout or a width or the end; then it has ended
  assert is_choice.tolist() == [True, True, True, False]
  p = np.exp(np.asarray(SPACE.log_prior(jnp.array([1, 0, 0, 0]), 1), float))
  p = p[p > 0]
  np.testing.assert_allclose(
    entropy[:2], [np.log(2), -(p * np.log(p)).sum()], rtol=1e-5
  )
  assert entropy[3] == 0


def test_predictions_depend_on_every_layer():
  params = trained_like(2)
  archs = ["8 relu", "8 relu - 8 relu", "8 relu - 16 relu", "16 relu - 8 relu"]
  genotypes = np.stack([SPACE.parse(arch) for arch in archs])
  scores = np.asarray(jax.vmap(lambda g: CONTROLLER.predict(params, g))(genotypes))
  assert ((scores > 0) & (scores < 1)).all()
  assert len(np.unique(scores.round(6))) == len(archs)


@pytest.mark.parametrize("size", [1, 8, 128])
def test_the_orthogonal_matrix_is_flax_s(size):
  key = jax.random.key(size)
  ours = jax.jit(orthogonal, static_argnums=1)(key, (size, size))
  flax_s = nn.initializers.orthogonal()(jax.random.clone(key), (size, size))
  np.testing.assert_allclose(ours, flax_s, atol=2e-5)
  np.testing.assert_allclose(ours.T @ ours, np.eye(size), atol=2e-6)


def test_independent_logits_are_read_and_drawn_alike():
  space = Categorical((2, 3))
  controller = independent_controller(space, scale=1.0)
  params = controller.init(jax.random.key(0))
  log_p = np.asarray(jax.nn.log_softmax(params["logits"][1]))
  found, entropy, is_choice = controller.log_probs(params, jnp.array([1, 2]))
  assert found[1] == pytest.approx(log_p[2], abs=1e-5)
  assert entropy[1] == pytest.approx(-(np.exp(log_p) * log_p).sum(), abs=1e-5)
  assert is_choice.tolist() == [True, True]
  # The third choice of the first decision does not exist, whatever its logit.
  first = np.asarray(params["logits"][0][:2])
  assert found[0] == pytest.approx(first[1] - np.log(np.exp(first).sum()), abs=1e-5)
  draws = jax.vmap(controller.sample, (None, 0))(
    params, jax.random.split(jax.random.key(1), 2000)
  )
  share = np.bincount(np.asarray(draws[:, 1]), minlength=3) / 2000
  np.testing.assert_allclose(share, np.exp(log_p), atol=0.05)
  assert draws[:, 0].max() == 1
  assert 0 < float(controller.predict(params, draws[0])) < 1
