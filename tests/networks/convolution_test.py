"""Each form of a convolution against the library's, to second order."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nasjax.networks import convolution, pooling

WINDOWS = [
  # size, stride, dilation, image
  (3, 1, 1, (8, 7)),
  (5, 2, 1, (6, 8)),
  (3, 1, 2, (5, 5)),
  (5, 2, 2, (9, 7)),
  (5, 1, 2, (10, 9)),  # too large for matrices
  (3, 2, 1, (10, 9)),
  (5, 2, 2, (9, 10)),
  (5, 1, 2, (3, 35)),  # in three pieces of twelve columns
  (3, 2, 1, (4, 35)),
]


def operands(size, image, channels=3, examples=2):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(channels, *image, examples))
  kernel = rng.normal(size=(channels, size, size))
  return jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32)


def library(x, kernel, window):
  return jax.lax.conv_general_dilated(
    x,
    kernel[:, None],
    (window.stride,) * 2,
    [(window.padding,) * 2] * 2,
    rhs_dilation=(window.dilation,) * 2,
    dimension_numbers=("CHWN", "OIHW", "CHWN"),
    feature_group_count=x.shape[0],
  )


def everything(convolve):
  """Output, both gradients, and both gradients' derivative along the kernel."""

  def loss(x, kernel):
    return jnp.sum(jnp.sin(convolve(x, kernel)) ** 2)

  @jax.jit
  def run(x, kernel):
    gradients = jax.grad(loss, (0, 1))(x, kernel)
    along = jax.jvp(lambda k: jax.grad(loss, (0, 1))(x, k), (kernel,), (kernel,))[1]
    return convolve(x, kernel), gradients, along

  return run


@pytest.mark.parametrize("size, stride, dilation, image", WINDOWS)
def test_depthwise_is_the_librarys_to_second_order(size, stride, dilation, image):
  window = convolution.Window(size, stride, dilation, image)
  x, kernel = operands(size, image)
  ours = functools.partial(convolution.depthwise, stride=stride, dilation=dilation)
  found = everything(ours)(x, kernel)
  wanted = everything(functools.partial(library, window=window))(x, kernel)
  for left, right in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
    np.testing.assert_allclose(left, right, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("image", [(6, 5), (10, 9)])
def test_both_cpu_forms_agree(image):
  """Small images go through matrices, larger ones through shifted sums."""
  for size, stride, dilation in ((3, 2, 1), (5, 1, 2)):
    window = convolution.Window(size, stride, dilation, image)
    x, kernel = operands(size, image)
    gradient = convolution._depthwise_output(x, kernel, window=window)
    pairs = [
      (convolution._matrix_output, convolution._depthwise_output, (x, kernel)),
      (convolution._matrix_input, convolution._depthwise_input, (kernel, gradient)),
      (convolution._matrix_kernel, convolution._depthwise_kernel, (gradient, x)),
    ]
    for left, right, both in pairs:
      np.testing.assert_allclose(
        left(*both, window=window), right(*both, window=window), rtol=1e-4, atol=1e-3
      )


def test_forward_mode_works_where_reverse_mode_has_not_been():
  x, kernel = operands(3, (5, 5))
  _, tangent = jax.jvp(lambda k: convolution.depthwise(x, k), (kernel,), (kernel,))
  np.testing.assert_allclose(tangent, convolution.depthwise(x, kernel), rtol=1e-6)


@pytest.mark.parametrize("axes", [(None, 0), (0, None), (3, 1)])
def test_vmapped_is_one_at_a_time(axes):
  """Every operand that has children, to second order; depthwise and pointwise."""
  x, kernel = operands(3, (5, 5))
  for convolve, weights in (
    (convolution.depthwise, kernel),
    (convolution.pointwise, kernel[:, 0]),
  ):

    def children(value, axis):
      if axis is None:
        return value
      return jnp.stack([value, -2 * value, value + 1], axis)

    xs, kernels = children(x, axes[0]), children(weights, axes[1])
    found = everything(jax.vmap(convolve, axes))(xs, kernels)

    def one_at_a_time(xs, kernels, convolve=convolve):
      pick = [jax.tree_util.Partial(jnp.take, axis=axis) for axis in axes]
      return jnp.stack(
        [
          convolve(
            *(v if a is None else p(v, i) for p, v, a in zip(pick, (xs, kernels), axes))
          )
          for i in range(3)
        ]
      )

    wanted = everything(one_at_a_time)(xs, kernels)
    for left, right in zip(jax.tree.leaves(found), jax.tree.leaves(wanted)):
      np.testing.assert_allclose(left, right, rtol=1e-3, atol=2e-3)


def test_children_of_a_depthwise_convolution_are_channels():
  """One convolution of rank four for all, on platforms that have the library's."""
  x, kernel = operands(3, (10, 10))
  kernels = jnp.stack([kernel, -kernel])
  traced = jax.jit(jax.vmap(convolution.depthwise, (None, 0))).trace(x, kernels)
  text = traced.lower(lowering_platforms=("tpu",)).as_text()
  assert text.count("stablehlo.convolution") == 1
  assert "feature_group_count = 6" in text


@pytest.mark.parametrize("platform, wanted", [("tpu", 1), ("cuda", 1), ("cpu", 0)])
def test_every_platform_gets_its_own_form(platform, wanted):
  x, kernel = operands(3, (10, 10))
  traced = jax.jit(convolution.depthwise).trace(x, kernel)
  text = traced.lower(lowering_platforms=(platform,)).as_text()
  assert text.count("stablehlo.convolution") == wanted


def test_dense_and_pointwise():
  rng = np.random.default_rng(1)
  x = jnp.asarray(rng.normal(size=(3, 6, 7, 2)), jnp.float32)
  kernel = jnp.asarray(rng.normal(size=(4, 3, 3, 3)), jnp.float32)
  for stride in (1, 2):

    def ours(x, kernel, stride=stride):
      return convolution.dense(x, kernel, stride)

    def theirs(x, kernel, stride=stride):
      return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride,) * 2,
        [(1, 1)] * 2,
        dimension_numbers=("CHWN", "OIHW", "CHWN"),
      )

    found, wanted = everything(ours)(x, kernel), everything(theirs)(x, kernel)
    for left, right in zip(jax.tree.leaves(found), jax.tree.leaves(wanted)):
      np.testing.assert_allclose(left, right, rtol=1e-3, atol=1e-3)
  point = kernel[:, :, 0, 0]
  np.testing.assert_allclose(
    convolution.pointwise(x, point), jnp.einsum("oi,ihwn->ohwn", point, x), rtol=1e-5
  )


@pytest.mark.parametrize("stride", [1, 2])
def test_pools_are_the_librarys(stride):
  x = jnp.asarray(np.random.default_rng(2).normal(size=(2, 7, 6, 3)), jnp.float32)

  def window(x, start, combine):
    return jax.lax.reduce_window(
      x,
      start,
      combine,
      (1, 3, 3, 1),
      (1, stride, stride, 1),
      ((0, 0), (1, 1), (1, 1), (0, 0)),
    )

  def largest(x):
    return window(x, -jnp.inf, jax.lax.max)

  def mean(x):
    return window(x, 0.0, jax.lax.add) / window(jnp.ones_like(x), 0.0, jax.lax.add)

  ours = (pooling.max_pool, pooling.average_pool)
  for pool, reference in zip(ours, (largest, mean)):
    run = [
      jax.value_and_grad(lambda x, f=f: jnp.sum(jnp.sin(f(x))))
      for f in (functools.partial(pool, stride=stride), reference)
    ]
    for left, right in zip(run[0](x), run[1](x)):
      np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-5)
