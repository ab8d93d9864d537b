"""Pytrees of states as a checkpoint keeps them, and back; and whether two are equal."""

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def digest(*parts: Any) -> int:
  """A number that tells whether data are still those that they were.

  Args:
    *parts: pytrees of arrays and strings.
  """
  found = 0
  for leaf in jax.tree.leaves(parts):
    data: Any = leaf.encode() if isinstance(leaf, str) else np.ascontiguousarray(leaf)
    found = zlib.crc32(data, found)
  return found


def storable(state: Any) -> Any:
  """A state without its arrays of no entries, which a checkpoint cannot hold."""
  return jax.tree.map(
    lambda leaf: None if getattr(leaf, "size", 1) == 0 else leaf, state
  )


def like(template: Any, stored: Any) -> Any:
  """What was stored of `storable(state)`, as the state that it was.

  A checkpoint knows arrays, lists and dicts by name; the template gives the rest back:
  named tuples, whether an array is JAX's or NumPy's, what was a plain number.

  Args:
    template: a state of the same kind, such as a first one. Its arrays may have other
      lengths (a history grows), but not other ranks or types, and where it has an empty
      dict any dict may be.
    stored: nested dicts and lists of arrays and numbers.

  Raises:
    ValueError: it is no such state.
  """
  if template is None:
    return None
  if isinstance(template, dict):
    stored = {} if stored is None else stored
    if not template:
      return stored
    return {name: like(part, stored[name]) for name, part in _pairs(template, stored)}
  if isinstance(template, tuple) and hasattr(template, "_fields"):
    fields = dict(zip(template._fields, template))
    stored = {} if stored is None and not fields else stored
    return type(template)(
      *(like(p, stored[name]) for name, p in _pairs(fields, stored))
    )
  if isinstance(template, (list, tuple)):
    if not isinstance(stored, (list, tuple)) or len(stored) != len(template):
      raise ValueError(f"expected {len(template)} parts, found {stored!r:.60}")
    return type(template)(map(like, template, stored))
  if isinstance(template, (bool, int, float)):
    return type(template)(stored)
  if stored is None:
    if np.size(template):
      raise ValueError(f"nothing was stored of an array {np.shape(template)}")
    return template
  if np.ndim(stored) != np.ndim(template) or stored.dtype != template.dtype:
    raise ValueError(
      f"expected rank {np.ndim(template)} and {template.dtype}, found "
      f"{np.ndim(stored)} and {stored.dtype}"
    )
  return _unbound(stored) if isinstance(template, jax.Array) else np.asarray(stored)


def _unbound(stored: Any) -> jax.Array:
  """An array that may go to any device.

  What a checkpoint gives is bound to one, and the programs of bound arrays are others
  than those that the run had compiled.
  """
  if jnp.issubdtype(stored.dtype, jax.dtypes.prng_key):
    data = _unbound(jax.random.key_data(stored))
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(stored))
  return jnp.asarray(np.asarray(stored))


def _pairs(template: dict[str, Any], stored: Any):
  if not isinstance(stored, dict) or stored.keys() != template.keys():
    found = sorted(stored) if isinstance(stored, dict) else stored
    raise ValueError(f"expected {sorted(template)}, found {found!r:.60}")
  return template.items()
