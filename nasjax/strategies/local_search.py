"""Local search: go to a better neighbor until there is none, then start anew.

White, Nolen and Savani, "Exploring the loss landscape in neural architecture search",
UAI 2021: on small spaces it is as good as anything.

The rule `steepest` looks at every neighbor and goes to the best; `first` goes to the
first that is better. Where no neighbor is better the search starts again from a draw of
the space's prior; the best child of the whole history is the answer. Neighbors come in
a random order. A failed child (non-finite score) is never better than another. Children
that were tried before are asked again (two centers share neighbors); the search loop
gives them the score that is on record, at no cost.

Differences from the paper: the default is `first`, where its algorithm 1 looks at every
neighbor (`steepest`): at the budgets of the comparisons here it is the better one. The
search goes on after a local optimum, and `children` may be asked at once.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from nasjax.core import keys
from nasjax.core.types import InputError
from nasjax.spaces import base
from nasjax.spaces.base import Space
from nasjax.strategies.base import Strategy


class LocalSearchState(NamedTuple):
  """State of local search.

  Attributes:
    center: `[D]` int32, where the search stands; -1 before a start.
    center_score: scalar; `-inf` before a start.
    order: `[M]` int32, the neighbors of the center in the order they are asked in; rows
      that are no neighbors come last.
    num_neighbors: scalar int32, how many of them there are.
    num_asked: scalar int32, how many of them were told of.
    best: `[D]` int32, the best so far of the center and its neighbors.
    best_score: scalar; `-inf` before a start.
    restarts: scalar int32, starts so far but the first.
  """

  center: jax.Array
  center_score: jax.Array
  order: jax.Array
  num_neighbors: jax.Array
  num_asked: jax.Array
  best: jax.Array
  best_score: jax.Array
  restarts: jax.Array


def local_search(
  space: Space, *, rule: Literal["steepest", "first"] = "first", children: int = 1
) -> Strategy:
  """Local search with restarts.

  Args:
    space: the space.
    rule: when to move, see the module.
    children: P, asked at once; of the last neighbors of a center some are asked twice.

  Returns:
    A `Strategy`. `info` has `restarts` and `moved` (1 when the center has changed).

  Raises:
    InputError: no such rule, or no children.
  """
  if rule not in ("steepest", "first"):
    raise InputError(f"unknown rule {rule!r}; there are steepest, first")
  if children < 1:
    raise InputError(f"children must be positive, got {children}")
  num_rows = jax.eval_shape(
    space.neighbors, jax.ShapeDtypeStruct((space.length,), jnp.int32)
  ).weights.shape[0]

  def init(key: jax.Array) -> LocalSearchState:
    del key
    nowhere = jnp.full(space.length, -1, jnp.int32)
    return LocalSearchState(
      center=nowhere,
      center_score=jnp.float32(-jnp.inf),
      order=jnp.arange(num_rows, dtype=jnp.int32),
      num_neighbors=jnp.int32(0),
      num_asked=jnp.int32(0),
      best=nowhere,
      best_score=jnp.float32(-jnp.inf),
      restarts=jnp.int32(0),
    )

  def ask(key, state):
    """Neighbors of the center; before a start draws from the prior."""
    draws = jax.vmap(lambda k: base.sample(space, k))(jax.random.split(key, children))
    turn = state.num_asked + jnp.arange(children)
    at = state.order[turn % jnp.maximum(state.num_neighbors, 1)]
    near = space.neighbors(jnp.maximum(state.center, 0)).genotypes[at]
    return jnp.where(state.num_neighbors == 0, draws, near), state

  def tell(key, state, genotypes, scores):
    ranked = jnp.where(jnp.isfinite(scores), scores, -jnp.inf)
    told = jnp.argmax(ranked)
    better = ranked[told] > state.best_score
    best = jnp.where(better, genotypes[told], state.best)
    best_score = jnp.maximum(ranked[told], state.best_score)
    num_asked = state.num_asked + scores.shape[0]
    starting = state.num_neighbors == 0
    uphill = best_score > state.center_score
    done = num_asked >= state.num_neighbors
    # A start whose children all failed draws again: -inf is not above -inf.
    move = uphill & (done | (rule == "first"))
    restart = ~uphill & done & ~starting
    near = space.neighbors(jnp.maximum(best, 0))
    noise = jax.random.uniform(keys.named(key, "order")[0], (num_rows,))
    order = jnp.argsort(jnp.where(near.weights > 0, noise, 2.0)).astype(jnp.int32)
    count = (near.weights > 0).sum().astype(jnp.int32)
    fresh = init(key)._replace(restarts=state.restarts + restart)
    moved = LocalSearchState(
      center=best,
      center_score=best_score,
      order=order,
      num_neighbors=count,
      num_asked=jnp.int32(0),
      best=best,
      best_score=best_score,
      restarts=state.restarts,
    )
    stayed = state._replace(num_asked=num_asked, best=best, best_score=best_score)

    def choose(moved, fresh, stayed):
      return jnp.where(move, moved, jnp.where(restart | starting, fresh, stayed))

    after = jax.tree.map(choose, moved, fresh, stayed)
    return after, {"restarts": after.restarts, "moved": move.astype(jnp.int32)}

  return Strategy(init, ask, tell)
