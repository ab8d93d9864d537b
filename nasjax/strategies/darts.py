"""DARTS: architecture search by gradient descent on two levels.

Liu, Simonyan and Yang, "DARTS: differentiable architecture search", ICLR 2019. The
architecture is relaxed to `alphas`, and

    min over a of L_valid(w*(a), a)  with  w*(a) = argmin over w of L_train(w, a) (3, 4)

is approximated by replacing w*(a) with one training step from the present weights,
w' = w - xi dL_train/dw (equation 6 differentiates through it):

    dL/da = dL_valid(w', a)/da - xi d2L_train(w, a)/da dw . dL_valid(w', a)/dw'    (7)

Nothing here knows a network: losses come as functions of `(weights, alphas, batch)`.
Every derivative of one is a jitted function of its own (`derivatives`), so that a step
may run in two ways: compiled whole (`jax.jit(step)`), which lets an accelerator overlap
everything; or as it is, which compiles the gradient once for its three uses in a step.
A CPU, where a supernet's gradient takes longer to compile than to run a hundred times,
gains nothing by the former.

Differences from the paper: the mixed derivative of (7) is exact by default, one
forward-over-reverse product, where the paper and its program take a finite difference
(8), which is `order="finite_difference"` here. As in their program for images, the step
that is differentiated through has momentum and weight decay, and no clipping. Their
program for texts does clip it, and takes the factor for a constant: `inner_clip` with
the finite difference does so too, and at order 2 it differentiates through the factor.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nasjax.core.types import InputError
from nasjax.strategies.base import GradientStrategy

Loss = Callable[[Any, Any, Any], tuple[jax.Array, Any]]
"""`(weights, alphas, batch) -> (scalar loss, anything else)`."""

ORDERS = ("1", "2", "finite_difference")
DIFFERENCE = 0.01  # the authors': the step of (8) times the norm of its direction


class Inner(NamedTuple):
  """The training step that an architecture step looks through.

  Attributes:
    step_size: xi.
    velocity: of the weights' momentum, a pytree like the weights.
    momentum: what is kept of it.
    weight_decay: L2.
    clip_norm: largest norm of the gradient, decay apart; None for any.
  """

  step_size: Any
  velocity: Any
  momentum: float = 0.9
  weight_decay: float = 3e-4
  clip_norm: Any = None

  @jax.jit
  def move(self, weights: Any, velocity: Any, gradient: Any) -> tuple[Any, Any]:
    """Weights and velocity after a step of SGD with momentum and decay."""
    if self.clip_norm is not None:
      gradient, _ = _clip(gradient, self.clip_norm)
    velocity = jax.tree.map(
      lambda w, v, g: self.momentum * v + (g + self.weight_decay * w),
      weights,
      velocity,
      gradient,
    )
    return _add(weights, velocity, -self.step_size), velocity


@jax.jit
def _add(left: Any, right: Any, factor: Any) -> Any:
  """left + factor * right, of pytrees."""
  return jax.tree.map(lambda a, b: a + factor * b, left, right)


@jax.jit
def _norm(tree: Any) -> jax.Array:
  return jnp.sqrt(sum(jnp.square(part).sum() for part in jax.tree.leaves(tree)))


def _scale(norm: jax.Array, largest: Any) -> jax.Array:
  """What a gradient of this norm is multiplied with, to be no larger."""
  return jnp.minimum(1.0, largest / jnp.maximum(norm, 1e-6))


@jax.jit
def _clip(gradient: Any, largest: Any) -> tuple[Any, jax.Array]:
  """A gradient of at most that norm, and the norm that it had."""
  norm = _norm(gradient)
  scale = _scale(norm, largest)
  return jax.tree.map(lambda part: part * scale, gradient), norm


@jax.jit
def _through_clip(direction: Any, gradient: Any, largest: Any) -> Any:
  """The transposed derivative of clipping at a gradient, applied to a direction.

  c g with c = largest / |g| changes by c (I - g g^T / |g|^2) dg, which is symmetric.
  """
  norm = _norm(gradient)
  along = sum(
    jnp.vdot(a, b)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction))
  )
  part = jnp.where(norm > largest, along / jnp.square(norm), 0.0)
  scale = _scale(norm, largest)
  return jax.tree.map(lambda v, g: scale * (v - part * g), direction, gradient)


class Derivatives(NamedTuple):
  """Derivatives of a loss L, all functions of `(weights, alphas, batch)` first.

  Attributes:
    both: -> ((L, anything else), (dL/dw, dL/da)).
    of_weights: -> ((L, anything else), dL/dw).
    of_alphas: -> ((L, anything else), dL/da).
    mixed: and a direction v like the weights -> d2L/da dw . v, like the alphas.
  """

  both: Callable
  of_weights: Callable
  of_alphas: Callable
  mixed: Callable


@functools.lru_cache(maxsize=16)
def derivatives(loss: Loss) -> Derivatives:
  """The jitted derivatives of a loss; the same functions for the same loss."""

  def mixed(weights, alphas, batch, direction):
    def of_alphas(weights):
      return jax.grad(loss, 1, has_aux=True)(weights, alphas, batch)[0]

    return jax.jvp(of_alphas, (weights,), (direction,))[1]

  both, of_weights, of_alphas = (
    jax.jit(jax.value_and_grad(loss, which, has_aux=True)) for which in ((0, 1), 0, 1)
  )
  return Derivatives(both, of_weights, of_alphas, jax.jit(mixed))


def first_order(valid_loss: Loss, weights: Any, alphas: Any, valid_batch: Any) -> Any:
  """dL_valid(w, a)/da: equation 7 at xi = 0.

  Returns:
    ((loss, anything else), gradient with the structure of `alphas`).
  """
  return derivatives(valid_loss).of_alphas(weights, alphas, valid_batch)


def unrolled(
  train_loss: Loss,
  valid_loss: Loss,
  weights: Any,
  alphas: Any,
  train_batch: Any,
  valid_batch: Any,
  inner: Inner,
  difference: float | None = None,
) -> Any:
  """The gradient through one training step, equation 7.

  The velocity and the decay do not depend on alphas, so the only second derivative is
  that of the training loss.

  Args:
    train_loss: L_train.
    valid_loss: L_valid.
    weights: w.
    alphas: a.
    train_batch: of the step that is looked through.
    valid_batch: of the outer loss.
    inner: that step.
    difference: take the mixed derivative as a difference of two gradients (equation
      8), so far apart, over the norm of dL_valid/dw', on either side. It agrees with
      the exact one to second order; on networks with kinks (ReLU, maxima) it does not
      converge. None for the exact one.

  Returns:
    ((outer loss, anything else), gradient with the structure of `alphas`).
  """

  train = derivatives(train_loss)
  _, (gradient, _) = train.both(weights, alphas, train_batch)
  moved, _ = inner.move(weights, inner.velocity, gradient)
  outer, (direction, explicit) = derivatives(valid_loss).both(
    moved, alphas, valid_batch
  )
  if difference is not None:
    step = difference / _norm(direction)
    ahead, behind = (
      train.of_alphas(_add(weights, direction, part), alphas, train_batch)[1]
      for part in (step, -step)
    )
    clip_norm = inner.clip_norm
    scale = 1.0 if clip_norm is None else _scale(_norm(gradient), clip_norm)
    implicit = _add(ahead, behind, -1.0)
    implicit = jax.tree.map(lambda part: part * (scale / (2 * step)), implicit)
  else:
    if inner.clip_norm is not None:
      direction = _through_clip(direction, gradient, inner.clip_norm)
    implicit = train.mixed(weights, alphas, train_batch, direction)
  return outer, _add(explicit, implicit, -inner.step_size)


def unrolled_through(
  train_loss: Loss,
  valid_loss: Loss,
  weights: Any,
  alphas: Any,
  train_batches: Any,
  valid_batch: Any,
  inner: Inner,
) -> Any:
  """The gradient through several training steps, by reverse mode over all of them.

  Args:
    train_batches: leaves `[T, ...]`, a batch for each step; the rest as in `unrolled`.

  Returns:
    ((outer loss, anything else), gradient with the structure of `alphas`).
  """

  def outer(alphas):
    def step(carry, batch):
      weights, velocity = carry
      gradient = jax.grad(lambda w: train_loss(w, alphas, batch)[0])(weights)
      return inner.move(weights, velocity, gradient), None

    (moved, _), _ = jax.lax.scan(step, (weights, inner.velocity), train_batches)
    return valid_loss(moved, alphas, valid_batch)

  return jax.value_and_grad(outer, has_aux=True)(alphas)


class State(NamedTuple):
  """What a search carries.

  Attributes:
    weights: of the supernet.
    alphas: of the architecture.
    velocity: of the weights' momentum.
    adam: optax's state, of the alphas.
    step: scalar int32, training steps done.
  """

  weights: Any
  alphas: Any
  velocity: Any
  adam: Any
  step: jax.Array


class Info(NamedTuple):
  """What a step reports.

  Attributes:
    train_loss: scalar, before the weights' step.
    valid_loss: scalar, that the alphas' step descends: at w' when it is unrolled.
    gradient_norm: scalar, of the weights' gradient before clipping.
    auxiliary: what the training loss gave beside the loss.
    valid_auxiliary: what the alphas' loss gave beside it.
  """

  train_loss: jax.Array
  valid_loss: jax.Array
  gradient_norm: jax.Array
  auxiliary: Any
  valid_auxiliary: Any


class Watched(NamedTuple):
  """Alphas as they were when one first was not finite, on the device.

  A loop that asks the device after every step makes it wait; this can be asked seldom,
  and still says which step it was.

  Attributes:
    alphas: after that step; while there is none, after the last.
    step: scalar int32, that step, or -1.
  """

  alphas: Any
  step: jax.Array


def watched(alphas: Any) -> Watched:
  """Before the first step; a copy, as that step may take the place of its state."""
  return Watched(jax.tree.map(jnp.copy, alphas), jnp.int32(-1))


def watch(before: Watched, alphas: Any, step: jax.Array | int) -> Watched:
  """After another step, to these alphas; pure, to be compiled."""
  finite = [jnp.isfinite(part).all() for part in jax.tree.leaves(alphas)]
  fine = before.step < 0
  found = fine & ~jnp.stack(finite).all()
  kept = jax.tree.map(lambda old, new: jnp.where(fine, new, old), before.alphas, alphas)
  return Watched(kept, jnp.where(found, jnp.int32(step), before.step))


def darts(
  init_weights: Callable[[jax.Array], Any],
  init_alphas: Callable[[jax.Array], Any],
  train_loss: Loss,
  valid_loss: Loss,
  derive: Callable[[Any], Any],
  *,
  order: str = "2",
  inner_steps: int = 1,
  num_steps: int,
  steps_per_epoch: int = 1,
  learning_rate: float = 0.025,
  final_learning_rate: float = 0.001,
  momentum: float = 0.9,
  weight_decay: float = 3e-4,
  clip_norm: float = 5.0,
  inner_clip: bool = False,
  alpha_learning_rate: float = 3e-4,
  alpha_decays: tuple[float, float] = (0.5, 0.999),
  alpha_weight_decay: float = 1e-3,
) -> GradientStrategy:
  """Alternates an architecture step and a training step (algorithm 1 of the paper).

  Args:
    init_weights: `key -> weights`.
    init_alphas: `key -> alphas`.
    train_loss: of the weights' steps.
    valid_loss: of the alphas' steps.
    derive: `alphas -> genotype [D]`, host side.
    order: "1" takes xi = 0; "2" looks through the training step exactly;
      "finite_difference" by equation 8. There xi is the present learning rate.
    inner_steps: training steps that an architecture step looks through; with more than
      one, exact only, the training batch of the outer step has a leading axis of them.
    num_steps: of the whole search, for the schedule.
    steps_per_epoch: the rate falls by a cosine from epoch to epoch.
    learning_rate: of the weights, at the start.
    final_learning_rate: at the end.
    momentum: of the weights.
    weight_decay: of the weights.
    clip_norm: largest global norm of the weights' gradient.
    inner_clip: whether the step that is looked through clips too.
    alpha_learning_rate: of the alphas' Adam.
    alpha_decays: its two.
    alpha_weight_decay: of the alphas, added to their gradient before Adam.

  Returns:
    A `GradientStrategy` whose `step` is `(state, train_batch, valid_batch, part) ->
    (state, Info)`, where the weights' rate is multiplied by `part`, 1 when left out;
    everything in it is deterministic.

  Raises:
    InputError: an unknown order, or several inner steps without order 2.
  """
  if order not in ORDERS:
    raise InputError(f"order must be one of {', '.join(ORDERS)}, got {order}")
  if inner_steps < 1 or (inner_steps > 1 and order != "2"):
    raise InputError(
      f"inner_steps must be 1, or more at order 2; got {inner_steps} at order {order}"
    )
  optimizer = optax.chain(
    optax.add_decayed_weights(alpha_weight_decay),
    optax.scale_by_adam(*alpha_decays),
    optax.scale(-alpha_learning_rate),
  )
  epochs = max(num_steps // steps_per_epoch, 1)

  def rate(step):
    done = (step // steps_per_epoch) / epochs
    part = 0.5 * (1.0 + jnp.cos(jnp.pi * done))
    return final_learning_rate + (learning_rate - final_learning_rate) * part

  @jax.jit
  def move_alphas(alphas, adam, gradient):
    update, adam = optimizer.update(gradient, adam, alphas)
    return optax.apply_updates(alphas, update), adam

  def init(key):
    weights_key, alphas_key = jax.random.split(key)
    weights = jax.tree.map(jnp.asarray, init_weights(weights_key))
    alphas = init_alphas(alphas_key)
    return State(
      weights,
      alphas,
      velocity=jax.tree.map(jnp.zeros_like, weights),
      adam=optimizer.init(alphas),
      step=jnp.int32(0),
    )

  def step(state: State, train_batch, valid_batch, part=1.0):
    inner = Inner(rate(state.step) * part, state.velocity, momentum, weight_decay)
    looked_through = inner._replace(clip_norm=clip_norm if inner_clip else None)
    weights, alphas = state.weights, state.alphas
    own_batch = train_batch
    levels = (train_loss, valid_loss, weights, alphas, train_batch, valid_batch)
    if inner_steps > 1:
      own_batch = jax.tree.map(lambda part: part[0], train_batch)
      outer, gradient = unrolled_through(*levels, looked_through)
    elif order == "1":
      outer, gradient = first_order(valid_loss, weights, alphas, valid_batch)
    else:
      difference = DIFFERENCE if order == "finite_difference" else None
      outer, gradient = unrolled(*levels, looked_through, difference)
    valid, valid_auxiliary = outer
    alphas, adam = move_alphas(alphas, state.adam, gradient)
    train = derivatives(train_loss)
    if order == "1":
      (loss, auxiliary), gradient = train.of_weights(weights, alphas, own_batch)
    else:  # a program that is there already
      (loss, auxiliary), (gradient, _) = train.both(weights, alphas, own_batch)
    gradient, norm = _clip(gradient, clip_norm)
    weights, velocity = inner.move(weights, state.velocity, gradient)
    state = State(weights, alphas, velocity, adam, state.step + 1)
    return state, Info(loss, valid, norm, auxiliary, valid_auxiliary)

  return GradientStrategy(init, step, lambda state: derive(state.alphas))
