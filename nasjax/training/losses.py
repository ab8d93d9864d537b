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
  """

  loss: Callable[[jax.Array, jax.Array], jax.Array]
  metric: Callable[[jax.Array, jax.Array], jax.Array]
  metric_name: str


def _binary_loss(outputs_NC: jax.Array, targets_N: jax.Array) -> jax.Array:
  # One sigmoid unit: the logit against a 0/1 target.
  return optax.sigmoid_binary_cross_entropy(
    outputs_NC[:, 0], targets_N.astype(outputs_NC.dtype)
  )


def _binary_accuracy(outputs_NC: jax.Array, targets_N: jax.Array) -> jax.Array:
  return ((outputs_NC[:, 0] > 0) == (targets_N > 0)).mean()


def _accuracy(outputs_NC: jax.Array, targets_N: jax.Array) -> jax.Array:
  return (outputs_NC.argmax(-1) == targets_N).mean()


def _softmax_cross_entropy(outputs_NC: jax.Array, targets_N: jax.Array) -> jax.Array:
  # Against a one-hot row: reading the target's logit by its index costs a gather, a
  # scatter in the gradient, and ten kernels to compile in every program.
  largest = jax.lax.stop_gradient(outputs_NC.max(-1, keepdims=True))
  log_total = jnp.log(jnp.exp(outputs_NC - largest).sum(-1)) + largest[:, 0]
  hot = jnp.arange(outputs_NC.shape[-1])[None] == targets_N[:, None]
  return log_total - jnp.where(hot, outputs_NC, 0.0).sum(-1)


def _squared_error(outputs_NC: jax.Array, targets_N: jax.Array) -> jax.Array:
  return jnp.square(outputs_NC[:, 0] - targets_N)


def _r2(outputs_NC: jax.Array, targets_N: jax.Array) -> jax.Array:
  # 1 - residual / total sum of squares; 0 for the mean, negative for worse than it.
  total = jnp.square(targets_N - targets_N.mean()).sum()
  return 1.0 - _squared_error(outputs_NC, targets_N).sum() / jnp.maximum(total, 1e-12)


TASKS = {
  "binary": Task(_binary_loss, _binary_accuracy, "accuracy"),
  "multiclass": Task(_softmax_cross_entropy, _accuracy, "accuracy"),
  "regression": Task(_squared_error, _r2, "r2"),
}


def get_task(name: str) -> Task:
  """The task of that name.

  Raises:
    InputError: when there is none.
  """
  if name not in TASKS:
    raise InputError(f"unknown task {name!r}; there are {', '.join(TASKS)}")
  return TASKS[name]
