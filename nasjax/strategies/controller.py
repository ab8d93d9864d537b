"""The controller: an LSTM over token embeddings that writes genotypes left to right.

Zoph and Le, "Neural architecture search with reinforcement learning", ICLR 2017; the
survey's section 4. Its logits are added to the space's log-prior, so that only legal
choices have probability, an untrained controller samples (nearly) the prior, and
log-probabilities are those of what was really drawn. A second head predicts the score
of a whole genotype from the same LSTM (the survey's accuracy predictor, section 4.2).

Differences from the survey's program: it fed the prefix as one step of raw token ids;
here the LSTM reads one embedded token a step.

`independent_controller` is the policy without memory that Dong and Yang use for
NAS-Bench-201 (ICLR 2020): one softmax for each decision.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from nasjax.spaces.base import Space

Params = Any


def orthogonal(key: jax.Array, shape: tuple[int, int], dtype: Any = None) -> jax.Array:
  """A random orthogonal matrix, the one that flax's `orthogonal` draws.

  By Gram and Schmidt's process instead of LAPACK's QR: on a CPU, XLA runs that on the
  threads that wait for it, and a program with several of them may wait for ever (seen
  with jax 0.10.2, two cores, and two such programs at once).

  Args:
    key: typed key.
    shape: square.
    dtype: of the result.
  """
  drawn = jax.random.normal(key, shape, dtype or jnp.float32)

  def column(j, basis):
    v = drawn[:, j]
    for _ in range(2):  # once more, against what rounding left
      v = v - basis @ (basis.T @ v)
    return basis.at[:, j].set(v / jnp.linalg.norm(v))

  return jax.lax.fori_loop(0, shape[1], column, jnp.zeros_like(drawn))


class _LSTMPolicy(nn.Module):
  """One step: previous token -> (carry, logits [K], predicted score)."""

  hidden: int
  num_tokens: int

  def setup(self):
    # One token more than the space has: the start of a sequence.
    self.embedding = nn.Embed(self.num_tokens + 1, self.hidden)
    self.cell = nn.OptimizedLSTMCell(self.hidden, recurrent_kernel_init=orthogonal)
    # Zero at first: the untrained policy is the space's prior exactly.
    self.logits = nn.Dense(self.num_tokens, kernel_init=nn.initializers.zeros)
    self.prediction = nn.Dense(1)

  def __call__(self, carry, token):
    carry, hidden = self.cell(carry, self.embedding(token))
    return carry, self.logits(hidden), nn.sigmoid(self.prediction(hidden)[0])


class Controller(NamedTuple):
  """The controller as pure functions of its parameters, written for one genotype.

  Attributes:
    init: `(key) -> params`.
    sample: `(params, key) -> genotype [D]`.
    log_probs: `(params, genotype [D]) -> ([D] log-probability of each decision, [D]
      entropy of the distribution it was drawn from, [D] whether there was a choice)`;
      teacher-forced.
    predict: `(params, genotype [D]) -> scalar`, the predicted score in (0, 1).
  """

  init: Callable[[jax.Array], Params]
  sample: Callable[[Params, jax.Array], jax.Array]
  log_probs: Callable[[Params, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]
  predict: Callable[[Params, jax.Array], jax.Array]


def lstm_controller(space: Space, *, hidden: int = 128) -> Controller:
  """Builds the controller of a space.

  Args:
    space: the space; its `log_prior` masks and biases the choices.
    hidden: units of the LSTM and size of the embeddings (survey: 128; 512 for wine).

  Returns:
    A `Controller`.
  """
  policy: Any = _LSTMPolicy(hidden, space.num_tokens)
  start = space.num_tokens
  zero_carry = (jnp.zeros(hidden), jnp.zeros(hidden))

  def init(key):
    return policy.init(key, zero_carry, jnp.int32(start))

  def masked(logits, genotype, position):
    # -inf + finite stays -inf: what is illegal cannot be learned either.
    return jax.nn.log_softmax(logits + space.log_prior(genotype, position))

  def sample(params, key):
    def decide(state, position):
      carry, previous, genotype = state
      carry, logits, _ = policy.apply(params, carry, previous)
      token = jax.random.categorical(
        jax.random.fold_in(key, position), masked(logits, genotype, position)
      ).astype(jnp.int32)
      return (carry, token, genotype.at[position].set(token)), None

    state = (zero_carry, jnp.int32(start), jnp.zeros(space.length, jnp.int32))
    return jax.lax.scan(decide, state, jnp.arange(space.length))[0][2]

  def read(params, genotype):
    """Outputs after start and after each of the D tokens: `[D + 1, ...]`."""
    tokens = jnp.concatenate([jnp.int32([start]), genotype])

    def step(carry, token):
      carry, logits, prediction = policy.apply(params, carry, token)
      return carry, (logits, prediction)

    return jax.lax.scan(step, zero_carry, tokens)[1]

  def log_probs(params, genotype):
    logits, _ = read(params, genotype)
    log_p_DK = jax.vmap(masked, in_axes=(0, None, 0))(
      logits[:-1], genotype, jnp.arange(space.length)
    )
    return _chosen(log_p_DK, genotype)

  def predict(params, genotype):
    # After the last token, pads included: D + 1 reads, the same for every length.
    return read(params, genotype)[1][-1]

  return Controller(init, sample, log_probs, predict)


def independent_controller(space: Space, *, scale: float = 1e-3) -> Controller:
  """A policy of logits `[D, K]`, a softmax for each decision by itself.

  The predicted score is a logistic regression on the decisions.

  Args:
    space: the space; its `log_prior` masks and biases the choices.
    scale: standard deviation of the first logits.

  Returns:
    A `Controller`.
  """
  positions = jnp.arange(space.length)
  shape = (space.length, space.num_tokens)

  def init(key):
    logits = scale * jax.random.normal(key, shape)
    return {"logits": logits, "values": jnp.zeros(shape), "bias": jnp.zeros(())}

  def masked(params, genotype, position):
    prior = space.log_prior(genotype, position)
    return jax.nn.log_softmax(params["logits"][position] + prior)

  def sample(params, key):
    def decide(genotype, position):
      token = jax.random.categorical(
        jax.random.fold_in(key, position), masked(params, genotype, position)
      )
      return genotype.at[position].set(token.astype(jnp.int32)), None

    return jax.lax.scan(decide, jnp.zeros(space.length, jnp.int32), positions)[0]

  def log_probs(params, genotype):
    log_p_DK = jax.vmap(masked, (None, None, 0))(params, genotype, positions)
    return _chosen(log_p_DK, genotype)

  def predict(params, genotype):
    return nn.sigmoid(params["values"][positions, genotype].sum() + params["bias"])

  return Controller(init, sample, log_probs, predict)


def _chosen(log_p_DK: jax.Array, genotype: jax.Array):
  """`Controller.log_probs` out of the log-probabilities of every choice."""
  chosen = jnp.take_along_axis(log_p_DK, genotype[:, None], axis=1)[:, 0]
  finite = jnp.isfinite(log_p_DK)
  safe = jnp.where(finite, log_p_DK, 0.0)
  entropy = -(jnp.where(finite, jnp.exp(safe), 0.0) * safe).sum(-1)
  return chosen, entropy, finite.sum(-1) > 1
