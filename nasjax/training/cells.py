"""Training networks of cells: what a supernet descends, and a derived one from scratch.

Liu, Simonyan and Yang, "DARTS: differentiable architecture search", ICLR 2019, sections
3.1 and 3.2 and appendix A. Everything is a pure step over rows of data that are on the
device already; loops and what they report are the caller's.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nasjax.core import counter, keys
from nasjax.data import augment
from nasjax.data.base import Split
from nasjax.networks import cell_cnn, supernet_cnn
from nasjax.networks.cell_cnn import Plan
from nasjax.networks.supernet_cnn import LOOPS, Form
from nasjax.spaces.conv_cell import Cells
from nasjax.training import flops
from nasjax.training.data_parallel import ONE_DEVICE, Placement
from nasjax.training.losses import Task
from nasjax.training.step import epoch_batches, predict

_STATISTICS_RATE = 0.1  # PyTorch's momentum of running statistics


class Batch(NamedTuple):
  """Images `[B, H, W, C]` and classes `[B]`."""

  x: Any
  y: Any


def batch_of(data: Batch, rows: jax.Array) -> Batch:
  """The rows `[B]` of a set that is on the device."""
  return Batch(data.x[rows], data.y[rows])


def search_batches(crop: int, placement: Placement) -> Callable:
  """A compiled `(key, data, rows [..., B]) -> Batch [..., B, ...]` of a search's steps.

  Args:
    crop: padding from which images are cropped; with it they are mirrored, as the
      authors do on both levels. 0 for neither.
    placement: over which devices B is shared.
  """

  @jax.jit
  def make(key, data, rows):
    x, y = batch_of(data, rows.reshape(-1))
    if crop:
      x = augment.crop_and_flip(key, x, crop)
    batch = Batch(x.reshape(*rows.shape, *x.shape[1:]), y.reshape(rows.shape))
    return placement.split(batch, rows.ndim - 1)

  return make


def search_step(step: Callable, placement: Placement) -> Callable:
  """The step of a `GradientStrategy`, ready to be called.

  On one CPU it is not compiled as a whole, see `strategies.darts`. Over several devices
  state and info are on all of them. A compiled step takes the place of its state.
  """
  if jax.default_backend() == "cpu" and placement.mesh is None:
    return step
  return jax.jit(lambda *arguments: placement.whole(step(*arguments)), donate_argnums=0)


class Seen(NamedTuple):
  """What a training loss gives beside the loss.

  Attributes:
    statistics: of the normalisations, in this batch.
    metric: scalar, the task's on this batch.
  """

  statistics: Any
  metric: jax.Array


def supernet_loss(plan: Plan, task: Task, form: Form = LOOPS) -> Callable:
  """The loss of both levels: `(weights, alphas, batch) -> (loss, Seen)`."""

  def loss(weights, alphas, batch: Batch):
    output = supernet_cnn.apply(weights, alphas, plan, batch.x, form=form)
    metric = task.metric(output.logits, batch.y)
    return task.loss(output.logits, batch.y).mean(), Seen(output.statistics, metric)

  return loss


def initial_statistics(apply: Callable, *arguments: Any) -> Any:
  """Running statistics before the first batch: mean 0 and variance 1 everywhere.

  Args:
    apply: gives a `cell_cnn.Output`; it is traced, not run.
    *arguments: of it.
  """
  shapes = jax.eval_shape(lambda *a: apply(*a).statistics, *arguments)
  return jax.tree.map(
    lambda pair: (jnp.zeros(pair[0].shape), jnp.ones(pair[1].shape)),
    shapes,
    is_leaf=lambda part: isinstance(part, tuple),
  )


def update_statistics(running: Any, seen: Any) -> Any:
  """Running mean and variance after another batch."""
  return jax.tree.map(
    lambda old, new: old + _STATISTICS_RATE * (new - old), running, seen
  )


class Tested(NamedTuple):
  """Of a set of rows: mean loss and the task's metric, scalars."""

  loss: jax.Array
  metric: jax.Array


def tester(apply: Callable, task: Task, batch_size: int) -> Callable:
  """A compiled `(model, x [N, H, W, C], y [N]) -> Tested`, `batch_size` rows at a time.

  Args:
    apply: `(model, x) -> logits`, with running statistics.
    task: loss and metric.
    batch_size: rows at a time.
  """

  @jax.jit
  def test(model, x, y):
    logits = predict(functools.partial(apply, model), x, min(batch_size, len(y)))
    return Tested(task.loss(logits, y).mean(), task.metric(logits, y))

  return test


def search_rows(
  key: jax.Array, epoch: int, train_rows: int, valid_rows: int, batch_size: int
) -> tuple[jax.Array, jax.Array]:
  """Which rows the steps of an epoch read.

  The weights' rows are a fresh permutation; those of the alphas are drawn anew for each
  step, without repeats within a batch, as the authors' program does.

  Returns:
    Two `[steps, B]` int32; B is cut to the smaller of the two sets.
  """
  train_key, valid_key = keys.named(jax.random.fold_in(key, epoch), "train", "valid")
  size = min(batch_size, train_rows, valid_rows)
  train = epoch_batches(train_key, train_rows, size, 1)[0]

  def draw(step):
    order = jax.random.permutation(jax.random.fold_in(valid_key, step), valid_rows)
    return order[:size].astype(jnp.int32)

  return train, jax.lax.map(draw, jnp.arange(len(train)))


class Recipe(NamedTuple):
  """How a derived network is trained; the authors' for CIFAR-10 as defaults.

  Attributes:
    epochs: of it.
    batch_size: rows of a step.
    learning_rate: at the start; it falls by a cosine to 0, epoch by epoch.
    momentum: of SGD.
    weight_decay: L2.
    clip_norm: largest global norm of the gradient.
    auxiliary_weight: of the auxiliary head's loss; 0 for no head.
    drop_path: part of the paths dropped in the last epoch; it grows from 0.
    crop: padding from which images are cropped; with it they are mirrored. 0 for none.
    cutout: side of the square that is cut out; 0 for none.
    remat: compute a cell's activations again on the way back.
    compute_dtype: of activations in training; weights stay float32.
  """

  epochs: int = 600
  batch_size: int = 96
  learning_rate: float = 0.025
  momentum: float = 0.9
  weight_decay: float = 3e-4
  clip_norm: float = 5.0
  auxiliary_weight: float = 0.4
  drop_path: float = 0.2
  crop: int = 4
  cutout: int = 16
  remat: bool = False
  compute_dtype: str = "float32"


class Trained(NamedTuple):
  """A derived network after an epoch; its arrays are gone once the next one begins.

  Attributes:
    epoch: from 1.
    weights: `{"network": ..., "auxiliary": ...}`.
    statistics: running, of the normalisations.
    train_loss: mean over the epoch, without the auxiliary part.
    train_metric: mean over the epoch.
    carry: all that the epochs to come depend on, beside the key.
  """

  epoch: int
  weights: Any
  statistics: Any
  train_loss: float
  train_metric: float
  carry: Any


def train_derived(
  key: jax.Array,
  plan: Plan,
  cells: Cells,
  rows: Split,
  task: Task,
  recipe: Recipe,
  placement: Placement = ONE_DEVICE,
  resume: Callable[[Any], tuple[int, Any]] = lambda carry: (0, carry),
) -> Iterator[Trained]:
  """Trains the network of a genotype from scratch, an epoch at a time.

  Args:
    key: typed key.
    plan: the network.
    cells: of the genotype.
    rows: to learn from; x `[N, H, W, C]`.
    task: loss and metric.
    recipe: how.
    placement: over which devices a batch is shared; they must divide it.
    resume: called with the carry before the first epoch; gives how many epochs were
      done, and the carry after them.

  Raises:
    InputError: an auxiliary head on images that are too small for it.
  """
  weights_key, head_key, rows_key, steps_key = keys.named(
    key, "weights", "auxiliary", "rows", "steps"
  )
  seeds = (np.uint32(counter.seed(own)) for own in (weights_key, head_key))
  weights = {"network": cell_cnn.derived_init(next(seeds), plan, cells)}
  if recipe.auxiliary_weight:
    weights["auxiliary"] = cell_cnn.auxiliary_init(next(seeds), plan)
  weights = jax.tree.map(jnp.asarray, weights)
  optimizer = optax.chain(
    optax.clip_by_global_norm(recipe.clip_norm),
    optax.add_decayed_weights(recipe.weight_decay),
    optax.trace(recipe.momentum),
  )

  def loss(weights, batch, key, drop_rate):
    crop_key, cutout_key, path_key = keys.named(key, "crop", "cutout", "path")
    x = batch.x
    if recipe.crop:
      x = augment.crop_and_flip(crop_key, x, recipe.crop)
    if recipe.cutout:
      x = augment.cutout(cutout_key, x, recipe.cutout)
    drop = cell_cnn.DropPath(path_key, drop_rate) if recipe.drop_path else None
    output = cell_cnn.derived(
      weights["network"],
      plan,
      cells,
      x,
      drop_path=drop,
      remat=recipe.remat,
      dtype=recipe.compute_dtype,
    )
    own = task.train_loss(output.logits, batch.y).mean()
    total = own
    if recipe.auxiliary_weight:
      logits = cell_cnn.auxiliary_logits(weights["auxiliary"], output.auxiliary)
      total += recipe.auxiliary_weight * task.train_loss(logits, batch.y).mean()
    metric = task.metric(output.logits, batch.y)
    return total, (own, Seen(output.statistics, metric))

  def one(carry, inputs, data, rate, drop_rate):
    weights, state, running = carry
    rows, key = inputs
    batch = placement.split(batch_of(data, rows))
    gradient, (own, seen) = jax.grad(loss, has_aux=True)(weights, batch, key, drop_rate)
    update, state = optimizer.update(gradient, state, weights)
    weights = jax.tree.map(lambda w, u: w - rate * u, weights, update)
    running = update_statistics(running, seen.statistics)
    return (weights, state, running), (own, seen.metric)

  @functools.partial(jax.jit, donate_argnums=0)
  def epoch(carry, rows, key, data, rate, drop_rate):
    step_keys = jax.vmap(functools.partial(jax.random.fold_in, key))(
      jnp.arange(rows.shape[0])
    )
    return placement.whole(
      jax.lax.scan(
        lambda carry, inputs: one(carry, inputs, data, rate, drop_rate),
        carry,
        (rows, step_keys),
      )
    )

  data = placement.put(Batch(rows.x, rows.y))
  running = initial_statistics(
    lambda w, x: cell_cnn.derived(w["network"], plan, cells, x), weights, data.x[:1]
  )
  done, carry = resume((weights, optimizer.init(weights), running))
  carry = placement.put(carry)
  batches = epoch_batches(rows_key, len(rows.y), recipe.batch_size, recipe.epochs)
  for number in range(done, recipe.epochs):
    rate = 0.5 * recipe.learning_rate * (1 + np.cos(np.pi * number / recipe.epochs))
    drop_rate = recipe.drop_path * number / recipe.epochs
    carry, (losses, metrics) = epoch(
      carry,
      batches[number],
      jax.random.fold_in(steps_key, number),
      data,
      np.float32(rate),
      np.float32(drop_rate),
    )
    means = float(losses.mean()), float(metrics.mean())
    yield Trained(number + 1, carry[0], carry[2], *means, carry)


def derived_tester(plan: Plan, cells: Cells, task: Task, batch_size: int) -> Callable:
  """A compiled `((weights, statistics), x, y) -> Tested` of a derived network."""

  def apply(model, x):
    weights, statistics = model
    return cell_cnn.derived(weights["network"], plan, cells, x, statistics).logits

  return tester(apply, task, batch_size)


def derived_flops(plan: Plan, cells: Cells) -> int:
  """Floating-point operations of one image's forward pass, convolutions and products.

  A multiply-add counts as two: the paper's second published cell, at C = 36 and 20
  cells, has 528 million of them.
  """
  weights = cell_cnn.derived_init(np.uint32(0), plan, cells)
  x = jnp.zeros((1, *plan.image))
  return flops.count(lambda x: cell_cnn.derived(weights, plan, cells, x).logits, x)


def supernet_tester(
  plan: Plan, task: Task, batch_size: int, form: Form = LOOPS
) -> Callable:
  """A compiled `((weights, alphas, statistics), x, y) -> Tested` of a supernet."""

  def apply(model, x):
    weights, alphas, statistics = model
    return supernet_cnn.apply(weights, alphas, plan, x, statistics, form).logits

  return tester(apply, task, batch_size)
