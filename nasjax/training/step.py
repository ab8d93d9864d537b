"""One child's whole training as one program: epochs, early stopping, best weights.

The program is written for one child. Alone it stops as soon as the child is done;
vmapped over a population it runs until the last child is done and a finished child
keeps its result.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from nasjax.training.losses import Task

# Above this many rows a validation pass is cut into pieces of the second size, so that
# its activations stay small beside the weights.
_WHOLE_PASS_ROWS = 16384
_PIECE_ROWS = 4096

ADAM_EPSILON = 1e-7  # Keras's value, as in the survey's program (optax has 1e-8)


class DeviceData(NamedTuple):
  """The rows that children see, resident on the device.

  Attributes:
    x_train: `[N, F]`.
    y_train: `[N]`.
    x_valid: `[M, F]`.
    y_valid: `[M]`.
  """

  x_train: jax.Array
  y_train: jax.Array
  x_valid: jax.Array
  y_valid: jax.Array


class Hyper(NamedTuple):
  """What may change without another compilation; scalars, traced as arrays.

  Attributes:
    learning_rate: Adam's.
    patience: epochs without a better one before training stops.
    max_epochs: at most this many of the epochs that there are batches for.
    restore_best: leave the weights of the best epoch, not those of the last one.
    monitor_metric: the best epoch is the one with the highest validation metric, and
      among equals the lowest validation loss, not simply the lowest loss (a
      classifier's accuracy goes on rising after its loss has begun to).
    final_rate: the learning rate falls linearly, step by step, to this part of itself
      at the end of the last epoch that there may be; 1 keeps it.
  """

  learning_rate: Any
  patience: Any
  max_epochs: Any = 2**30
  restore_best: Any = True
  monitor_metric: Any = False
  final_rate: Any = 1.0

  def as_arrays(self) -> "Hyper":
    """The same with every value an array, so that none is baked into a program."""
    return Hyper(
      jnp.float32(self.learning_rate),
      jnp.int32(self.patience),
      jnp.int32(self.max_epochs),
      jnp.bool_(self.restore_best),
      jnp.bool_(self.monitor_metric),
      jnp.float32(self.final_rate),
    )


class TrainResult(NamedTuple):
  """What a training leaves.

  Attributes:
    weights: those of the best epoch, or of the last one, as `Hyper` says.
    curve: `[T]` validation metric after each epoch; NaN where none was run.
    valid_loss: `[T]` likewise.
    train_loss: `[T]` mean over each epoch's steps.
    epochs_run: scalar int32.
    best_epoch: scalar int32, from 1; 0 when there was none.
    diverged: scalar bool; a loss became NaN or infinite, and training stopped there.
  """

  weights: Any
  curve: jax.Array
  valid_loss: jax.Array
  train_loss: jax.Array
  epochs_run: jax.Array
  best_epoch: jax.Array
  diverged: jax.Array


class _Carry(NamedTuple):
  epoch: jax.Array
  weights: jax.Array
  optimizer: Any
  best_weights: jax.Array
  best_loss: jax.Array
  best_metric: jax.Array
  best_epoch: jax.Array
  waited: jax.Array
  diverged: jax.Array
  curve: jax.Array
  valid_loss: jax.Array
  train_loss: jax.Array


def epoch_batches(key: jax.Array, rows: int, batch_size: int, epochs: int) -> jax.Array:
  """Which rows each step reads: a fresh permutation an epoch, the remainder left out.

  Args:
    key: typed key; epoch e uses `fold_in(key, e)`, whatever `epochs` is.
    rows: N.
    batch_size: B; at most N rows are used when N is smaller.
    epochs: T.

  Returns:
    `[T, N // B, B]` int32.
  """
  batch_size = min(batch_size, rows)
  steps = rows // batch_size

  def one_epoch(epoch):
    order = jax.random.permutation(jax.random.fold_in(key, epoch), rows)
    return order[: steps * batch_size].reshape(steps, batch_size).astype(jnp.int32)

  return jax.lax.map(one_epoch, jnp.arange(epochs))


def predict(apply: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
  """Outputs `[N, C]` of `apply` on `x [N, F]`, in pieces when N is large."""
  if x.shape[0] <= _WHOLE_PASS_ROWS:
    return apply(x)
  return jax.lax.map(lambda row: apply(row[None])[0], x, batch_size=_PIECE_ROWS)


def make_train(apply: Callable[..., jax.Array], task: Task) -> Callable:
  """Builds the training program of one child.

  Args:
    apply: `(weights, x [B, F], dropout_key or None) -> outputs [B, C]`.
    task: loss and metric.

  Returns:
    `train(weights, key, batches [T, S, B], data, hyper) -> TrainResult`. Adam; early
    stopping and the weights that are left as `hyper` says.
  """
  adam = optax.scale_by_adam(eps=ADAM_EPSILON)

  def train(weights, key, batches, data: DeviceData, hyper: Hyper) -> TrainResult:
    num_epochs, num_steps, _ = batches.shape
    # One flat vector: Adam is then one fused loop instead of four per layer, which
    # takes a third off the compile time and costs nothing at run time.
    flat, unravel = ravel_pytree(weights)
    last_epoch = jnp.minimum(num_epochs, hyper.max_epochs)
    total_steps = (last_epoch * num_steps).astype(jnp.float32)

    def batch_loss(flat, rows, dropout_key):
      outputs = apply(unravel(flat), data.x_train[rows], dropout_key)
      return task.loss(outputs, data.y_train[rows]).mean()

    def run_epoch(carry: _Carry) -> _Carry:
      epoch_key = jax.random.fold_in(key, carry.epoch)

      def step(state, inputs):
        flat, optimizer = state
        index, rows = inputs
        loss, gradient = jax.value_and_grad(batch_loss)(
          flat, rows, jax.random.fold_in(epoch_key, index)
        )
        done = (carry.epoch * num_steps + index) / total_steps
        rate = hyper.learning_rate * (1.0 - (1.0 - hyper.final_rate) * done)
        update, optimizer = adam.update(gradient, optimizer)
        return (flat - rate * update, optimizer), loss

      (flat, optimizer), losses = jax.lax.scan(
        step,
        (carry.weights, carry.optimizer),
        (jnp.arange(num_steps), batches[carry.epoch]),
      )
      outputs = predict(lambda x: apply(unravel(flat), x, None), data.x_valid)
      valid_loss = task.loss(outputs, data.y_valid).mean()
      train_loss = losses.mean()
      metric = task.metric(outputs, data.y_valid)
      improved = valid_loss < carry.best_loss
      equal, higher = metric == carry.best_metric, metric > carry.best_metric
      improved = jnp.where(hyper.monitor_metric, higher | (equal & improved), improved)
      return _Carry(
        epoch=carry.epoch + 1,
        weights=flat,
        optimizer=optimizer,
        best_weights=jnp.where(
          improved | ~hyper.restore_best, flat, carry.best_weights
        ),
        best_loss=jnp.where(improved, valid_loss, carry.best_loss),
        best_metric=jnp.where(improved, metric, carry.best_metric),
        best_epoch=jnp.where(improved, carry.epoch + 1, carry.best_epoch),
        waited=jnp.where(improved, 0, carry.waited + 1),
        diverged=~(jnp.isfinite(valid_loss) & jnp.isfinite(train_loss)),
        curve=carry.curve.at[carry.epoch].set(metric),
        valid_loss=carry.valid_loss.at[carry.epoch].set(valid_loss),
        train_loss=carry.train_loss.at[carry.epoch].set(train_loss),
      )

    def goes_on(carry: _Carry):
      patient = carry.waited < hyper.patience
      return (carry.epoch < last_epoch) & patient & ~carry.diverged

    nothing = jnp.full(num_epochs, jnp.nan)
    end = jax.lax.while_loop(
      goes_on,
      run_epoch,
      _Carry(
        epoch=jnp.int32(0),
        weights=flat,
        optimizer=adam.init(flat),
        best_weights=flat,
        best_loss=jnp.float32(jnp.inf),
        best_metric=jnp.float32(-jnp.inf),
        best_epoch=jnp.int32(0),
        waited=jnp.int32(0),
        diverged=jnp.bool_(False),
        curve=nothing,
        valid_loss=nothing,
        train_loss=nothing,
      ),
    )
    return TrainResult(
      weights=unravel(end.best_weights),
      curve=end.curve,
      valid_loss=end.valid_loss,
      train_loss=end.train_loss,
      epochs_run=end.epoch,
      best_epoch=end.best_epoch,
      diverged=end.diverged,
    )

  return train


def epoch_weighted(curve: jax.Array) -> jax.Array:
  """The survey's score of a curve `[..., T]`: sum of e * metric_e over sum of e.

  Epochs count from 1 and only those that were run (not NaN) enter; a curve without any
  gives NaN.
  """
  epoch = jnp.arange(1, curve.shape[-1] + 1, dtype=curve.dtype)
  epoch = jnp.broadcast_to(epoch, curve.shape)
  weight = jnp.where(jnp.isnan(curve), 0.0, epoch)
  total = weight.sum(-1)
  mean = (weight * jnp.nan_to_num(curve)).sum(-1) / jnp.where(total > 0, total, 1.0)
  return jnp.where(total > 0, mean, jnp.nan)


def best_epoch(curve: jax.Array) -> jax.Array:
  """The highest value of a curve `[..., T]` that was reached; NaN without any."""
  best = jnp.where(jnp.isnan(curve), -jnp.inf, curve).max(-1)
  return jnp.where(jnp.isfinite(best), best, jnp.nan)


def last_epoch(curve: jax.Array) -> jax.Array:
  """The value of the last epoch run of a curve `[..., T]`; NaN without any."""
  count = (~jnp.isnan(curve)).sum(-1)
  last = jnp.take_along_axis(curve, jnp.maximum(count - 1, 0)[..., None], axis=-1)
  return last[..., 0]


SCORES = {"weighted": epoch_weighted, "best": best_epoch, "last": last_epoch}
