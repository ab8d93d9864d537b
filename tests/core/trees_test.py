from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nasjax.core import trees


class Pair(NamedTuple):
  left: Any
  right: Any


class Nothing(NamedTuple):
  pass


def state(count):
  return Pair(
    {"table": {str(i): np.full(i, i, np.float32) for i in range(1, count)}, "n": count},
    (
      Pair(jnp.arange(count, dtype=jnp.int32), None),
      [0.5, True],
      np.zeros((count, 2), np.float32),
      Nothing(),
    ),
  )


def as_stored(tree):
  """What a checkpoint gives back of `storable(tree)`: lists, dicts, NumPy."""
  if isinstance(tree, tuple) and hasattr(tree, "_fields"):
    return {k: as_stored(v) for k, v in tree._asdict().items()}
  if isinstance(tree, dict):
    return {k: as_stored(v) for k, v in tree.items()}
  if isinstance(tree, (list, tuple)):
    return [as_stored(v) for v in tree]
  return tree if tree is None else np.asarray(tree)


@pytest.mark.parametrize("count", [0, 3])
def test_a_stored_state_is_the_state_again(count):
  wanted = state(count)
  template = wanted._replace(left={"table": {}, "n": 7}, right=state(0).right)
  found = trees.like(template, as_stored(trees.storable(wanted)))
  assert jax.tree.structure(found) == jax.tree.structure(wanted)
  jax.tree.map(np.testing.assert_array_equal, found, wanted)
  assert isinstance(found.right[0].left, jax.Array)
  assert type(found.right[2]) is np.ndarray and found.right[2].dtype == np.float32
  assert [type(v) for v in found.right[1]] == [float, bool]
  assert type(found.left["n"]) is int


def test_an_array_that_comes_back_is_bound_to_no_device():
  """A program compiled for one that is not would be compiled again for one that is."""
  stored = {"array": np.ones(3, np.float32), "key": jax.random.key(7)}
  bound = jax.device_put(stored, jax.devices()[0])
  found = trees.like({"array": jnp.zeros(3), "key": jax.random.key(0)}, bound)
  for name, array in found.items():
    assert bound[name].committed and not array.committed
  np.testing.assert_array_equal(found["array"], stored["array"])
  assert jax.random.bits(found["key"]) == jax.random.bits(jax.random.key(7))


@pytest.mark.parametrize(
  ("template", "stored", "message"),
  [
    (Pair(1, 2), {"left": 1}, "expected .'left', 'right'., found .'left'."),
    ({"a": 1}, [1], "expected .'a'."),
    ([1, 2], [1], "expected 2 parts"),
    (np.zeros(2, np.float32), np.zeros((2, 1), np.float32), "expected rank 1"),
    (np.zeros(2, np.float32), np.zeros(2, np.int32), "float32, found 1 and int32"),
    (np.zeros(2, np.float32), None, "nothing was stored"),
  ],
)
def test_another_structure_is_refused(template, stored, message):
  with pytest.raises(ValueError, match=message):
    trees.like(template, stored)
