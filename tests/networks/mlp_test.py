import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nasjax.networks import mlp
from nasjax.spaces.mlp_chain import ACTIVATIONS, MLPChain

SPACE = MLPChain(widths=(3, 5, 8), max_layers=6)
F, C, B = 4, 3, 7
# Each with a frame that has an empty slot, a narrower slot, or room to spare.
ARCHS = {
  "8 sigmoid": (8, 8, 9),
  "3 relu - 5 tanh - dropout 0.2 - 8 elu - 3 sigmoid": (8, 4, 5, 8, 6),
  "5 tanh - dropout 0.2 - dropout 0.2 - 5 relu": (5, 16, 5),
}


def layers_of(arch):
  return SPACE.layers(SPACE.parse(arch))


def forms(arch, seed=0):
  """The layers, exact weights, slots, and framed weights of an architecture."""
  layers, frame = layers_of(arch), ARCHS[arch]
  exact = mlp.init(np.uint32(seed), layers, F, C)
  return layers, exact, mlp.slots_of(layers, frame), mlp.pad(exact, layers, frame, C)


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
  layers, exact, slots, framed = forms(arch)
  x = np.random.default_rng(0).normal(size=(B, F)).astype(np.float32)
  expected = numpy_forward(exact, layers, x)
  np.testing.assert_allclose(mlp.apply(exact, layers, x), expected, atol=1e-5)
  np.testing.assert_allclose(mlp.apply_framed(framed, slots, x), expected, atol=1e-5)


@pytest.mark.parametrize("arch", list(ARCHS)[1:])
def test_dropout_draws_the_same_mask_in_both_forms(arch):
  layers, exact, slots, framed = forms(arch)
  x = np.random.default_rng(1).normal(size=(64, F)).astype(np.float32)
  seed = np.uint32(3)
  dropped = mlp.apply(exact, layers, x, seed)
  np.testing.assert_allclose(
    mlp.apply_framed(framed, slots, x, seed), dropped, atol=1e-5
  )
  assert np.abs(dropped - mlp.apply(exact, layers, x)).max() > 0.01


@pytest.mark.parametrize("kept", [0.8, 0.64])
def test_dropout_keeps_the_mean_and_the_rate(kept):
  dropped = np.asarray(mlp._drop(jnp.ones((4000, 5)), np.uint32(9), np.float32(kept)))
  np.testing.assert_allclose(np.unique(dropped), [0.0, 1 / kept], rtol=1e-6)
  assert abs((dropped > 0).mean() - kept) < 0.01
  assert np.abs((dropped > 0).mean(0) - kept).max() < 0.03


def test_dropout_layers_in_a_row_are_one_with_the_product_of_their_rates():
  twice = mlp.with_dropout(layers_of("5 tanh - dropout 0.2 - dropout 0.2 - 5 relu"))
  assert [kept for _, _, kept in twice] == [pytest.approx(0.64), 1.0]


def test_initial_weights_have_glorots_limits():
  weights = mlp.init(np.uint32(1), layers_of("8 relu - dropout 0.2 - 3 tanh"), F, C)
  assert [w["kernel"].shape for w in weights] == [(F, 8), (8, 3), (3, C)]
  for layer in weights:
    limit = np.sqrt(6 / sum(layer["kernel"].shape))
    assert 0.5 * limit < np.abs(layer["kernel"]).max() <= limit
    assert not layer["bias"].any() and layer["kernel"].dtype == np.float32
  other = mlp.init(np.uint32(2), layers_of("8 relu"), F, C)
  assert np.abs(other[0]["kernel"] - weights[0]["kernel"]).min() > 0


@pytest.mark.parametrize("arch", ARCHS)
def test_cut_is_the_inverse_of_pad(arch):
  layers, exact, _, framed = forms(arch)
  for a, b in zip(mlp.cut(framed, layers), exact, strict=True):
    np.testing.assert_array_equal(a["kernel"], b["kernel"])
    np.testing.assert_array_equal(a["bias"], b["bias"])


def test_where_layers_are_placed():
  assert mlp.place([8], (8, 8, 4)) is None  # nothing as wide passes through the last
  assert mlp.place([8], (8, 8, 8)) == (0,)
  assert mlp.place([3, 8], (4, 4, 8)) == (0, 2)
  assert mlp.place([3, 3], (4, 4, 8)) == (0, 1)
  assert mlp.place([9], (8,)) is None and mlp.place([3, 3], (8,)) is None
  with pytest.raises(ValueError, match="does not fit"):
    mlp.slots_of(layers_of("8 relu"), (4,))


def test_counts_by_hand():
  layers = layers_of("8 relu - dropout 0.2 - 3 tanh")
  assert mlp.num_params(layers, F, C) == (4 + 1) * 8 + (8 + 1) * 3 + (3 + 1) * 3
  assert mlp.flops(layers, F, C) == 9 * 8 + 17 * 3 + 7 * 3


def test_no_gradient_reaches_what_lies_outside_the_layers():
  arch = "3 relu - 5 tanh - dropout 0.2 - 8 elu - 3 sigmoid"
  layers, _, slots, framed = forms(arch)
  x = np.random.default_rng(0).normal(size=(B, F)).astype(np.float32)
  gradient = jax.grad(lambda w: mlp.apply_framed(w, slots, x).sum())(framed)
  outside = jax.tree.map(np.array, gradient)
  for layer in mlp.cut(outside, layers):  # views
    assert np.any(layer["kernel"])
    layer["kernel"][:] = layer["bias"][:] = 0.0
  assert not any(map(np.any, jax.tree.leaves(outside)))


def test_an_empty_slot_passes_everything_on_and_back():
  frame = (8, 8, 16)
  layers = layers_of("8 tanh")
  exact = mlp.init(np.uint32(3), layers, F, C)
  framed, slots = mlp.pad(exact, layers, frame, C), mlp.slots_of(layers, frame)
  np.testing.assert_array_equal(framed[2]["kernel"], np.eye(8, 16))
  x = np.random.default_rng(1).normal(size=(B, F)).astype(np.float32)
  got, back = jax.vjp(lambda w: mlp.apply_framed(w, slots, x), framed)
  expected, exact_back = jax.vjp(lambda w: mlp.apply(w, layers, x), exact)
  np.testing.assert_allclose(got, expected, atol=1e-6)
  gradient, exact_gradient = back(got)[0], exact_back(expected)[0]
  for a, b in zip(mlp.cut(gradient, layers), exact_gradient, strict=True):
    np.testing.assert_allclose(a["kernel"], b["kernel"], atol=1e-5)
    np.testing.assert_allclose(a["bias"], b["bias"], atol=1e-5)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_traced_activation_and_its_slope(name):
  terms = tuple(map(np.float32, mlp.ACTIVATION_TERMS[name]))
  x = jnp.linspace(-3.0, 3.0, 31)
  expected, slope = jax.vjp(mlp._FUNCTIONS[name], x)
  got, got_slope = jax.vjp(lambda v: mlp.activate(v, terms), x)
  np.testing.assert_allclose(got, expected, atol=1e-6)
  away = np.abs(x) > 1e-6  # at 0 a relu has any slope between 0 and 1
  ones = jnp.ones_like(x)
  np.testing.assert_allclose(
    np.asarray(got_slope(ones)[0])[away], np.asarray(slope(ones)[0])[away], atol=1e-6
  )


def test_population_equals_one_at_a_time():
  frame = (8, 8, 8, 8)
  layers = [layers_of(arch) for arch in ARCHS]
  x = jnp.ones((B, F))
  slots = [mlp.slots_of(chain, frame) for chain in layers]
  weights = [
    mlp.pad(mlp.init(np.uint32(i), chain, F, C), chain, frame, C)
    for i, chain in enumerate(layers)
  ]

  def outputs(weights, slots, seed):
    return mlp.apply_framed(weights, slots, x, seed)

  seeds = np.arange(3, dtype=np.uint32)
  stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *zip(weights, slots))
  together = jax.vmap(outputs)(*stacked, seeds)
  for i in range(3):
    alone = outputs(weights[i], slots[i], seeds[i])
    np.testing.assert_allclose(together[i], alone, atol=1e-6)
