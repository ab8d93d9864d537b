import jax
import jax.numpy as jnp
import numpy as np

from nasjax.core import counter


def test_a_small_draw_is_a_corner_of_a_large_one_on_host_and_device():
  seed = counter.seed(jax.random.key(0))
  small, large = counter.bits(seed, (3, 5)), counter.bits(seed, (30, 70))
  np.testing.assert_array_equal(small, large[:3, :5])
  np.testing.assert_array_equal(counter.bits(np.uint32(seed), (30, 70), np), large)
  part = counter.bits(seed, (3, 5), first_column=np.uint32(64))
  np.testing.assert_array_equal(part, large[:3, 64:69])
  for step in (0, 7, 2**31):
    on_host = counter.fold(np.uint32(seed), np.uint32(step))
    assert int(counter.fold(seed, jnp.uint32(step))) == int(on_host)


def test_numbers_are_uniform_and_unrelated():
  draws = counter.uniform(np.uint32(5), (300, 400), np)
  assert draws.dtype == np.float32 and draws.min() >= 0 and draws.max() < 1
  counts = np.histogram(draws, bins=64, range=(0, 1))[0]
  expected = draws.size / 64
  chi_square = ((counts - expected) ** 2 / expected).sum()
  assert chi_square < 110  # 63 degrees of freedom: p = 2e-4
  centred = draws - draws.mean()
  others = [
    counter.uniform(counter.fold(np.uint32(5), np.uint32(1)), (300, 400), np),
    counter.uniform(np.uint32(6), (300, 400), np),
    np.roll(draws, 1, 0),
    np.roll(draws, 1, 1),
    draws[::-1],
  ]
  for other in others:  # a correlation has standard error 0.003
    assert abs((centred * (other - other.mean())).mean() * 12) < 0.013
  bits = counter.bits(np.uint32(5), (300, 400), np)
  each = [((bits >> np.uint32(i)) & np.uint32(1)).mean() for i in range(32)]
  assert np.abs(np.array(each) - 0.5).max() < 0.007


def test_seeds_differ():
  seeds = counter.fold(np.uint32(1), np.arange(20000, dtype=np.uint32))
  assert len(np.unique(seeds)) == 20000
