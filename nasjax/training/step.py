"""One epoch of one child as a program, and what is decided between epochs.

The epoch is a pure function written for one child: a scan over steps, then a validation
pass. Alone it is one child's program; vmapped it is a population's. Whether to go on,
and which epoch was the best, is decided on the host from three numbers a child
(`EarlyStopping`): that way it is not compiled into every architecture's program, where
it would cost a third of the compile time, and a child that is done costs nothing more.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nasjax.training.losses import Task

# Above this many rows a validation pass is cut into pieces of at most the second size:
# its activations then stay small beside the weights, and on a CPU in the caches, which
# saves a fifth of a pass over 12,000 rows. Below, it would only take longer to compile.
WHOLE_PASS_ROWS = 4096
_PIECE_ROWS = 2048

ADAM_DECAYS = (0.9, 0.999)
ADAM_EPSILON = 1e-7  # Keras's value, as in the survey's program (optax has 1e-8)


class DeviceData(NamedTuple):
  """The rows that children see, resident on the device.

  Attributes:
    x_train: `[N, F]`.
    y_train: `[N]`.
    x_valid: `[M, F]`.
    y_valid: `[M]`.
  """

  x_train: Any
  y_train: Any
  x_valid: Any
  y_valid: Any


class Hyper(NamedTuple):
  """What may change without another compilation.

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
    stop_after: epochs that are run of those; the schedule stays that of all.
  """

  learning_rate: float
  patience: int
  max_epochs: int = 2**30
  restore_best: bool = True
  monitor_metric: bool = False
  final_rate: float = 1.0
  stop_after: int = 2**30

  def num_epochs(self, there_are: int) -> int:
    """How many epochs a child is trained that never stops by itself."""
    return min(there_are, self.max_epochs, self.stop_after)

  def schedule(self, num_epochs: int, steps_per_epoch: int) -> "Schedule":
    """What Adam multiplies with at every step that there may be, `[T, S]` each."""
    step = np.arange(num_epochs * steps_per_epoch).reshape(num_epochs, -1)
    done = step / (min(num_epochs, self.max_epochs) * steps_per_epoch)
    rate = self.learning_rate * (1.0 - (1.0 - self.final_rate) * done)
    return Schedule(
      (rate / (1.0 - ADAM_DECAYS[0] ** (step + 1))).astype(np.float32),
      (1.0 / np.sqrt(1.0 - ADAM_DECAYS[1] ** (step + 1))).astype(np.float32),
    )


class Schedule(NamedTuple):
  """Adam's step sizes, bias corrections included.

  Attributes:
    first: multiplies the first moment: learning rate / (1 - b1^t).
    second: multiplies the root of the second moment: 1 / sqrt(1 - b2^t).
  """

  first: Any
  second: Any


class TrainState(NamedTuple):
  """What training carries from step to step; three pytrees of one structure.

  One vector of all weights would compile a sixth faster. But XLA's program that puts
  its gradient together takes ten times as long as the step whenever it runs on more
  than one core (`benchmarks/RESULTS.md`), and on a TPU it moves 1.6 times the bytes.

  Attributes:
    weights: float32, the network's own pytree.
    first: Adam's mean of gradients.
    second: its mean of squared gradients.
  """

  weights: Any
  first: Any
  second: Any


def start(weights: Any) -> TrainState:
  """The state before the first step, from weights on the host."""
  nothing = jax.tree.map(np.zeros_like, weights)
  return TrainState(weights, nothing, nothing)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
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


def predict(
  apply: Callable[[jax.Array], jax.Array], x: jax.Array, most: int = WHOLE_PASS_ROWS
) -> jax.Array:
  """Outputs `[N, C]` of `apply` on `x [N, F]`, in pieces when N is above `most`."""
  rows = x.shape[0]
  if rows <= most:
    return apply(x)
  piece = min(most, _PIECE_ROWS)
  # The last piece ends at the last row: what is in the piece before it is seen twice,
  # which is cheaper than a program of its own for what is left over.
  starts = np.minimum(np.arange(0, rows, piece), rows - piece)
  outputs = jax.lax.map(
    lambda first: apply(jax.lax.dynamic_slice_in_dim(x, first, piece)), starts
  )
  left = (rows - 1) % piece + 1
  before = outputs[:-1].reshape(-1, *outputs.shape[2:])
  return jnp.concatenate([before, outputs[-1, -left:]])


def adam(
  sizes: Schedule, weight: Any, first: Any, second: Any, gradient: Any
) -> tuple[Any, Any, Any]:
  """A weight and its two moments after a step (Kingma and Ba 2015, algorithm 1)."""
  mean_decay, square_decay = ADAM_DECAYS
  first = mean_decay * first + (1 - mean_decay) * gradient
  second = square_decay * second + (1 - square_decay) * gradient * gradient
  update = sizes.first * first / (jnp.sqrt(second) * sizes.second + ADAM_EPSILON)
  return weight - update, first, second


def make_epoch(
  apply: Callable[..., jax.Array],
  task: Task,
  compute_dtype: Any = None,
  valid_rows: int = WHOLE_PASS_ROWS,
) -> Callable:
  """Builds the program of one epoch.

  Args:
    apply: `(weights, x [B, F], dropout_seed or None) -> outputs [B, C]`.
    task: loss and metric.
    compute_dtype: of activations and gradients, such as bfloat16; weights, Adam and
      the loss stay float32. None computes in float32.
    valid_rows: at most so many are validated at once.

  Returns:
    `epoch(state, seeds [S], rows [S, B], schedule of [S], data) -> (state, losses [S],
    outputs [M, C])`: S steps of Adam (Kingma and Ba 2015, algorithm 1) on those rows,
    each with its own uint32 seed for dropout, then the outputs on the validation rows.
  """

  def epoch(state: TrainState, seeds, rows, schedule: Schedule, data: DeviceData):
    def outputs_of(parts, x, seed):
      if compute_dtype is not None:
        x = x.astype(compute_dtype)
        parts = jax.tree.map(lambda part: part.astype(compute_dtype), parts)
      return apply(parts, x, seed).astype(jnp.float32)

    def batch_loss(weights, rows, seed):
      # The rows come from a permutation: none is out of bounds, so none is checked.
      x = data.x_train.at[rows].get(mode="promise_in_bounds")
      y = data.y_train.at[rows].get(mode="promise_in_bounds")
      return task.train_loss(outputs_of(weights, x, seed), y).mean()

    def step(state: TrainState, inputs):
      rows, seed, sizes = inputs
      loss, gradient = jax.value_and_grad(batch_loss)(state.weights, rows, seed)

      moved = jax.tree.map(functools.partial(adam, sizes), *state, gradient)
      parts = (
        jax.tree.map(lambda _, new, i=i: new[i], gradient, moved) for i in range(3)
      )
      return TrainState(*parts), loss

    state, losses = jax.lax.scan(step, state, (rows, seeds, schedule))
    outputs = predict(
      lambda x: outputs_of(state.weights, x, None), data.x_valid, valid_rows
    )
    return state, losses, outputs

  return epoch


class EpochResult(NamedTuple):
  """What an epoch leaves to decide on; scalars.

  Attributes:
    train_loss: mean over the steps.
    valid_loss: mean over the validation rows.
    metric: the task's, on the validation rows.
  """

  train_loss: Any
  valid_loss: Any
  metric: Any


def judge(
  task: Task, losses: jax.Array, outputs: jax.Array, y: jax.Array
) -> EpochResult:
  """What an epoch is judged by; a program of its own, the same for every architecture.

  Args:
    task: loss and metric.
    losses: `[S]` of the steps.
    outputs: `[M, C]` on the validation rows.
    y: `[M]` their targets.
  """
  return EpochResult(
    train_loss=losses.mean(),
    valid_loss=task.loss(outputs, y).mean(),
    metric=task.metric(outputs, y),
  )


judge_alone = jax.jit(judge, static_argnums=0)
"""`judge` as a program: one for all trainers of a task with as many rows."""


class EarlyStopping:
  """The book of P children's epochs, kept on the host.

  Attributes:
    curve: `[P, T]` validation metric after each epoch; NaN where none was run.
    valid_loss: `[P, T]` likewise.
    epochs_run: `[P]`.
    best_epoch: `[P]`, from 1; 0 when there was none.
    diverged: `[P]`, a loss became NaN or infinite, and training stopped there.
    out_of_patience: `[P]`.
    active: `[P]`, which children go on.
    best_value: `[P, 2]` what the best epoch was chosen by, higher is better.
  """

  def __init__(self, population: int, num_epochs: int, hyper: Hyper):
    self._hyper = hyper
    self._last_epoch = hyper.num_epochs(num_epochs)
    self.curve = np.full((population, num_epochs), np.nan, np.float32)
    self.valid_loss = self.curve.copy()
    self.epochs_run = np.zeros(population, np.int32)
    self.best_epoch = np.zeros(population, np.int32)
    self.diverged = np.zeros(population, bool)
    self.out_of_patience = np.zeros(population, bool)
    self.active = np.ones(population, bool)
    self.best_value = np.full((population, 2), -np.inf, np.float32)

  def reopen(
    self,
    row: int,
    curve: np.ndarray,
    valid_loss: np.ndarray,
    epochs_run: int,
    best_epoch: int,
    best_value: np.ndarray,
  ) -> None:
    """Enters what another book had of a child that is trained on."""
    self.curve[row], self.valid_loss[row] = curve, valid_loss
    self.epochs_run[row], self.best_epoch[row] = epochs_run, best_epoch
    self.best_value[row] = best_value
    self.active[row] = epochs_run < self._last_epoch

  def record(self, members: np.ndarray, result: EpochResult) -> np.ndarray:
    """Enters one more epoch of the active `members [Q]`; `result` holds `[Q]` each.

    Returns:
      `[Q]` whether this epoch is the one to keep so far.
    """
    train_loss, valid_loss, metric = (
      np.asarray(v, np.float32).reshape(-1) for v in result
    )
    epoch = self.epochs_run[members]
    self.curve[members, epoch] = metric
    self.valid_loss[members, epoch] = valid_loss
    self.epochs_run[members] = epoch + 1
    # Higher is better: (metric, -loss), or -loss alone.
    value = np.stack([metric, -valid_loss], -1)
    if not self._hyper.monitor_metric:
      value[:, 0] = 0.0
    value = np.where(np.isnan(value), -np.inf, value)
    best = self.best_value[members]
    better = value[:, 0] > best[:, 0]
    better |= (value[:, 0] == best[:, 0]) & (value[:, 1] > best[:, 1])
    diverged = ~(np.isfinite(valid_loss) & np.isfinite(train_loss))
    better &= ~diverged
    self.best_value[members] = np.where(better[:, None], value, best)
    self.best_epoch[members] = np.where(better, epoch + 1, self.best_epoch[members])
    self.diverged[members] = diverged
    waited = self.epochs_run[members] - self.best_epoch[members]
    patient = waited < self._hyper.patience
    self.out_of_patience[members] = ~patient
    self.active[members] = ~diverged & patient & (epoch + 1 < self._last_epoch)
    return better | (not self._hyper.restore_best)


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
