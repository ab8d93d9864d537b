"""A Gaussian process that grows by one observation at a time, in fixed shapes.

Rasmussen and Williams, "Gaussian processes for machine learning", MIT Press 2006,
chapters 2 and 5. With the kernel matrix K + noise = L L^T of the n observations seen:

  (1)  k(x, x') = exp(-|x - x'|^2 / (2 l^2))
  (2)  mean(x) = k_x^T (K + noise)^-1 y
  (3)  var(x) = 1 - |L^-1 k_x|^2
  (4)  log evidence = -|L^-1 y|^2 / 2 - sum_i log L_ii - n/2 log 2 pi

L^-1 is kept, not L: one more observation is then one more row (5), two matrix-vector
products and no factorization, which vmaps over searches.

  (5)  with v = L^-1 k_new and d^2 = 1 + noise - |v|^2,
       the new row is [-v^T L^-1 / d, 1 / d]

Length l is the one of three with the highest evidence (5 is done for each of them); the
noise is fixed; the scores are standardised by those seen.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# What is tried: lengths of the kernel, in units of the typical distance, each with each
# variance of the noise of standardised scores, of which there is one.
LENGTHS = (0.3, 0.6, 1.2)
NOISES = (1e-2,)


class GaussianProcess(NamedTuple):
  """The observations and what equation (5) keeps of them.

  Attributes:
    x: `[N, E]` features; rows after `num_seen` are zero.
    y: `[N]` raw scores; 0 likewise.
    num_seen: scalar int32, observations.
    inverse: `[H, N, N]` L^-1 for each pair of length and noise; the identity in the
      rows that are not used.
    scale: scalar, the typical distance |x - x'| that lengths are given in.
  """

  x: jax.Array
  y: jax.Array
  num_seen: jax.Array
  inverse: jax.Array
  scale: jax.Array


def _grid() -> tuple[np.ndarray, np.ndarray]:
  length, noise = np.meshgrid(LENGTHS, NOISES, indexing="ij")
  return length.ravel().astype(np.float32), noise.ravel().astype(np.float32)


def empty(capacity: int, num_features: int, scale: float) -> GaussianProcess:
  """A process without observations, with room for `capacity` of them."""
  num_hyper = len(LENGTHS) * len(NOISES)
  eye = jnp.broadcast_to(jnp.eye(capacity), (num_hyper, capacity, capacity))
  return GaussianProcess(
    x=jnp.zeros((capacity, num_features)),
    y=jnp.zeros(capacity),
    num_seen=jnp.int32(0),
    inverse=eye,
    scale=jnp.float32(scale),
  )


def _kernel(gp: GaussianProcess, x_CE: jax.Array, length: jax.Array) -> jax.Array:
  """`[N, C]` equation (1) with the observations; 0 in rows that are not used."""
  square = (
    jnp.square(gp.x).sum(-1)[:, None]
    + jnp.square(x_CE).sum(-1)[None]
    - 2.0 * gp.x @ x_CE.T
  )
  used = jnp.arange(gp.y.shape[0]) < gp.num_seen
  width = 2.0 * jnp.square(length * gp.scale)
  return jnp.where(used[:, None], jnp.exp(-jnp.maximum(square, 0.0) / width), 0.0)


def append(gp: GaussianProcess, x: jax.Array, y: jax.Array) -> GaussianProcess:
  """One more observation; none when `y` is not finite or there is no room.

  Args:
    gp: the process.
    x: `[E]`.
    y: scalar.
  """
  length_H, noise_H = map(jnp.asarray, _grid())
  place = jnp.where(jnp.isfinite(y), gp.num_seen, gp.y.shape[0])

  def one(inverse, length, noise):
    v = inverse @ _kernel(gp, x[None], length)[:, 0]
    d = jnp.sqrt(jnp.maximum(1.0 + noise - v @ v, noise))
    row = (-(v @ inverse) / d).at[place].set(1.0 / d, mode="drop")
    return inverse.at[place].set(row, mode="drop")  # (5)

  return gp._replace(
    x=gp.x.at[place].set(x, mode="drop"),
    y=gp.y.at[place].set(y, mode="drop"),
    num_seen=gp.num_seen + (place < gp.y.shape[0]),
    inverse=jax.vmap(one)(gp.inverse, length_H, noise_H),
  )


def evidence(gp: GaussianProcess) -> jax.Array:
  """`[H]` equation (4) for each pair of length and noise."""
  y, _, _ = _standardised(gp)
  fit = jnp.square(gp.inverse @ y).sum(-1)
  log_det = jnp.log(jnp.diagonal(gp.inverse, axis1=1, axis2=2)).sum(-1)
  return -0.5 * fit + log_det - 0.5 * gp.num_seen * jnp.log(2.0 * jnp.pi)


def _standardised(gp: GaussianProcess) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Scores with mean 0 and deviation 1 over what is used, and both."""
  used = jnp.arange(gp.y.shape[0]) < gp.num_seen
  count = jnp.maximum(gp.num_seen, 1)
  mean = jnp.where(used, gp.y, 0.0).sum() / count
  variance = jnp.where(used, jnp.square(gp.y - mean), 0.0).sum() / count
  deviation = jnp.sqrt(jnp.maximum(variance, 1e-12))
  return jnp.where(used, (gp.y - mean) / deviation, 0.0), mean, deviation


def predict(gp: GaussianProcess, x_CE: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Mean and standard deviation of the score, `[C]` each, in its own units.

  Args:
    gp: the process; without observations it says 0 and 1e-6.
    x_CE: `[C, E]`.
  """
  best = jnp.argmax(evidence(gp))
  y, mean, deviation = _standardised(gp)
  inverse = gp.inverse[best]
  v_NC = inverse @ _kernel(gp, x_CE, jnp.asarray(_grid()[0])[best])
  expected = (inverse @ y) @ v_NC  # (2)
  variance = jnp.maximum(1.0 - jnp.square(v_NC).sum(0), 1e-9)  # (3)
  return mean + deviation * expected, deviation * jnp.sqrt(variance)


def expected_improvement(mean: jax.Array, std: jax.Array, best: jax.Array) -> jax.Array:
  """How much better than `best` a score is expected to be, if it is (Jones 1998)."""
  z = (mean - best) / std
  normal = jax.scipy.stats.norm
  return std * (z * normal.cdf(z) + normal.pdf(z))
