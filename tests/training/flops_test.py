import jax
import jax.numpy as jnp

from nasjax.networks import convolution
from nasjax.training import flops


def test_products_by_hand():
  a, b = jnp.ones((3, 5)), jnp.ones((5, 7))
  once = 2 * 3 * 5 * 7
  assert flops.count(jnp.dot, a, b) == once
  assert flops.count(jax.jit(jnp.dot), a, b) == once
  batched = jax.vmap(jnp.dot, in_axes=(0, None))
  assert flops.count(batched, jnp.ones((4, 3, 5)), b) == 4 * once
  # Forward, and one product for the gradient of either factor.
  both = jax.grad(lambda a, b: jnp.square(a @ b).sum(), argnums=(0, 1))
  assert flops.count(both, a, b) == 3 * once


def test_control_flow():
  square = jnp.ones((5, 5))
  once = 2 * 5**3

  def scanned(x):
    return jax.lax.scan(lambda c, _: (c @ square, None), x, None, length=9)[0]

  def branching(x):
    return jax.lax.cond(x[0, 0] > 0, lambda v: v @ v @ v, lambda v: v @ v, x)

  assert flops.count(scanned, square) == 9 * once
  assert flops.count(branching, square) == 2 * once
  assert flops.count(lambda x: scanned(branching(x)), square) == 11 * once


def test_convolutions():
  def convolve(x, kernel):
    return jax.lax.conv(x, kernel, (1, 1), "SAME")

  x, kernel = jnp.ones((2, 3, 8, 8)), jnp.ones((4, 3, 3, 3))
  assert flops.count(convolve, x, kernel) == 2 * (2 * 4 * 8 * 8) * 3 * 3 * 3


def test_our_own_convolutions():
  x, point = jnp.ones((3, 8, 7, 2)), jnp.ones((5, 3))
  once = 2 * 5 * 3 * 8 * 7 * 2
  assert flops.count(convolution.pointwise, x, point) == once
  both = jax.grad(lambda x, k: convolution.pointwise(x, k).sum(), (0, 1))
  assert flops.count(both, x, point) == 3 * once
  kernel = jnp.ones((3, 5, 5))
  once = 2 * 25 * 3 * 4 * 4 * 2

  def halve(x, kernel):
    return convolution.depthwise(x, kernel, stride=2)

  assert flops.count(halve, x, kernel) == once
  both = jax.grad(lambda x, k: halve(x, k).sum(), (0, 1))
  assert flops.count(both, x, kernel) == 3 * once
