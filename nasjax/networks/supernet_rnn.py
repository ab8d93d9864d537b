"""The recurrent supernet of DARTS: every activation on every edge, weighed by alphas.

Liu, Simonyan and Yang, ICLR 2019, sections 2.2 and A.2.1. Node i adds up, over the
states j before it and activations k with weights p,

    s_i = sum_jk p_jk (s_j + c_j (f_k(u_j) - s_j)),    [sigmoid^-1(c_j), u_j] = s_j W_i

and is normalised over the batch without scale or shift, as s_0 is. W_i is shared by the
edges into i, so all of them are one product, and gate and state leave the sum over k:
with q_j = sum_k p_jk,

    s_i = sum_j q_j (1 - c_j) s_j + c_j sum_k p_jk f_k(u_j).

(On one CPU core the gradient of a window takes as long with the products of a node's
edges stacked, as here, as with those of a state's, s_j with all W_i side by side, which
take a third longer to compile.)

Differences from the authors' program: a batch is normalised with its own mean and
variance also where the supernet is only tested, because one set of running values would
stand for all nodes at all steps.
"""

import jax
import jax.numpy as jnp

from nasjax.networks import cell_rnn
from nasjax.networks.cell_rnn import ACTIVATIONS, Masks, Output, Weights
from nasjax.spaces.recurrent_cell import NONE, PRIMITIVES, edges

_EPSILON = 1e-5


def init_alphas(key: jax.Array, nodes: int = 8) -> jax.Array:
  """Almost equal weights `[E, K]`: 1e-3 times a standard normal."""
  return 1e-3 * jax.random.normal(key, (len(edges(nodes)), len(PRIMITIVES)))


def apply(
  weights: Weights,
  alphas: jax.Array,
  tokens: jax.Array,
  hidden: jax.Array,
  masks: Masks | None = None,
  length: jax.Array | int | None = None,
) -> Output:
  """The supernet on a window; see `cell_rnn.apply`.

  Args:
    weights: of `cell_rnn.init`.
    alphas: `[E, K]` logits.
    tokens: `[T, B]` int32.
    hidden: `[B, H]`.
    masks: for training.
    length: steps that count.
  """
  mix_EK = jax.nn.softmax(alphas, -1)

  def make_cell(nodes_NHG, mask):
    # Apart before the loop, so that their gradients are summed apart, not in slices.
    matrices = [nodes_NHG[node] for node in range(len(nodes_NHG))]

    def run(state):
      states = [_norm(state)]
      for node, matrix in enumerate(matrices):
        first = node * (node + 1) // 2
        mix_SK, states_SBH = mix_EK[first : first + node + 1], jnp.stack(states)
        read = states_SBH if mask is None else states_SBH * mask[None]
        gate_SBH, made_SBH = jnp.split(read @ matrix, 2, -1)
        gate_SBH = jax.nn.sigmoid(gate_SBH)
        activated_SBH = jnp.zeros_like(made_SBH)
        for number, op in enumerate(PRIMITIVES):
          if number != NONE:
            activated_SBH += mix_SK[:, number, None, None] * ACTIVATIONS[op](made_SBH)
        kept_S = mix_SK.sum(-1) - mix_SK[:, NONE]
        copied_SBH = kept_S[:, None, None] * (1.0 - gate_SBH) * states_SBH
        states.append(_norm((copied_SBH + gate_SBH * activated_SBH).sum(0)))
      return sum(states[1:]) / len(matrices)

    return run

  return cell_rnn.apply(weights, tokens, hidden, make_cell, masks, length)


def _norm(state: jax.Array) -> jax.Array:
  """`[B, H]` with mean 0 and variance 1 over the batch."""
  mean = state.mean(0, keepdims=True)
  variance = jnp.square(state - mean).mean(0, keepdims=True)
  return (state - mean) * jax.lax.rsqrt(variance + _EPSILON)
