import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nasjax.networks import mlp, tiled
from nasjax.networks.tiled import TILE, Bounds
from nasjax.spaces.mlp_chain import Dense, Dropout

F, C, B = 70, 3, 5
BOUNDS = Bounds(F, 130, 4, C)
CHAINS = [
  (Dense(8, "relu"),),
  (Dense(130, "tanh"), Dense(130, "elu"), Dense(130, "sigmoid"), Dense(130, "relu")),
  (Dense(3, "sigmoid"), Dropout(0.2), Dense(100, "elu"), Dense(64, "tanh")),
]


def forms(layers):
  exact = mlp.init(np.uint32(5), layers, F, C)
  return exact, tiled.pack(exact, BOUNDS), tiled.map_of(layers, BOUNDS)


@pytest.mark.parametrize("layers", CHAINS)
def test_cut_is_the_inverse_of_pack(layers):
  exact, weights, _ = forms(layers)
  for part in exact:
    part["bias"] += np.arange(len(part["bias"]), dtype=np.float32)
  weights = tiled.pack(exact, BOUNDS)
  for a, b in zip(tiled.cut(weights, layers, BOUNDS), exact, strict=True):
    np.testing.assert_array_equal(a["kernel"], b["kernel"])
    np.testing.assert_array_equal(a["bias"], b["bias"])


@pytest.mark.parametrize("layers", CHAINS)
def test_outputs_are_those_of_the_exact_network(layers):
  exact, weights, chain = forms(layers)
  x = np.random.default_rng(0).normal(size=(B, F)).astype(np.float32)
  run = jax.jit(lambda weights, chain, x: tiled.apply(weights, chain, x, BOUNDS))
  np.testing.assert_allclose(
    run(weights, chain, x), mlp.apply(exact, layers, x), atol=1e-5
  )


def test_one_program_serves_every_chain():
  traces = []

  @jax.jit
  def run(weights, chain, x):
    traces.append(1)
    return tiled.apply(weights, chain, x, BOUNDS)

  for layers in CHAINS:
    _, weights, chain = forms(layers)
    run(weights, chain, jnp.ones((B, F)))
  assert len(traces) == 1


def test_dropout_draws_what_the_exact_network_draws():
  layers = (Dense(100, "relu"), Dropout(0.4))
  chain, seed = tiled.map_of(layers, BOUNDS), np.uint32(77)
  whole = mlp._drop(jnp.ones((B, 100)), seed ^ mlp.salt_of(0), np.float32(0.6))
  for tile in range(2):
    got = tiled.dropout(chain, tile, B, seed)[:, : 100 - tile * TILE]
    expected = np.asarray(whole)[:, tile * TILE : (tile + 1) * TILE]
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_counts_by_hand():
  assert tiled.count_tiles((100, 8), 70) == (2 + 1, 2 * 2 + 2 * 1)
  largest = (BOUNDS.units,) * BOUNDS.layers
  assert tiled.count_tiles(largest, F) == (BOUNDS.out_tiles, BOUNDS.kernel_tiles)
  assert (BOUNDS.out_tiles, BOUNDS.kernel_tiles) == (12, 2 * 3 + 3 * 9)
