"""Random keys: one key becomes named keys once, and never is used twice.

`split(k, 3)[:2] == split(k, 2)` in JAX, so a key that is split in two places repeats
its draws. Here a key is folded with the *name* of its use instead.
"""

import zlib

import jax
import jax.numpy as jnp


def named(key: jax.Array, *names: str) -> tuple[jax.Array, ...]:
  """Derives one key per name; the same name always gives the same key.

  Args:
    key: a typed key, not used for anything else afterwards.
    *names: distinct names of the uses.

  Returns:
    One typed key per name, independent of which other names are asked for.
  """
  return tuple(jax.random.fold_in(key, zlib.crc32(name.encode())) for name in names)


def for_genotypes(key: jax.Array, genotypes: jax.Array) -> jax.Array:
  """One key per child that depends on the child alone, not on its neighbours.

  Args:
    key: a typed key.
    genotypes: `[P, D]` int32.

  Returns:
    `[P]` typed keys: a permuted population has permuted keys.
  """

  def one(genotype: jax.Array) -> jax.Array:
    # FNV-1a over the decisions; a collision would only make two children share draws.
    digest = jnp.uint32(2166136261)
    for position in range(genotype.shape[0]):
      token = genotype[position].astype(jnp.uint32)
      digest = (digest ^ token) * jnp.uint32(16777619)
    return jax.random.fold_in(key, digest)

  return jax.vmap(one)(genotypes)
