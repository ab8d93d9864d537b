import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nasjax.networks import mlp
from nasjax.spaces import base
from nasjax.spaces.mlp_chain import MLPChain

SPACE = MLPChain(widths=(3, 5, 8), max_layers=6)
F, C, B = 4, 3, 7
ARCHS = [
  "8 sigmoid",
  "3 relu - 5 tanh - dropout 0.2 - 8 elu - 3 sigmoid",
  "5 tanh - dropout 0.2 - dropout 0.2 - 5 relu",
]


def weights_of(genotype, seed=0):
  init = jax.jit(lambda key, g: mlp.init(key, SPACE, g, F, C))
  return jax.tree.map(np.asarray, init(jax.random.key(seed), jnp.asarray(genotype)))


def numpy_forward(weights, layers, x):
  """An independent forward pass without dropout."""
  functions = {
    "sigmoid": lambda v: 1 / (1 + np.exp(-v)),
    "tanh": np.tanh,
    "relu": lambda v: np.maximum(v, 0),
    "elu": lambda v: np.where(v > 0, v, np.expm1(np.minimum(v, 0))),
  }
  dense = [layer for layer in layers if hasattr(layer, "width")]
  for layer, w in zip(dense, weights):
    x = functions[layer.activation](x @ w["kernel"] + w["bias"])
  return x @ weights[-1]["kernel"] + weights[-1]["bias"]


@pytest.mark.parametrize("arch", ARCHS)
def test_both_forms_equal_numpy(arch):
  genotype = SPACE.parse(arch)
  layers = SPACE.layers(genotype)
  padded = weights_of(genotype)
  exact = mlp.extract(padded, layers)
  x = np.random.default_rng(0).normal(size=(B, F)).astype(np.float32)
  expected = numpy_forward(exact, layers, x)
  np.testing.assert_allclose(mlp.apply(exact, layers, x), expected, atol=1e-5)
  np.testing.assert_allclose(
    mlp.apply_padded(padded, SPACE, jnp.asarray(genotype), x), expected, atol=1e-5
  )


@pytest.mark.parametrize("arch", ARCHS[1:])
def test_dropout_draws_the_same_mask_in_both_forms(arch):
  genotype = SPACE.parse(arch)
  layers, padded = SPACE.layers(genotype), weights_of(genotype)
  x = np.random.default_rng(1).normal(size=(64, F)).astype(np.float32)
  key = jax.random.key(3)
  exact = mlp.apply(mlp.extract(padded, layers), layers, x, key)
  np.testing.assert_allclose(
    mlp.apply_padded(padded, SPACE, jnp.asarray(genotype), x, key), exact, atol=1e-5
  )
  still = mlp.apply(mlp.extract(padded, layers), layers, x)
  assert np.abs(exact - still).max() > 0.01


def test_dropout_keeps_the_mean_and_the_rate():
  x = jnp.ones((4000, 5))
  dropped = np.asarray(mlp._drop(jax.random.key(0), 2, 0.2, x))
  assert set(np.unique(dropped)) == {0.0, 1.25}
  assert abs((dropped == 0).mean() - 0.2) < 0.01


def test_initial_weights_have_glorots_limits_of_the_true_sizes():
  genotype = SPACE.parse("8 relu - dropout 0.2 - 3 tanh")
  kernels = [
    w["kernel"] for w in mlp.extract(weights_of(genotype), SPACE.layers(genotype))
  ]
  assert [k.shape for k in kernels] == [(F, 8), (8, 3), (3, C)]
  for kernel in kernels:
    limit = np.sqrt(6 / sum(kernel.shape))
    assert 0.5 * limit < np.abs(kernel).max() <= limit


def test_extract_and_embed_are_inverse():
  genotype = SPACE.parse(ARCHS[1])
  layers, padded = SPACE.layers(genotype), weights_of(genotype)
  other = weights_of(genotype, seed=1)
  embedded = mlp.embed(mlp.extract(padded, layers), layers, other)
  for a, b in zip(mlp.extract(embedded, layers), mlp.extract(padded, layers)):
    np.testing.assert_array_equal(a["kernel"], b["kernel"])
    np.testing.assert_array_equal(a["bias"], b["bias"])


def test_counts_by_hand():
  layers = SPACE.layers(SPACE.parse("8 relu - dropout 0.2 - 3 tanh"))
  assert mlp.num_params(layers, F, C) == (4 + 1) * 8 + (8 + 1) * 3 + (3 + 1) * 3
  assert mlp.flops(layers, F, C) == 9 * 8 + 17 * 3 + 7 * 3


def test_no_gradient_reaches_what_lies_outside_the_layers():
  genotype = SPACE.parse("3 sigmoid - 5 relu")
  padded = weights_of(genotype)
  x = np.ones((B, F), np.float32)

  def loss(weights):
    return mlp.apply_padded(weights, SPACE, jnp.asarray(genotype), x).sum()

  gradient = jax.grad(loss)(padded)
  layers = SPACE.layers(genotype)
  inside = mlp.extract(gradient, layers)
  nothing = jax.tree.map(np.zeros_like, inside)
  outside = mlp.embed(nothing, layers, gradient)
  assert all(not np.any(leaf) for leaf in jax.tree.leaves(outside))
  assert all(np.any(layer["kernel"]) for layer in inside)


def test_population_equals_one_at_a_time():
  genotypes = np.stack([SPACE.parse(arch) for arch in ARCHS])
  keys = jax.random.split(jax.random.key(5), len(ARCHS))

  def outputs(key, genotype):
    weights = mlp.init(key, SPACE, genotype, F, C)
    return mlp.apply_padded(weights, SPACE, genotype, jnp.ones((B, F)))

  together = jax.vmap(outputs)(jax.random.clone(keys), genotypes)
  order = np.array([2, 0, 1])
  permuted = jax.vmap(outputs)(jax.random.clone(keys)[order], genotypes[order])
  np.testing.assert_allclose(permuted, together[order], rtol=1e-6)
  assert bool(jnp.isfinite(together).all())
  assert base.sample(SPACE, jax.random.key(0)).shape == (SPACE.length,)
