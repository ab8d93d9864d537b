"""Windows, losses, averaged SGD and the second-order step of recurrent cells."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nasjax.data import text
from nasjax.networks import cell_rnn
from nasjax.networks.cell_rnn import Dropout
from nasjax.spaces.recurrent_cell import RecurrentCell
from nasjax.strategies import darts
from nasjax.training import recurrent

pytestmark = pytest.mark.usefixtures("quick_compile")
RNG = np.random.default_rng(0)
NO_DROPOUT = Dropout(0.0, 0.0, 0.0, 0.0, 0.0)
SPACE = RecurrentCell(2)
CELL = SPACE.decode(
  SPACE.parse("Genotype(recurrent=[('tanh', 0), ('sigmoid', 1)], concat=[1, 2])")
)


def plan_of(vocabulary, hidden=4):
  return cell_rnn.make_plan(vocabulary, hidden, 2)


def test_a_window_holds_the_tokens_after():
  streams = np.arange(20).reshape(10, 2).astype(np.int32)
  filled = recurrent.on_device(streams, 4)
  make = recurrent.window_maker(plan_of(20), 4, Dropout(words=0.5))
  hidden = jnp.zeros((2, 4))
  batch = make(jax.random.key(0), filled, np.int32(6), np.int32(3), hidden)
  np.testing.assert_array_equal(
    batch.tokens,
    [
      *streams[6:],
    ][:4],
  )
  np.testing.assert_array_equal(batch.targets[:3], streams[7:])
  assert batch.length == 3 and batch.masks.words.shape == (20,)
  again = make(jax.random.key(0), filled, np.int32(0), np.int32(3), hidden)
  np.testing.assert_array_equal(batch.masks.hidden, again.masks.hidden)
  other = make(jax.random.key(1), filled, np.int32(0), np.int32(3), hidden)
  assert (other.masks.words != again.masks.words).any()


@pytest.mark.parametrize("steps", [9, 12])
def test_a_model_that_knows_nothing_is_as_perplexed_as_there_are_words(steps):
  plan = plan_of(11)
  weights = jax.tree.map(jnp.zeros_like, cell_rnn.init(np.uint32(0), plan))
  streams = jnp.asarray(RNG.integers(0, 11, (steps, 3)), jnp.int32)
  loss = recurrent.derived_tester(plan, CELL, 4)(weights, streams)
  np.testing.assert_allclose(np.exp(loss), 11.0, rtol=1e-5)


def test_testing_carries_the_hidden_state():
  """The same whatever the window."""
  plan = plan_of(11)
  weights = {k: 20 * v for k, v in cell_rnn.init(np.uint32(0), plan).items()}
  streams = jnp.asarray(RNG.integers(0, 11, (12, 3)), jnp.int32)
  found = [
    float(recurrent.derived_tester(plan, CELL, window)(weights, streams))
    for window in (3, 5, 11)
  ]
  np.testing.assert_allclose(found, found[0], rtol=1e-5)
  hidden = jnp.zeros((3, 4))
  logits = cell_rnn.derived(weights, CELL, streams[:-1], hidden).logits
  every = jax.nn.log_softmax(logits, -1)
  own = np.take_along_axis(np.asarray(every), np.asarray(streams)[1:, :, None], -1)
  np.testing.assert_allclose(found[0], -own.mean(), rtol=1e-5)


def test_slowness_by_hand():
  states = jnp.asarray(RNG.normal(size=(5, 2, 3)), jnp.float32)
  for length in (1, 3, 5):
    steps = np.diff(np.asarray(states)[:length], axis=0)
    wanted = np.square(steps).mean() if length > 1 else 0.0
    np.testing.assert_allclose(recurrent.slowness(states, length), wanted, rtol=1e-5)


def point(seed=0, vocabulary=6):
  """Weights in float64, alphas, and two windows of a supernet."""
  rng, plan = np.random.default_rng(seed), plan_of(vocabulary, 3)
  weights = {
    k: jnp.asarray(10 * v + 0.2 * rng.normal(size=v.shape), jnp.float64)
    for k, v in cell_rnn.init(np.uint32(seed), plan).items()
  }
  alphas = jnp.asarray(rng.normal(size=(3, 5)))
  batches = []
  for number in range(2):
    key = jax.random.key(number)
    masks = cell_rnn.draw_masks(key, plan, 4, Dropout(0.3, 0.3, 0.3, 0.3, 0.3))
    tokens = jnp.asarray(rng.integers(0, vocabulary, (4, 4)))
    hidden = jnp.asarray(rng.normal(size=(4, 3)))
    batches.append(
      recurrent.Batch(tokens[:-1], tokens[1:], jnp.int32(3 - number), hidden, masks)
    )
  return weights, alphas, batches


@pytest.mark.parametrize("clip_norm", [None, 0.05])
def test_the_exact_step_against_differences_of_the_outer_loss(clip_norm):
  """All of it in float64: the window, the clipping, the decay."""
  with jax.enable_x64(True):
    weights, alphas, (train, valid) = point()
    train, loss_of = train._replace(slowness=0.1), recurrent.supernet_loss
    velocity = jax.tree.map(jnp.zeros_like, weights)
    inner = darts.Inner(3.0, velocity, 0.0, 0.01, clip_norm)
    (loss, seen), found = darts.unrolled(
      loss_of, loss_of, weights, alphas, train, valid, inner
    )

    @jax.jit
    def outer(alphas):
      gradient = jax.grad(lambda w: loss_of(w, alphas, train)[0])(weights)
      norm = jnp.sqrt(sum((g**2).sum() for g in jax.tree.leaves(gradient)))
      scale = 1.0 if clip_norm is None else clip_norm / norm
      moved = jax.tree.map(
        lambda w, g: w - 3.0 * (scale * g + 0.01 * w), weights, gradient
      )
      return loss_of(moved, alphas, valid)[0], norm

    assert outer(alphas)[1] > 0.05  # it is clipped
    np.testing.assert_allclose(loss, outer(alphas)[0], rtol=1e-10)
    assert seen.hidden.shape == (4, 3) and seen.cross_entropy == loss
    wanted = np.zeros(alphas.shape)
    for place in np.ndindex(*alphas.shape):
      ahead, behind = (outer(alphas.at[place].add(d))[0] for d in (1e-5, -1e-5))
      wanted[place] = (ahead - behind) / 2e-5
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-8)
    first = darts.first_order(loss_of, weights, alphas, valid)[1]
    assert np.abs(first - found).max() > 1e-3 * np.abs(found).max()


def test_a_window_ends_the_gradient_but_not_the_state():
  """The second window's gradient is that of a constant hidden state."""
  with jax.enable_x64(True):
    weights, alphas, (first, second) = point(1)
    loss = recurrent.supernet_loss

    def two(stop, weights):
      hidden = loss(weights, alphas, first)[1].hidden
      return loss(weights, alphas, second._replace(hidden=stop(hidden)))[0]

    @jax.jit
    def gradients(weights):
      carried = loss(weights, alphas, first)[1].hidden
      value, ours = jax.value_and_grad(
        lambda w: loss(w, alphas, second._replace(hidden=carried))[0]
      )(weights)
      cut, through = (
        jax.grad(functools.partial(two, stop))(weights)
        for stop in (jax.lax.stop_gradient, lambda h: h)
      )
      return value, ours, cut, through

    value, ours, cut, through = gradients(weights)
    assert abs(value - loss(weights, alphas, second)[0]) > 1e-4  # the state counts
    np.testing.assert_allclose(ours["input"], cut["input"], rtol=1e-10)
    assert np.abs(ours["input"] - through["input"]).max() > 1e-4


def test_averaged_sgd_is_the_mean_of_the_weights_since():
  steps = RNG.normal(size=(7, 3)).astype(np.float32)
  state = recurrent.Average({"w": jnp.zeros(3)}, {"w": jnp.zeros(3)}, jnp.int32(0))
  for number, weights in enumerate(steps):
    state = recurrent.averaged(state, {"w": jnp.asarray(weights)}, number >= 3)
    wanted = steps[3 : number + 1].mean(0) if number >= 3 else weights
    np.testing.assert_allclose(state.mean["w"], wanted, rtol=1e-5)
    np.testing.assert_array_equal(state.weights["w"], weights)
  assert state.steps == 4


def test_what_begins_averaging():
  begins = recurrent.begins_to_average
  assert not begins([3.0, 2.0, 1.0, 0.9], 2)  # falls
  assert begins([1.0, 2.0, 2.0, 1.5], 2)  # lower three epochs ago
  assert not begins([2.0, 1.0, 1.0, 1.5], 2)  # lower two epochs ago: wait
  assert not begins([1.0, 2.0, 1.5], 2)  # nothing is long enough ago


def test_a_derived_cell_learns_a_cycle_then_averages():
  """Tokens in a fixed order are predicted; the same key gives the same weights."""
  tokens = np.tile(np.arange(5, dtype=np.int32), 60)
  recipe = recurrent.Recipe(
    epochs=12,
    batch_size=4,
    window=6,
    learning_rate=5.0,
    clip_norm=0.5,
    patience=1,
    dropout=NO_DROPOUT._replace(hidden=0.1),
  )
  valid = text.streams(tokens[:60], 2)
  plan = plan_of(5, 8)
  train = functools.partial(
    recurrent.train_derived, jax.random.key(0), plan, CELL, tokens, valid, recipe
  )
  done = list(train())
  assert [each.epoch for each in done] == list(range(1, 13))
  assert done[0].valid_loss > 1.0 and min(each.valid_loss for each in done) < 0.1
  began = [each.averaging for each in done]
  assert began == sorted(began) and not began[0]
  test = recurrent.derived_tester(plan, CELL, 6)
  again = float(test(done[-1].weights, jnp.asarray(valid)))
  np.testing.assert_allclose(again, done[-1].valid_loss, rtol=1e-6)
  first = next(iter(train()))
  np.testing.assert_array_equal(first.weights["nodes"], done[0].weights["nodes"])
  # What goes on from the course after some epoch ends as if it had not stopped: before
  # averaging has begun, as it begins, and while it goes on.
  began = began.index(True)
  for stop in (1, began, began + 1):
    *_, before = itertools.islice(train(), stop)
    course = jax.tree.map(np.copy, before.course._replace(since=0))
    course = course._replace(since=before.course.since)
    assert (course.since > 0) == (stop >= began)
    rest = list(train(resume=lambda fresh, course=course: course))
    assert [each.epoch for each in rest] == list(range(stop + 1, 13))
    for name in ("train_losses", "valid_losses"):
      np.testing.assert_array_equal(
        getattr(rest[-1].course, name), getattr(done[-1].course, name)
      )
    jax.tree.map(np.testing.assert_array_equal, rest[-1].weights, done[-1].weights)
    best = int(np.argmin(rest[-1].course.valid_losses))
    jax.tree.map(
      np.testing.assert_array_equal, rest[-1].course.best, done[best].weights
    )


def test_a_training_that_diverges_ends():
  tokens = np.tile(np.arange(5, dtype=np.int32), 20)
  recipe = recurrent.Recipe(
    epochs=9, batch_size=2, window=5, learning_rate=1e30, dropout=NO_DROPOUT
  )
  valid = text.streams(tokens, 2)
  done = list(
    recurrent.train_derived(jax.random.key(0), plan_of(5), CELL, tokens, valid, recipe)
  )
  assert len(done) < 9 and not np.isfinite(done[-1].valid_loss)


def test_operations_of_a_token():
  """Products alone: W_0, a matrix a node, and the decoder."""
  space = RecurrentCell()
  plan = cell_rnn.make_plan(100, 16, 8)
  found = recurrent.derived_flops(plan, space.decode(space.parse("DARTS_V2")))
  assert found == 2 * (32 * 32 + 8 * 16 * 32 + 16 * 100)
