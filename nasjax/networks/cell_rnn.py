"""Language models around a recurrent cell, and the cell of a genotype.

Liu, Simonyan and Yang, "DARTS: differentiable architecture search", ICLR 2019, section
3.1.2, on the model of Merity et al., "Regularizing and optimizing LSTM language
models", 2018: one table embeds words and, transposed, scores the next ones (Press and
Wolf 2017); dropout masks are drawn once for a window and kept at all its steps (Gal and
Ghahramani 2016). What the nodes of the cell do is a parameter: the mixed activations of
a supernet (`supernet_rnn`), or those of a genotype (here).

With s0 made of input x and hidden state h, and node i reading state j:

    [c, u] = [x, h] W_0    s_0 = h + sigmoid(c) (tanh(u) - h)
    [c, u] = s_j W_i       s_i = s_j + sigmoid(c) (f_i(u) - s_j)

The loop over steps is a scan. The input's part of W_0 needs no hidden state: all steps
of it are one product before the scan.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nasjax.core import counter, keys
from nasjax.core.types import InputError
from nasjax.spaces.recurrent_cell import Edge

Weights = dict[str, Any]
Cell = Callable[[jax.Array], jax.Array]
"""s0 `[B, H]` -> the cell's output `[B, H]`, with its weights in it."""

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "tanh": jnp.tanh,
  "relu": jax.nn.relu,
  "sigmoid": jax.nn.sigmoid,
  "identity": lambda u: u,
}
_INIT_RANGE = 0.04  # the authors': every matrix starts uniform within it


class Plan(NamedTuple):
  """A language model, static.

  Attributes:
    vocabulary: V, words that it tells apart.
    hidden: H, units of the hidden state and of an embedded word.
    nodes: N of the cell.
  """

  vocabulary: int
  hidden: int
  nodes: int


def make_plan(vocabulary: int, hidden: int, nodes: int) -> Plan:
  """A `Plan`.

  Raises:
    InputError: no hidden unit, or a vocabulary that leaves nothing to predict.
  """
  if hidden < 1 or nodes < 1:
    raise InputError(f"hidden and nodes must be positive, got {hidden} and {nodes}")
  if vocabulary < 2:
    raise InputError(
      f"a vocabulary of {vocabulary} leaves nothing to predict; at least 2 are needed"
    )
  return Plan(vocabulary, hidden, nodes)


def init(seed: np.uint32, plan: Plan) -> Weights:
  """Initial weights, on the host.

  `embedding [V, H]` is tied: it embeds and it decodes. `bias [V]` of the decoder starts
  at zero, `input [2H, 2H]` is W_0 and `nodes [N, H, 2H]` are W_1 to W_N.
  """
  hidden = plan.hidden

  def draw(seed, rows, columns):
    drawn = counter.uniform(seed, (rows, columns), np)
    return (2 * drawn - 1) * np.float32(_INIT_RANGE)

  embedding, into, nodes = counter.named(seed, "embedding", "input", "nodes")
  return {
    "embedding": draw(embedding, plan.vocabulary, hidden),
    "bias": np.zeros(plan.vocabulary, np.float32),
    "input": draw(into, 2 * hidden, 2 * hidden),
    "nodes": np.stack(
      [
        draw(counter.fold(nodes, np.uint32(node)), hidden, 2 * hidden)
        for node in range(plan.nodes)
      ]
    ),
  }


class Dropout(NamedTuple):
  """Parts that are dropped; the authors' for Penn Treebank's search as defaults.

  Attributes:
    output: of the cell's outputs, before the decoder.
    hidden: of the hidden state and of every state that a node's matrix reads.
    embedded: of embedded words.
    input: of embedded words again, where the cell reads them.
    words: of the words of the vocabulary, all their places at once.
  """

  output: float = 0.75
  hidden: float = 0.25
  embedded: float = 0.2
  input: float = 0.75
  words: float = 0.0


class Masks(NamedTuple):
  """What a window is multiplied with, the same at each of its steps.

  Attributes:
    output: `[B, H]`.
    hidden: `[B, H]`.
    embedded: `[B, H]`.
    input: `[B, H]`.
    words: `[V]`.
  """

  output: jax.Array
  hidden: jax.Array
  embedded: jax.Array
  input: jax.Array
  words: jax.Array


def draw_masks(key: jax.Array, plan: Plan, batch: int, dropout: Dropout) -> Masks:
  """Masks of one window: 0, or what keeps the mean.

  Args:
    key: typed key of the window.
    plan: the model.
    batch: B.
    dropout: the rates; a traced one is as good.
  """

  def draw(key, rate, shape):
    kept = 1.0 - rate
    return jax.random.bernoulli(key, kept, shape).astype(jnp.float32) / kept

  shape = (batch, plan.hidden)
  names = Dropout._fields
  return Masks(
    *(
      draw(own, rate, (plan.vocabulary,) if name == "words" else shape)
      for own, name, rate in zip(keys.named(key, *names), names, dropout)
    )
  )


class Output(NamedTuple):
  """What a window gives.

  Attributes:
    logits: `[T, B, V]` of the word after each.
    states: `[T, B, H]` outputs of the cell, before dropout.
    hidden: `[B, H]` to begin the next window with.
  """

  logits: jax.Array
  states: jax.Array
  hidden: jax.Array


def apply(
  weights: Weights,
  tokens: jax.Array,
  hidden: jax.Array,
  make_cell: Callable[[jax.Array, jax.Array | None], Cell],
  masks: Masks | None = None,
  length: jax.Array | int | None = None,
) -> Output:
  """Runs a window.

  Args:
    weights: of `init`.
    tokens: `[T, B]` int32.
    hidden: `[B, H]` that the window before ended with.
    make_cell: `(weights [N, H, 2H], mask [B, H] or None) -> Cell`.
    masks: for training.
    length: steps that count, after which the hidden state stays what it is; None for
      all.
  """
  table, units = weights["embedding"], hidden.shape[-1]
  x_TBH = table[tokens]
  if masks is not None:
    x_TBH *= masks.words[tokens][..., None] * (masks.embedded * masks.input)[None]
  own = None if masks is None else masks.hidden
  cell = make_cell(weights["nodes"], own)
  into_TBG = x_TBH @ weights["input"][:units]
  recurrent = weights["input"][units:]

  def step(hidden, inputs):
    into, number = inputs
    gate, made = jnp.split(into + _masked(hidden, own) @ recurrent, 2, -1)
    state = cell(hidden + jax.nn.sigmoid(gate) * (jnp.tanh(made) - hidden))
    if length is None:
      return state, state
    return jnp.where(number < length, state, hidden), state

  # The loop keeps the compiler from merging the second computation with the first.
  step = jax.checkpoint(step, prevent_cse=False)
  over = (into_TBG, jnp.arange(tokens.shape[0]))
  hidden, states_TBH = jax.lax.scan(step, hidden, over)
  read = states_TBH if masks is None else states_TBH * masks.output[None]
  logits = read @ table.T + weights["bias"][None, None]
  return Output(logits, states_TBH, hidden)


def _masked(state: jax.Array, mask: jax.Array | None) -> jax.Array:
  return state if mask is None else state * mask


def derived(
  weights: Weights,
  cell: Sequence[Edge],
  tokens: jax.Array,
  hidden: jax.Array,
  masks: Masks | None = None,
  length: jax.Array | int | None = None,
) -> Output:
  """The model of a genotype; see `apply`.

  Nodes that read one state share a matrix product.
  """

  def make_cell(nodes_NHG, mask):
    readers = [
      [node for node, edge in enumerate(cell) if edge.source == state]
      for state in range(len(cell) + 1)
    ]
    side_by_side = [
      jnp.concatenate([nodes_NHG[node] for node in own], -1) if own else None
      for own in readers
    ]

    def run(state):
      states = {0: state}
      for number, (own, matrix) in enumerate(zip(readers, side_by_side)):
        if matrix is None:
          continue
        state = states[number]
        parts = jnp.split(_masked(state, mask) @ matrix, 2 * len(own), -1)
        for node, gate, made in zip(own, parts[::2], parts[1::2]):
          gated = jax.nn.sigmoid(gate) * (ACTIVATIONS[cell[node].op](made) - state)
          states[node + 1] = state + gated
      return sum(states[node + 1] for node in range(len(cell))) / len(cell)

    return run

  return apply(weights, tokens, hidden, make_cell, masks, length)


def num_params(weights: Weights) -> int:
  """How many numbers there are; the tied table counts once."""
  return sum(np.size(leaf) for leaf in jax.tree.leaves(weights))
