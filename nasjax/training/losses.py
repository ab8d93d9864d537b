"""The three tasks: what a network's outputs mean, its loss, and its metric."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from nasjax.core.types import InputError


class Task(NamedTuple):
  """A task as pure functions of outputs `[N, C]` and targets `[N]`.

  Attributes:
    loss: -> `[N]`, each example's loss.
    metric: -> scalar over all N, higher is better.
    metric_name: "accuracy" or "r2".
    mean_loss: outputs `[N, C]` -> `[N]`, the loss averaged over all classes as targets;
      None without classes.
    label_smoothing: s in [0, 1), see `train_loss`.
  """

  loss: Callable[[jax.Array, jax.Array], jax.Array]
  metric: Callable[[jax.Array, jax.Array], jax.Array]
  metric_name: str
  mean_loss: Callable[[jax.Array], jax.Array] | None
  label_smoothing: float = 0.0

  def train_loss(self, outputs_NC: jax.Array, targets_N: jax.Array) -> jax.Array:
    """What a step minimises, `[N]`: the loss against smoothed labels.

    A label is certain to 1 - s; the rest is spread evenly over all classes (Szegedy et
    al., "Rethinking the Inception architecture", 2016, section 7).
    """
    loss, part = self.loss(outputs_NC, targets_N), self.label_smoothing
    if not part or self.mean_loss is None:
      return loss
    return (1.0 - part) * loss + part * self.mean_loss(outputs_NC)


def _binary_loss(outputs_NC: jax.Array, targets_N: jax.Array) -> jax.Array:
  # One sigmoid unit: the logit against a 0/1 target.
  return optax.sigmoid_binary_cross_entropy(
    outputs_NC[:, 0], targets_N.astype(outputs_NC.dtype)
  )


def _binary_accuracy(outputs_NC: jax.Array, targets_N: jax.Array) -> jax.Array:
  return ((outputs_NC[:, 0] > 0) == (targets_N > 0)).mean()


def _accuracy(outputs_NC: jax.Array, targets_N: jax.Array) -> jax.Array:
  return (outputs_NC.argmax(-1) == targets_N).mean()


def _binary_mean_loss(outputs_NC: jax.Array) -> jax.Array:
  half = jnp.full(outputs_NC.shape[0], 0.5, outputs_NC.dtype)
  return optax.sigmoid_binary_cross_entropy(outputs_NC[:, 0], half)


def _from_largest(outputs_NC: jax.Array) -> jax.Array:
  """The outputs less their largest: nothing overflows, and nothing large cancels."""
  return outputs_NC - jax.lax.stop_gradient(outputs_NC.max(-1, keepdims=True))


def _softmax_mean_loss(outputs_NC: jax.Array) -> jax.Array:
  below_NC = _from_largest(outputs_NC)
  return jnp.log(jnp.exp(below_NC).sum(-1)) - below_NC.mean(-1)


def _softmax_cross_entropy(outputs_NC: jax.Array, targets_N: jax.Array) -> jax.Array:
  # Against a one-hot row: reading the target's logit by its index costs a gather, a
  # scatter in the gradient, and ten kernels to compile in every program.
  below_NC = _from_largest(outputs_NC)
  hot_NC = jnp.arange(outputs_NC.shape[-1])[None] == targets_N[:, None]
  chosen_N = jnp.where(hot_NC, below_NC, 0.0).sum(-1)
  return jnp.log(jnp.exp(below_NC).sum(-1)) - chosen_N


def _squared_error(outputs_NC: jax.Array, targets_N: jax.Array) -> jax.Array:
  return jnp.square(outputs_NC[:, 0] - targets_N)


def _r2(outputs_NC: jax.Array, targets_N: jax.Array) -> jax.Array:
  # 1 - residual / total sum of squares; 0 for the mean, negative for worse than it.
  total = jnp.square(targets_N - targets_N.mean()).sum()
  return 1.0 - _squared_error(outputs_NC, targets_N).sum() / jnp.maximum(total, 1e-12)


TASKS = {
  "binary": Task(_binary_loss, _binary_accuracy, "accuracy", _binary_mean_loss),
  "multiclass": Task(_softmax_cross_entropy, _accuracy, "accuracy", _softmax_mean_loss),
  "regression": Task(_squared_error, _r2, "r2", None),
}


def get_task(name: str, label_smoothing: float = 0.0) -> Task:
  """The task of that name; regression has no labels to smooth.

  Raises:
    InputError: when there is none, or the smoothing is not in [0, 1).
  """
  if name not in TASKS:
    raise InputError(f"unknown task {name!r}; there are {', '.join(TASKS)}")
  if not 0 <= label_smoothing < 1:
    raise InputError(f"label smoothing must be in [0, 1), got {label_smoothing}")
  return TASKS[name]._replace(label_smoothing=label_smoothing)
