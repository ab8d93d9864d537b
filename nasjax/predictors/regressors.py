"""A small ensemble of networks that predicts scores from features.

White, Neiswanger and Savani, "BANANAS: Bayesian optimization with neural architectures
for neural architecture search", AAAI 2021: the spread of an ensemble stands for what is
not known. Members differ in their initial weights and in the observations that they
see most of (a Poisson bootstrap).

Differences from the paper: two hidden layers instead of ten and a squared loss on
standardised scores; members go on from the weights of the last round instead of
starting anew, so that a round costs a few steps.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nasjax.core import keys

# Cumulative probabilities of a Poisson variable with mean 1, up to all that float32
# tells from 1: the draw is how many lie below a uniform one, where `jax.random.poisson`
# holds loops for every mean.
_POISSON = np.cumsum(np.exp(-1) / np.cumprod(np.maximum(np.arange(11), 1))).astype("f")


class Ensemble(NamedTuple):
  """M members with a leading axis; their optimizer; scores' mean and deviation."""

  params: Any
  optimizer: Any
  mean: jax.Array
  deviation: jax.Array


def _network(params: Any, x: jax.Array) -> jax.Array:
  """Scores `[N]` of features `[N, E]` by one member."""
  for layer in ("first", "second"):
    x = jax.nn.relu(x @ params[layer]["kernel"] + params[layer]["bias"][None])
  return (x @ params["last"]["kernel"] + params["last"]["bias"][None])[:, 0]


def _optimizer(learning_rate: float) -> optax.GradientTransformation:
  return optax.adam(learning_rate)


def init(
  key: jax.Array,
  num_features: int,
  *,
  members: int = 3,
  hidden: int = 32,
  learning_rate: float = 0.01,
) -> Ensemble:
  """An ensemble that has learned nothing.

  Args:
    key: typed key.
    num_features: E.
    members: M; of one alone `predict` has no deviation.
    hidden: units of both hidden layers.
    learning_rate: Adam's; the same as for `fit`.
  """
  sizes = {
    "first": (num_features, hidden),
    "second": (hidden, hidden),
    "last": (hidden, 1),
  }

  def one(key):
    drawn = dict(zip(sizes, keys.named(key, *sizes)))
    he = jax.nn.initializers.he_normal()
    return {
      name: {"kernel": he(drawn[name], shape), "bias": jnp.zeros(shape[1])}
      for name, shape in sizes.items()
    }

  params = jax.vmap(one)(jax.random.split(key, members))
  optimizer = jax.vmap(_optimizer(learning_rate).init)(params)
  return Ensemble(params, optimizer, jnp.float32(0), jnp.float32(1))


def fit(
  key: jax.Array,
  ensemble: Ensemble,
  x: jax.Array,
  y: jax.Array,
  *,
  steps: int = 30,
  learning_rate: float = 0.01,
) -> Ensemble:
  """Trains every member on the observations, all of them in every step.

  Args:
    key: typed key, of the bootstrap.
    ensemble: to go on from.
    x: `[N, E]` features.
    y: `[N]` scores; those that are not finite are left out.
    steps: of Adam.
    learning_rate: its.

  Returns:
    The ensemble after it.
  """
  seen = jnp.isfinite(y)
  count = jnp.maximum(seen.sum(), 1)
  mean = jnp.where(seen, y, 0.0).sum() / count
  variance = jnp.where(seen, jnp.square(y - mean), 0.0).sum() / count
  deviation = jnp.sqrt(jnp.maximum(variance, 1e-12))
  target = jnp.where(seen, (y - mean) / deviation, 0.0)
  optimizer = _optimizer(learning_rate)

  def one(key, params, state):
    drawn = jax.random.uniform(key, (*y.shape, 1)) > jnp.asarray(_POISSON)[None]
    weight = jnp.where(seen, drawn.sum(-1), 0)
    weight = weight / jnp.maximum(weight.sum(), 1)

    def loss(params):
      return (weight * jnp.square(_network(params, x) - target)).sum()

    def step(carry, _):
      params, state = carry
      update, state = optimizer.update(jax.grad(loss)(params), state)
      return (optax.apply_updates(params, update), state), None

    return jax.lax.scan(step, (params, state), length=steps)[0]

  members = jax.tree.leaves(ensemble.params)[0].shape[0]
  params, state = jax.vmap(one)(
    jax.random.split(key, members), ensemble.params, ensemble.optimizer
  )
  return Ensemble(params, state, mean, deviation)


def predict(ensemble: Ensemble, x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Mean and standard deviation `[C]` over the members, of features `[C, E]`."""
  score_MC = jax.vmap(_network, (0, None))(ensemble.params, x)
  score_MC = ensemble.mean + ensemble.deviation * score_MC
  return score_MC.mean(0), score_MC.std(0, ddof=1)
