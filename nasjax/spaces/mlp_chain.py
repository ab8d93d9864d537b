"""The survey's space of multi-layer perceptrons: a chain of dense and dropout layers.

Tokens: 0 pad, then widths-major `(width, activation)` pairs from 1, then dropout, then
end. With the survey's seven widths and four activations these are 1..28, 29 and 30.
A genotype is `layer, ..., layer, end, pad, ..., pad`; the end counts as a layer (it
stands for the output layer), so `max_layers=10` allows nine layers before the output.

Legal: the first layer is dense; the end comes at the latest at the last position;
nothing but pad follows it. (The reference draws and rejects; we mask and renormalise,
so that log-probabilities are those of what was really drawn.)
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nasjax.core.types import InputError
from nasjax.spaces.base import Neighbors

ACTIVATIONS = ("sigmoid", "tanh", "relu", "elu")
PAD = 0


class Dense(NamedTuple):
  """A dense layer followed by an activation."""

  width: int
  activation: str


class Dropout(NamedTuple):
  """A dropout layer."""

  rate: float


Layer = Dense | Dropout


@dataclasses.dataclass(frozen=True)
class MLPChain:
  """Chains of dense and dropout layers; implements `spaces.base.Space`.

  Attributes:
    widths: units of a dense layer.
    activations: names out of `ACTIVATIONS`.
    dropout_rate: rate of a dropout layer; 0 leaves dropout out of the vocabulary.
    max_layers: D, the longest chain, output layer included.
    prior: "depth" draws the number of layers uniformly and then the layers, of which
      the later ones are dropout with `dropout_prior`; "token" draws every token
      uniformly, the survey's way, which makes 3 of 4 chains as long as they can be.
    dropout_prior: see `prior`; "token" has no use for it.

  Raises:
    InputError: when a value is outside what the space can hold.
  """

  widths: tuple[int, ...] = (8, 16, 32, 64, 128, 256, 512)
  activations: tuple[str, ...] = ACTIVATIONS
  dropout_rate: float = 0.2
  max_layers: int = 10
  prior: Literal["depth", "token"] = "depth"
  dropout_prior: float = 0.25

  def __post_init__(self):
    if not self.widths or min(self.widths) < 1:
      raise InputError(f"space.widths must be positive integers, got {self.widths}")
    if len(set(self.widths)) < len(self.widths):
      raise InputError(f"space.widths repeats a width: {self.widths}")
    unknown = [name for name in self.activations if name not in ACTIVATIONS]
    if unknown or not self.activations:
      raise InputError(
        f"space.activations must be out of {', '.join(ACTIVATIONS)}; got "
        f"{', '.join(unknown) or 'none'}"
      )
    if len(set(self.activations)) < len(self.activations):
      raise InputError(f"space.activations repeats a name: {self.activations}")
    if not 0 <= self.dropout_rate < 1:
      raise InputError(f"space.dropout_rate must be in [0, 1), got {self.dropout_rate}")
    if self.max_layers < 2:
      raise InputError(
        f"space.max_layers counts the output layer, so it is at least 2; "
        f"got {self.max_layers}"
      )
    if not 0 < self.dropout_prior < 1:
      raise InputError(
        f"space.dropout_prior must be between 0 and 1, got {self.dropout_prior}"
      )
    if self.prior not in ("depth", "token"):
      raise InputError(f"space.prior must be depth or token, got {self.prior!r}")

  @property
  def length(self) -> int:
    """D, decisions of a genotype."""
    return self.max_layers

  @property
  def num_dense(self) -> int:
    """How many tokens are dense layers: they are 1..num_dense."""
    return len(self.widths) * len(self.activations)

  @property
  def has_dropout(self) -> bool:
    """Whether dropout is in the vocabulary."""
    return self.dropout_rate > 0

  @property
  def dropout(self) -> int:
    """The dropout token (one past the dense ones, used or not)."""
    return self.num_dense + 1

  @property
  def end(self) -> int:
    """The end token."""
    return self.num_dense + 1 + self.has_dropout

  @property
  def num_tokens(self) -> int:
    """K: pad, the layers, and the end."""
    return self.end + 1

  @property
  def max_width(self) -> int:
    """W, the widest dense layer."""
    return max(self.widths)

  @property
  def size(self) -> int:
    """How many different chains there are."""
    later = self.num_dense + self.has_dropout
    return sum(self.num_dense * later**n for n in range(self.max_layers - 1))

  def token_widths(self) -> np.ndarray:
    """`[K]` int32: units of a dense token, 0 for every other token."""
    widths = np.zeros(self.num_tokens, np.int32)
    widths[1 : self.num_dense + 1] = np.repeat(self.widths, len(self.activations))
    return widths

  def token_activations(self) -> np.ndarray:
    """`[K]` int32: index into `ACTIVATIONS` of a dense token, 0 for the others."""
    indices = [ACTIVATIONS.index(name) for name in self.activations]
    activations = np.zeros(self.num_tokens, np.int32)
    activations[1 : self.num_dense + 1] = indices * len(self.widths)
    return activations

  def log_prior(self, genotype: jax.Array, position: jax.Array | int) -> jax.Array:
    """`[K]` log-probabilities of the next token; see `spaces.base.Space`."""
    position = jnp.asarray(position)
    token = jnp.arange(self.num_tokens)
    previous = genotype[jnp.maximum(position - 1, 0)]
    first = position == 0
    ended = ~first & ((previous == self.end) | (previous == PAD))
    last = position == self.length - 1
    is_layer = (token != PAD) & (token != self.end)
    allowed = is_layer & ~(first & (token > self.num_dense))
    num_layers = allowed.sum()
    # "depth": chains of 1..D-1 layers are equally likely, so the end comes after t
    # layers with hazard 1 / (D - t), given that it has not come before.
    hazard = {
      "depth": 1.0 / jnp.maximum(self.length - position, 1),
      "token": 1.0 / (num_layers + 1.0),
    }[self.prior]
    p_end = jnp.where(first, 0.0, jnp.where(last, 1.0, hazard))
    share = jnp.where(allowed, 1.0 / num_layers, 0.0)
    if self.prior == "depth" and self.has_dropout:
      p_drop = jnp.where(first, 0.0, self.dropout_prior)
      dense = allowed & (token <= self.num_dense)
      share = jnp.where(dense, (1.0 - p_drop) / self.num_dense, 0.0)
      share = jnp.where(token == self.dropout, p_drop, share)
    probs = (1.0 - p_end) * share
    probs = jnp.where(token == self.end, p_end, probs)
    probs = jnp.where(ended, (token == PAD).astype(probs.dtype), probs)
    return jnp.where(probs > 0, jnp.log(jnp.where(probs > 0, probs, 1.0)), -jnp.inf)

  def is_legal(self, genotype: jax.Array | np.ndarray) -> jax.Array:
    """Whether a genotype `[D]` is in the space (scalar bool)."""
    genotype = jnp.asarray(genotype)
    inside = (genotype >= 0) & (genotype < self.num_tokens)
    token = jnp.where(inside, genotype, 0)

    def one(position):
      return jnp.isfinite(self.log_prior(token, position)[token[position]])

    return inside.all() & jax.vmap(one)(jnp.arange(self.length)).all()

  def num_layers(self, genotype: jax.Array) -> jax.Array:
    """How many layers stand before the end of a legal genotype `[D]` (scalar)."""
    return jnp.argmax(genotype == self.end)

  def neighbors(self, genotype: jax.Array) -> Neighbors:
    """One layer replaced, inserted or deleted; see `spaces.base.Space`.

    A mutation first picks which of the three (of those that are possible), then where
    and what, uniformly: otherwise most would insert, of which there are the most.
    """
    length, count = self.length, self.num_layers(genotype)
    where = jnp.arange(length - 1)
    here, before = genotype[:-1], jnp.roll(genotype[:-1], 1)
    layer = jnp.arange(1, self.end)  # every token that is a layer
    place = jnp.arange(length)

    def replaced(p, token):
      return jnp.where(place == p, token, genotype)

    def inserted(p, token):
      moved = jnp.where(place > p, jnp.roll(genotype, 1), genotype)
      return jnp.where(place == p, token, moved)

    def deleted(p):
      moved = jnp.roll(genotype, -1).at[-1].set(PAD)
      return jnp.where(place >= p, moved, genotype)

    def everywhere(change):
      both = jax.vmap(jax.vmap(change, (None, 0)), (0, None))
      return both(where, layer).reshape(-1, length)

    fits = (where[:, None] > 0) | (layer[None] <= self.num_dense)
    is_layer, repeats = where < count, (where > 0) & (here == before)
    can_replace = fits & is_layer[:, None] & (layer[None] != here[:, None])
    # Beside its like a layer makes the same chain from both sides: one of them counts.
    twice = (where[:, None] > 0) & (layer[None] == before[:, None])
    can_insert = fits & (where <= count)[:, None] & (count < length - 1) & ~twice
    heads = (where > 0) | (genotype[1] <= self.num_dense)
    can_delete = is_layer & (count > 1) & heads & ~repeats
    kinds = [can_replace.ravel(), can_insert.ravel(), can_delete]
    possible = sum(kind.any() for kind in kinds)
    weights = [k / jnp.maximum(k.sum() * possible, 1) for k in kinds]
    genotypes = [everywhere(replaced), everywhere(inserted), jax.vmap(deleted)(where)]
    weights_M = jnp.concatenate(weights)
    genotypes_MD = jnp.concatenate(genotypes).astype(jnp.int32)
    return Neighbors(
      jnp.where(weights_M[:, None] > 0, genotypes_MD, genotype), weights_M
    )

  def _starts(self) -> tuple[np.ndarray, np.ndarray]:
    """First index of the chains with 1, 2... layers, and place values `[D - 1]`."""
    if self.size >= 2**31:
      raise InputError(f"this space has {self.size:,} chains: too many to number")
    later = self.num_dense + self.has_dropout
    of_length = self.num_dense * later ** np.arange(self.length - 1)
    return np.concatenate([[0], np.cumsum(of_length)[:-1]]), of_length

  def index(self, genotype: jax.Array) -> jax.Array:
    """Its number: shorter chains first, then as words; see `spaces.base.Enumerable`.

    Raises:
      InputError: the space has more chains than an int32 can number.
    """
    starts, _ = self._starts()
    later = self.num_dense + self.has_dropout
    count = self.num_layers(genotype)

    def read(p, value):
      return jnp.where(p < count, value * later + genotype[p] - 1, value)

    value = jax.lax.fori_loop(0, self.length - 1, read, jnp.int32(0))
    return (jnp.asarray(starts, jnp.int32)[count - 1] + value).astype(jnp.int32)

  def at(self, index: jax.Array | int) -> jax.Array:
    """The chain of a number; the inverse of `index`."""
    starts = jnp.asarray(self._starts()[0], jnp.int32)
    later = self.num_dense + self.has_dropout
    count = (index >= starts).sum()
    value = jnp.asarray(index - starts[count - 1], jnp.int32)

    def write(back, state):
      genotype, value = state
      digit = jnp.where(back == count - 1, value, value % later)
      genotype = genotype.at[count - 1 - back].set(
        jnp.where(back < count, digit + 1, genotype[count - 1 - back])
      )
      return genotype, value // later

    blank = jnp.full(self.length, PAD, jnp.int32).at[count].set(self.end)
    return jax.lax.fori_loop(0, self.length - 1, write, (blank, value))[0]

  def layers(self, genotype: np.ndarray) -> tuple[Layer, ...]:
    """The hidden layers of a genotype `[D]`, host side.

    Raises:
      InputError: when the genotype is not in the space.
    """
    genotype = np.asarray(genotype)
    if genotype.shape != (self.length,) or not _is_legal(self, genotype):
      raise InputError(f"not a genotype of this space: {genotype.tolist()}")
    widths, activations = self.token_widths(), self.token_activations()
    found: list[Layer] = []
    for token in genotype[: int(np.argmax(genotype == self.end))]:
      if self.has_dropout and token == self.dropout:
        found.append(Dropout(self.dropout_rate))
      else:
        found.append(Dense(int(widths[token]), ACTIVATIONS[activations[token]]))
    return tuple(found)

  def describe(self, genotype: np.ndarray) -> str:
    """The architecture in words: `256 relu - dropout 0.2 - 64 tanh`."""
    return describe_layers(self.layers(genotype))

  def parse(self, text: str) -> np.ndarray:
    """The genotype `[D]` of an architecture in words; the inverse of `describe`.

    Raises:
      InputError: when a layer is unknown or the chain is not in the space.
    """
    tokens = []
    for part in text.split(" - "):
      words = part.split()
      if len(words) == 2 and words[0] == "dropout" and self.has_dropout:
        tokens.append(self.dropout)
        continue
      try:
        width = self.widths.index(int(words[0]))
        activation = self.activations.index(words[1])
      except (ValueError, IndexError):
        raise InputError(f"no such layer in this space: {part!r}") from None
      tokens.append(1 + width * len(self.activations) + activation)
    tokens.append(self.end)
    if len(tokens) > self.length:
      raise InputError(f"{len(tokens)} layers with the output, at most {self.length}")
    genotype = np.full(self.length, PAD, np.int32)
    genotype[: len(tokens)] = tokens
    self.layers(genotype)
    return genotype

  def to_dict(self) -> dict:
    """The space as plain JSON values: its fields, and `kind`."""
    return {"kind": "mlp_chain", **dataclasses.asdict(self)}


# One program: unjitted, the fifty small operations would each be compiled.
_is_legal = jax.jit(MLPChain.is_legal, static_argnums=0)


def describe_layers(layers: tuple[Layer, ...]) -> str:
  """Layers in words."""
  return " - ".join(
    f"dropout {layer.rate:g}"
    if isinstance(layer, Dropout)
    else f"{layer.width} {layer.activation}"
    for layer in layers
  )
