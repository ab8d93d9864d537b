import jax
import jax.numpy as jnp
import numpy as np

from nasjax.core import keys


def data(key):
  return np.asarray(jax.random.key_data(key))


def test_a_name_always_gives_the_same_key_and_no_other():
  a, b = keys.named(jax.random.key(0), "a", "b")
  (alone,) = keys.named(jax.random.key(0), "b")
  assert (data(b) == data(alone)).all()
  assert (data(a) != data(b)).any()


def test_a_childs_key_is_its_own():
  genotypes = jnp.array([[1, 2, 3], [3, 2, 1], [1, 2, 4]], jnp.int32)
  together = data(keys.for_genotypes(jax.random.key(1), genotypes))
  assert len(np.unique(together, axis=0)) == 3
  for i in range(3):
    alone = keys.for_genotypes(jax.random.key(1), genotypes[i : i + 1])
    assert (data(alone)[0] == together[i]).all()
