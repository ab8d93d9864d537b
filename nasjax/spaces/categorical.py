"""Independent decisions: every combination of choices is an architecture.

The space of most tabular benchmarks, and of anyone's own table of operations.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nasjax.core.types import InputError
from nasjax.spaces.base import Neighbors, one_change


@dataclasses.dataclass(frozen=True)
class Categorical:
  """D decisions of K_1, ..., K_D choices; implements `spaces.base.Enumerable`.

  Attributes:
    num_choices: `[D]` choices of each decision.

  Raises:
    InputError: when there is no decision, or one without a choice, or more
      architectures than an int32 can number.
  """

  num_choices: tuple[int, ...]

  def __post_init__(self):
    whole = all(isinstance(count, int | np.integer) for count in self.num_choices)
    if not self.num_choices or not whole or min(self.num_choices) < 1:
      raise InputError(
        f"space.num_choices must be positive integers, got {self.num_choices}"
      )
    if self.size >= 2**31:
      raise InputError(f"{self.size:,} architectures are too many to number")

  @property
  def length(self) -> int:
    """D, decisions of a genotype."""
    return len(self.num_choices)

  @property
  def num_tokens(self) -> int:
    """K, the most choices that a decision has."""
    return max(self.num_choices)

  @property
  def size(self) -> int:
    """How many architectures there are."""
    return math.prod(self.num_choices)

  @property
  def _places(self) -> jax.Array:
    """`[D]` int32 place values, the first decision the slowest."""
    places = np.cumprod((1, *self.num_choices[:0:-1]))[::-1]
    return jnp.asarray(places, jnp.int32)

  def log_prior(self, genotype: jax.Array, position: jax.Array | int) -> jax.Array:
    """`[K]` log-probabilities: a decision's choices are alike."""
    del genotype
    count = jnp.asarray(self.num_choices)[position]
    legal = jnp.arange(self.num_tokens) < count
    return jnp.where(legal, -jnp.log(count.astype(jnp.float32)), -jnp.inf)

  def is_legal(self, genotype: jax.Array | np.ndarray) -> jax.Array:
    """Whether a genotype `[D]` is in the space (scalar bool)."""
    genotype = jnp.asarray(genotype)
    return ((genotype >= 0) & (genotype < jnp.asarray(self.num_choices))).all()

  def neighbors(self, genotype: jax.Array) -> Neighbors:
    """One decision made otherwise, all alike; see `spaces.base.Space`."""
    choice = jnp.arange(self.num_tokens)
    legal = choice[None] < jnp.asarray(self.num_choices)[:, None]
    is_other = (legal & (choice[None] != genotype[:, None])).ravel()
    return Neighbors(
      jnp.where(is_other[:, None], one_change(genotype, self.num_tokens), genotype),
      is_other / jnp.maximum(is_other.sum(), 1),
    )

  def index(self, genotype: jax.Array) -> jax.Array:
    """Its number, the first decision the slowest; see `spaces.base.Enumerable`."""
    return (genotype * self._places).sum().astype(jnp.int32)

  def at(self, index: jax.Array | int) -> jax.Array:
    """The genotype of a number; the inverse of `index`."""
    digits = jnp.asarray(index) // self._places % jnp.asarray(self.num_choices)
    return digits.astype(jnp.int32)

  def describe(self, genotype: Any) -> str:
    """The decisions: `2 0 1`."""
    return " ".join(map(str, np.asarray(genotype).tolist()))

  def parse(self, text: str) -> np.ndarray:
    """The genotype `[D]` of decisions in words; the inverse of `describe`.

    Raises:
      InputError: when it is not in the space.
    """
    words = text.split()
    legal = len(words) == self.length and all(
      word.isdigit() and int(word) < count
      for word, count in zip(words, self.num_choices)
    )
    if not legal:
      raise InputError(f"not a genotype of {self.length} decisions: {text!r}")
    return np.array([int(word) for word in words], np.int32)

  def to_dict(self) -> dict:
    """The space as plain JSON values: its fields, and `kind`."""
    return {"kind": "categorical", "num_choices": list(self.num_choices)}
