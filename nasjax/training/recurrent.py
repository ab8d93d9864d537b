"""Training recurrent cells on text: what a supernet descends, and retraining.

Liu, Simonyan and Yang, "DARTS: differentiable architecture search", ICLR 2019, sections
3.1.2 and A.2: backpropagation is truncated at windows, the hidden state goes on; a
derived cell is trained by SGD and, once the validation loss has not fallen for a while,
by averaged SGD (Merity et al. 2018). Everything is a pure step over streams that are on
the device already; loops and what they report are the caller's.

Differences from the authors' program: a window's dropout masks are drawn once and are
those of all passes over it (there each of the two or three passes of a step draws its
own, also the two of a finite difference); a validation stream that is through begins
with a hidden state of zero again.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nasjax.core import counter, keys
from nasjax.data import text
from nasjax.networks import cell_rnn, supernet_rnn
from nasjax.networks.cell_rnn import Dropout, Masks, Output, Plan, Weights
from nasjax.spaces.recurrent_cell import Edge
from nasjax.training import flops
from nasjax.training.losses import TASKS


class Batch(NamedTuple):
  """A window of streams.

  Attributes:
    tokens: `[T, B]` int32.
    targets: `[T, B]` int32, each the token after.
    length: scalar int32, steps that count.
    hidden: `[B, H]` that the window before ended with.
    masks: of dropout.
    slowness: scalar, weight of `slowness` in the loss; of the weights' level alone.
  """

  tokens: jax.Array
  targets: jax.Array
  length: jax.Array
  hidden: jax.Array
  masks: Masks
  slowness: jax.Array | float = 0.0


class Seen(NamedTuple):
  """What a loss gives beside itself.

  Attributes:
    hidden: `[B, H]` to begin the next window with.
    cross_entropy: scalar, nats a token, without regularisation.
  """

  hidden: jax.Array
  cross_entropy: jax.Array


def window_maker(
  plan: Plan, window: int, dropout: Dropout, slowness: float = 0.0
) -> Callable:
  """A compiled `(key, filled [T + window, B], start, length, hidden) -> Batch`.

  `filled` is of `on_device`, the key is of this window alone.
  """

  @jax.jit
  def make(key, filled_TB, start, length, hidden):
    both = jax.lax.dynamic_slice_in_dim(filled_TB, start, window + 1)
    masks = cell_rnn.draw_masks(key, plan, filled_TB.shape[1], dropout)
    return Batch(both[:-1], both[1:], length, hidden, masks, jnp.float32(slowness))

  return make


def on_device(streams_TB: np.ndarray, window: int) -> jax.Array:
  """Streams with as much behind them as a window that begins at their end reads."""
  return jnp.asarray(np.pad(streams_TB, ((0, window), (0, 0))))


def summed_cross_entropy(
  logits_TBV: jax.Array, targets_TB: jax.Array, length: jax.Array | int
) -> jax.Array:
  """Nats of all tokens in the first `length` steps, a scalar."""
  vocabulary = logits_TBV.shape[-1]
  every = TASKS["multiclass"].loss(
    logits_TBV.reshape(-1, vocabulary), targets_TB.reshape(-1)
  )
  counts = jnp.arange(len(targets_TB)) < length
  return jnp.where(counts[:, None], every.reshape(targets_TB.shape), 0.0).sum()


def slowness(states_TBH: jax.Array, length: jax.Array | int) -> jax.Array:
  """Mean squared change from step to step, within the first `length` of them."""
  steps, batch, units = states_TBH.shape
  counts = jnp.arange(1, steps) < length
  changed = jnp.square(states_TBH[1:] - states_TBH[:-1]).sum((1, 2))
  pairs = jnp.maximum(length - 1, 1) * batch * units
  return jnp.where(counts, changed, 0.0).sum() / pairs


def _loss(output: Output, batch: Batch) -> tuple[jax.Array, Seen]:
  summed = summed_cross_entropy(output.logits, batch.targets, batch.length)
  own = summed / (batch.length * batch.tokens.shape[1])
  loss = own + batch.slowness * slowness(output.states, batch.length)
  return loss, Seen(output.hidden, own)


def supernet_loss(weights: Weights, alphas: jax.Array, batch: Batch) -> tuple:
  """The loss of both levels: (loss, `Seen`).

  The hidden state that comes in is a value: no gradient goes past a window.
  """
  output = supernet_rnn.apply(
    weights, alphas, batch.tokens, batch.hidden, batch.masks, batch.length
  )
  return _loss(output, batch)


def tester(apply: Callable[..., Output], hidden: int, window: int) -> Callable:
  """A compiled `(model, streams [T, B]) -> mean cross entropy`, hidden state carried.

  Args:
    apply: `(model, tokens, hidden, length) -> Output`, without dropout.
    hidden: H.
    window: steps at a time.
  """

  @jax.jit
  def test(model, streams_TB):
    predicted, batch = streams_TB.shape[0] - 1, streams_TB.shape[1]
    count = -(-predicted // window)
    filled_TB = jnp.pad(streams_TB, ((0, count * window - predicted), (0, 0)))

    def one(state, number):
      both = jax.lax.dynamic_slice_in_dim(filled_TB, number * window, window + 1)
      length = jnp.minimum(window, predicted - number * window)
      output = apply(model, both[:-1], state, length)
      return output.hidden, summed_cross_entropy(output.logits, both[1:], length)

    start = jnp.zeros((batch, hidden))
    return jax.lax.scan(one, start, jnp.arange(count))[1].sum() / (predicted * batch)

  return test


def supernet_tester(plan: Plan, window: int) -> Callable:
  """A `tester` of `(weights, alphas)`."""

  def apply(model, tokens, hidden, length):
    weights, alphas = model
    return supernet_rnn.apply(weights, alphas, tokens, hidden, length=length)

  return tester(apply, plan.hidden, window)


def derived_tester(plan: Plan, cell: Sequence[Edge], window: int) -> Callable:
  """A `tester` of a derived cell's weights."""

  def apply(model, tokens, hidden, length):
    return cell_rnn.derived(model, cell, tokens, hidden, length=length)

  return tester(apply, plan.hidden, window)


def derived_flops(plan: Plan, cell: Sequence[Edge]) -> int:
  """Floating-point operations of one token's forward pass, matrix products alone."""
  weights = cell_rnn.init(np.uint32(0), plan)
  token, hidden = jnp.zeros((1, 1), jnp.int32), jnp.zeros((1, plan.hidden))
  return flops.count(
    lambda w, t, h: cell_rnn.derived(w, cell, t, h).logits, weights, token, hidden
  )


class Recipe(NamedTuple):
  """How a derived cell is trained; the authors' for Penn Treebank as defaults.

  Attributes:
    epochs: at most.
    batch_size: streams side by side.
    window: steps of a truncated window.
    learning_rate: of a whole window; a shorter one moves less, in proportion.
    weight_decay: L2.
    clip_norm: largest norm of the gradient.
    slowness: weight of `slowness`.
    patience: epochs after which the lowest validation loss must have fallen, or weights
      are averaged from there on.
    dropout: the rates.
  """

  epochs: int = 8000
  batch_size: int = 64
  window: int = 35
  learning_rate: float = 20.0
  weight_decay: float = 8e-7
  clip_norm: float = 0.25
  slowness: float = 1e-3
  patience: int = 5
  dropout: Dropout = Dropout(words=0.1)


class Average(NamedTuple):
  """Weights, and the mean of those since averaging began.

  Attributes:
    weights: that are trained.
    mean: of them; the weights themselves until it begins.
    steps: scalar int32, how many the mean is of.
  """

  weights: Weights
  mean: Weights
  steps: jax.Array


def averaged(state: Average, weights: Weights, averaging: jax.Array | bool) -> Average:
  """After a step to `weights`: averaged SGD is a plain mean of all steps' weights."""
  steps = jnp.where(averaging, state.steps + 1, 0)
  mean = optax.incremental_update(weights, state.mean, 1.0 / jnp.maximum(steps, 1))
  return Average(weights, mean, steps)


def begins_to_average(losses: Sequence[float], patience: int) -> bool:
  """Whether the last of the validation losses, epoch by epoch, is the trigger.

  It is when some loss of more than `patience` epochs before it was lower.
  """
  earlier = losses[:-1]
  return len(earlier) > patience and losses[-1] > min(earlier[:-patience])


class Course(NamedTuple):
  """A training so far: all that the epochs to come depend on, beside the key.

  Attributes:
    average: weights and their mean.
    best: the mean after the epoch with the lowest validation loss.
    train_losses: `[E]` nats a token, of the epochs so far.
    valid_losses: `[E]` likewise.
    since: the epoch after which averaging began; 0 while it has not.
  """

  average: Average
  best: Weights
  train_losses: np.ndarray
  valid_losses: np.ndarray
  since: int


class Trained(NamedTuple):
  """After an epoch of retraining.

  Attributes:
    epoch: counted from 1.
    weights: the mean, where averaging has begun.
    train_loss: nats a token, with dropout, without regularisation.
    valid_loss: nats a token, hidden state carried; NaN when training diverged.
    averaging: whether these weights are a mean.
    course: of the training up to here; the next epoch takes over its memory.
  """

  epoch: int
  weights: Weights
  train_loss: float
  valid_loss: float
  averaging: bool
  course: Course


def train_derived(
  key: jax.Array,
  plan: Plan,
  cell: Sequence[Edge],
  train: np.ndarray,
  valid_streams: np.ndarray,
  recipe: Recipe,
  resume: Callable[[Course], Course] = lambda course: course,
) -> Iterator[Trained]:
  """Trains the cell of a genotype from scratch, an epoch at a time.

  Ends early when a loss is no number.

  Args:
    key: typed key.
    plan: the model.
    cell: of the genotype.
    train: `[N]` tokens to learn from.
    valid_streams: `[T, B]` that say when to average.
    recipe: how.
    resume: called with the course before the first epoch; gives that to go on from.
  """
  weights_key, windows_key, masks_key = keys.named(key, "weights", "windows", "masks")
  seed = np.uint32(counter.seed(weights_key))
  weights = jax.tree.map(jnp.asarray, cell_rnn.init(seed, plan))
  optimizer = optax.chain(
    optax.clip_by_global_norm(recipe.clip_norm),
    optax.add_decayed_weights(recipe.weight_decay),
    optax.scale(-recipe.learning_rate),
  )
  empty = optimizer.init(weights)  # plain SGD keeps nothing

  def loss(weights, batch):
    output = cell_rnn.derived(
      weights, cell, batch.tokens, batch.hidden, batch.masks, batch.length
    )
    return _loss(output, batch)

  @functools.partial(jax.jit, donate_argnums=0)
  def step(state, batch, averaging):
    gradient, seen = jax.grad(loss, has_aux=True)(state.weights, batch)
    update, _ = optimizer.update(gradient, empty, state.weights)
    part = batch.length / recipe.window
    update = jax.tree.map(lambda u: part * u, update)
    weights = optax.apply_updates(state.weights, update)
    return averaged(state, weights, averaging), seen

  make = window_maker(plan, recipe.window, recipe.dropout, recipe.slowness)
  test = derived_tester(plan, cell, recipe.window)
  streams = text.streams(train, recipe.batch_size)
  filled, valid = on_device(streams, recipe.window), jnp.asarray(valid_streams)
  rng = np.random.default_rng(int(counter.seed(windows_key)))
  copy = functools.partial(jax.tree.map, jnp.copy)
  nothing = np.zeros(0)
  state = Average(weights, copy(weights), jnp.int32(0))
  course = resume(Course(state, copy(weights), nothing, nothing, 0))
  for epoch in range(recipe.epochs):
    cuts = text.windows(len(streams), recipe.window, rng)
    if epoch < len(course.valid_losses):
      continue
    state, averaging = course.average, course.since > 0
    own_key = jax.random.fold_in(masks_key, epoch)
    hidden, sums = jnp.zeros((recipe.batch_size, plan.hidden)), []
    for number, (start, length) in enumerate(zip(*cuts)):
      batch = make(jax.random.fold_in(own_key, number), filled, start, length, hidden)
      state, seen = step(state, batch, averaging)
      hidden = seen.hidden
      sums.append(seen.cross_entropy)
      jax.block_until_ready(hidden)
    train_loss = float(np.average(np.asarray(sums), weights=cuts.lengths))
    valid_loss = float(test(state.mean, valid))
    kept = copy(state.mean)
    losses = np.append(course.valid_losses, valid_loss)
    begins = not averaging and begins_to_average(list(losses), recipe.patience)
    course = Course(
      state,
      kept if epoch == 0 or valid_loss < course.valid_losses.min() else course.best,
      np.append(course.train_losses, train_loss),
      losses,
      epoch + 1 if begins else course.since,
    )
    yield Trained(epoch + 1, kept, train_loss, valid_loss, averaging, course)
    if not np.isfinite([train_loss, valid_loss]).all():
      return
