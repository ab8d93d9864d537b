"""Recurrent cells, derived and mixed, against numpy; causality, windows, sizes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nasjax.core.types import InputError
from nasjax.networks import cell_rnn, supernet_rnn
from nasjax.networks.cell_rnn import Dropout
from nasjax.spaces.recurrent_cell import PRIMITIVES, Edge, RecurrentCell, edges

pytestmark = pytest.mark.usefixtures("quick_compile")
RNG = np.random.default_rng(0)
T, B, V, H, N = 4, 3, 7, 5, 3
PLAN = cell_rnn.make_plan(V, H, N)
CELL = (Edge("relu", 0), Edge("identity", 0), Edge("sigmoid", 2))
OPS = {
  "tanh": np.tanh,
  "relu": lambda u: np.maximum(u, 0),
  "sigmoid": lambda u: 1 / (1 + np.exp(-u)),
  "identity": lambda u: u,
}


@functools.cache
def model():
  """Weights that are not small, tokens, a hidden state and masks."""
  weights = {
    name: jnp.asarray(15 * value + 0.1 * RNG.normal(size=value.shape), jnp.float32)
    for name, value in cell_rnn.init(np.uint32(1), PLAN).items()
  }
  tokens = jnp.asarray(RNG.integers(0, V, (T, B)), jnp.int32)
  hidden = jnp.asarray(RNG.normal(size=(B, H)), jnp.float32)
  dropout = Dropout(0.4, 0.4, 0.3, 0.3, 0.3)
  masks = cell_rnn.draw_masks(jax.random.key(0), PLAN, B, dropout)
  return weights, tokens, hidden, masks


def in_numpy(cell, tokens, masks):
  """The equations, step by step, each mask the same at every step."""
  weights, _, hidden, _ = jax.tree.map(np.asarray, model())
  ones = np.ones(1)
  output, kept, embedded, input_mask, words = masks or (ones,) * 5
  hidden, states, logits = hidden, [], []
  for row in np.asarray(tokens):
    scale = words[row][:, None] if masks else 1.0
    x = weights["embedding"][row] * scale * embedded * input_mask
    both = np.concatenate([x, hidden * kept], 1) @ weights["input"]
    c, u = OPS["sigmoid"](both[:, :H]), np.tanh(both[:, H:])
    hidden = cell(hidden + c * (u - hidden), weights["nodes"], kept)
    states.append(hidden)
    logits.append((hidden * output) @ weights["embedding"].T + weights["bias"])
  return np.stack(logits), np.stack(states)


def derived_in_numpy(s0, matrices, kept):
  states = [s0]
  for (op, source), matrix in zip(CELL, matrices):
    both = (states[source] * kept) @ matrix
    c, u = OPS["sigmoid"](both[:, :H]), OPS[op](both[:, H:])
    states.append(states[source] + c * (u - states[source]))
  return np.mean(states[1:], 0)


def mixed_in_numpy(alphas, s0, matrices, kept):
  """One edge and one activation at a time, as the paper writes it."""

  def norm(s):
    return (s - s.mean(0)) / np.sqrt(s.var(0) + 1e-5)

  mix = np.exp(alphas) / np.exp(alphas).sum(-1, keepdims=True)
  states = [norm(s0), *([0.0] * N)]
  for edge, (source, target) in enumerate(edges(N)):
    both = (states[source] * kept) @ matrices[target - 1]
    c, u = OPS["sigmoid"](both[:, :H]), both[:, H:]
    for number, op in enumerate(PRIMITIVES[1:], 1):
      brought = states[source] + c * (OPS[op](u) - states[source])
      states[target] = states[target] + mix[edge, number] * brought
    if source == target - 1:
      states[target] = norm(states[target])
  return np.mean(states[1:], 0)


@pytest.mark.parametrize("masked", [False, True])
def test_a_derived_window_against_numpy(masked):
  weights, tokens, hidden, masks = model()
  masks = masks if masked else None
  found = cell_rnn.derived(weights, CELL, tokens, hidden, masks)
  logits, states = in_numpy(derived_in_numpy, tokens, jax.tree.map(np.asarray, masks))
  np.testing.assert_allclose(found.logits, logits, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(found.states, states, rtol=1e-4, atol=1e-5)
  np.testing.assert_array_equal(found.hidden, found.states[-1])


@pytest.mark.parametrize("masked", [False, True])
def test_a_mixed_window_against_numpy(masked):
  weights, tokens, hidden, masks = model()
  masks = masks if masked else None
  alphas = RNG.normal(size=(6, 5)).astype(np.float32)
  found = supernet_rnn.apply(weights, jnp.asarray(alphas), tokens, hidden, masks)
  logits, states = in_numpy(
    functools.partial(mixed_in_numpy, alphas),
    tokens,
    jax.tree.map(np.asarray, masks),
  )
  np.testing.assert_allclose(found.logits, logits, rtol=1e-3, atol=1e-4)
  np.testing.assert_allclose(found.states, states, rtol=1e-3, atol=1e-4)


def test_masks_keep_the_mean():
  plan = cell_rnn.make_plan(1000, 50, 1)
  dropout = Dropout(0.75, 0.25, 0.2, 0.5, 0.1)
  masks = cell_rnn.draw_masks(jax.random.key(3), plan, 40, dropout)
  for name, rate, mask in zip(Dropout._fields, dropout, masks):
    assert mask.shape == ((1000,) if name == "words" else (40, 50))
    np.testing.assert_allclose(np.unique(mask), [0, 1 / (1 - rate)], rtol=1e-6)
    assert abs(mask.mean() - 1) < 0.15
  assert (masks.input != masks.hidden).any()


def all_apply():
  weights, _, hidden, _ = model()
  alphas = supernet_rnn.init_alphas(jax.random.key(0), N)
  return {
    "derived": lambda w, t, h=hidden, **o: cell_rnn.derived(w, CELL, t, h, **o),
    "mixed": lambda w, t, h=hidden, **o: supernet_rnn.apply(w, alphas, t, h, **o),
  }


@pytest.mark.parametrize("kind", ["derived", "mixed"])
def test_nothing_is_known_of_later_words(kind):
  """Where every place has a word of its own, rows of later words have no gradient."""
  run, weights = all_apply()[kind], model()[0]
  tokens = jnp.tile(jnp.arange(T, dtype=jnp.int32)[:, None], (1, B))

  def at(step, weights):
    return jnp.square(run(weights, tokens).states[step]).sum()

  for step in range(T):
    gradient = jax.grad(functools.partial(at, step))(weights)["embedding"]
    assert (np.asarray(gradient[step + 1 :]) == 0).all()
    assert (np.abs(gradient[: step + 1]).max(-1) > 0).all()


@pytest.mark.parametrize("kind", ["derived", "mixed"])
def test_windows_go_on_where_the_one_before_ended(kind):
  run, (weights, tokens, _, _) = all_apply()[kind], model()
  whole = run(weights, tokens)
  first = run(weights, tokens[:1])
  rest = run(weights, tokens[1:], first.hidden)
  np.testing.assert_allclose(rest.states, whole.states[1:], rtol=1e-4, atol=1e-5)
  short = run(weights, tokens, length=jnp.int32(2))
  np.testing.assert_allclose(short.hidden, whole.states[1], rtol=1e-5)


def test_the_papers_number_of_weights():
  """23 million on Penn Treebank: a tied table, its bias, W_0 and eight W_i."""
  plan = cell_rnn.make_plan(10_000, 850, 8)
  found = cell_rnn.num_params(cell_rnn.init(np.uint32(0), plan))
  assert found == 10_000 * 851 + 1700 * 1700 + 8 * 850 * 1700 == 22_960_000
  space = RecurrentCell()
  assert len(space.decode(space.parse("DARTS_V2"))) == plan.nodes


def test_initial_weights():
  weights = cell_rnn.init(np.uint32(0), PLAN)
  other = cell_rnn.init(np.uint32(1), PLAN)
  assert (weights["bias"] == 0).all() and weights["nodes"].shape == (N, H, 2 * H)
  for name in ("embedding", "input", "nodes"):
    assert np.abs(weights[name]).max() <= 0.04
    assert (weights[name] != other[name]).any()
  assert (weights["nodes"][0] != weights["nodes"][1]).any()
  alphas = supernet_rnn.init_alphas(jax.random.key(0))
  assert alphas.shape == (36, 5) and 5e-4 < np.std(alphas) < 2e-3


@pytest.mark.parametrize("sizes", [(1, 4, 1), (9, 0, 1), (9, 4, 0)])
def test_plans_that_cannot_be(sizes):
  with pytest.raises(InputError):
    cell_rnn.make_plan(*sizes)
