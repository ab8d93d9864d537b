"""Convolutions in the form that each platform runs best, differentiable to any order.

A convolution is bilinear, and with the cotangent of its output it is a *trilinear* form
T(x, k, g) = <conv(x, k), g>. Its three partial derivatives (the output, the gradient of
the input, the gradient of the kernel) are bilinear maps, and each one's transposes are
the other two. So three programs say everything: forward mode, reverse mode, and one
over the other, as the exact second-order step of DARTS needs it. (With `custom_vjp`
forward mode fails wherever reverse mode has not been before.)

The programs are JAX primitives, so that their form is chosen when a program is lowered,
for the platform that it is lowered for:

* on a CPU, where XLA's grouped convolutions are 30 to 60 times too slow, a depthwise
  convolution is a sum of shifted products, and so is its kernel's gradient;
* elsewhere it is the library's convolution and the library's transposes of it.

Layout: channels first, examples last, `[C, H, W, N]`: a CPU's shifted sums then run
over whole rows of examples, and a pointwise convolution is one flat matrix product.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

_DIMENSIONS = ("CHWN", "OIHW", "CHWN")
_MATRIX_PIXELS = 64  # up to 8 x 8 a channel's convolution is a small matrix
_COLUMNS = 16  # of an image, in one written-out sum


class Window(NamedTuple):
  """A square window over an image, centred: as much padding as keeps the size.

  Attributes:
    size: K, odd.
    stride: of the output.
    dilation: distance of the window's points.
    image: (H, W) of the input.
  """

  size: int
  stride: int
  dilation: int
  image: tuple[int, int]

  @property
  def padding(self) -> int:
    """Rows of zeros on each side."""
    return self.dilation * (self.size - 1) // 2

  @property
  def output(self) -> tuple[int, int]:
    """(H, W) of the output."""
    height, width = self.image
    return -(-height // self.stride), -(-width // self.stride)


def _behind_a_branch(same: Callable, as_well: Callable, *operands: jax.Array):
  """`same(*operands)` on operands that are whole arrays in memory, for a CPU.

  XLA:CPU fuses what makes an array into everything that reads it: into a product's
  flattened operand, where the loop then finds its place by division and is no longer
  vectorised (five times the time of a depthwise convolution), and into each reduction
  and each tap of what follows, which all do it again. It drops optimization barriers
  before it fuses; what enters a branch, though, is an array.

  Args:
    same: what is computed.
    as_well: the same written otherwise: of equal branches XLA keeps none.
    *operands: of both.
  """
  first = operands[0]
  finite = first[(0,) * first.ndim] < jnp.inf
  return jax.lax.cond(finite, same, as_well, *operands)


def _identity(name: str) -> Primitive:
  """A primitive that gives what it is given, and whose cotangent is held."""
  primitive = Primitive(name)
  primitive.def_abstract_eval(lambda x: x)
  primitive.def_impl(lambda x: x)
  ad.deflinear2(primitive, lambda cotangent, x: [_held.bind(cotangent)])
  batching.defvectorized(primitive)
  mlir.register_lowering(primitive, mlir.lower_fun(lambda x: x, multiple_results=False))
  return primitive


_held, _held_back = _identity("held"), _identity("held_back")
mlir.register_lowering(
  _held,
  mlir.lower_fun(
    lambda x: _behind_a_branch(lambda x: x, lambda x: 2 * x - x, x),
    multiple_results=False,
  ),
  platform="cpu",
)


def held(x: jax.Array) -> jax.Array:
  """x itself, computed once on a CPU however many read it; see `_behind_a_branch`."""
  return _held.bind(x)


def held_back(x: jax.Array) -> jax.Array:
  """x itself, whose cotangent is `held`: what reads it does not do the way back again
  for each value of a sum that it is a part of."""
  return _held_back.bind(x)


def _trilinear(name: str, programs, library, batched) -> list[Primitive]:
  """Three primitives, each the transposes of the other two.

  Args:
    name: of the form.
    programs: three functions of `(left, right, window)`: with u0, u1, u2 the operands
      of the form, number i takes u(i + 1) and u(i + 2) and gives what is dual to u(i).
      These are the CPU's.
    library: likewise, for every other platform.
    batched: `(primitive, library program, window, operands, axes) -> output`, with the
      children of a vmap in its first axis.
  """
  primitives = [Primitive(f"{name}_{part}") for part in ("input", "kernel", "output")]
  for i, primitive in enumerate(primitives):
    after, before = primitives[(i + 1) % 3], primitives[(i + 2) % 3]

    def abstract(left, right, *, window, program=library[i]):
      found = jax.eval_shape(functools.partial(program, window=window), left, right)
      return jax.core.ShapedArray(found.shape, found.dtype)

    def of_children(operands, axes, *, window, primitive=primitive, program=library[i]):
      return batched(primitive, program, window, operands, axes), 0

    primitive.def_abstract_eval(abstract)
    primitive.def_impl(jax.jit(primitive.bind, static_argnames="window"))
    ad.defbilinear(
      primitive,
      lambda cotangent, left, right, *, window, after=after: after.bind(
        right, cotangent, window=window
      ),
      lambda cotangent, left, right, *, window, before=before: before.bind(
        cotangent, left, window=window
      ),
    )
    batching.primitive_batchers[primitive] = of_children
    for program, platform in ((library[i], None), (programs[i], "cpu")):
      # Jitted: equal convolutions are traced and lowered once, not once each.
      lowered = mlir.lower_fun(
        jax.jit(program, static_argnames="window"), multiple_results=False
      )
      mlir.register_lowering(primitive, lowered, platform=platform)
  return primitives


def _along_channels(primitive, program, window, operands, axes):
  """A vmapped depthwise form: the channels of all children, one beside another.

  Left to XLA it would be a grouped convolution with an axis more, which no backend
  runs well.
  """
  del program
  size = next(x.shape[a] for x, a in zip(operands, axes) if a is not None)
  operands = [
    jnp.broadcast_to(x, (size, *x.shape)) if a is None else jnp.moveaxis(x, a, 0)
    for x, a in zip(operands, axes)
  ]
  merged = (x.reshape(-1, *x.shape[2:]) for x in operands)
  out = primitive.bind(*merged, window=window)
  return out.reshape(size, -1, *out.shape[1:])


def _batch_of_products(primitive, program, window, operands, axes):
  """A vmapped pointwise form: matrix products, batched where both operands are."""
  del primitive
  return jax.vmap(functools.partial(program, window=window), axes)(*operands)


def _shifted_sum(x_CHWN, kernel_CKK, offsets, output, stride):
  """Sum over taps of kernel[tap] times the input from that offset, zeros around it.

  Args:
    offsets: `[(i, j, h, w)]` a tap and where in the input its first value is.
  """
  if not offsets:
    return jnp.zeros((x_CHWN.shape[0], *output, x_CHWN.shape[3]), x_CHWN.dtype)
  reach = [stride * (size - 1) + 1 for size in output]
  low = [max(0, -min(o[axis] for o in offsets)) for axis in (2, 3)]
  high = [
    max(0, max(o[axis + 2] for o in offsets) + reach[axis] - x_CHWN.shape[axis + 1])
    for axis in (0, 1)
  ]
  padded = jnp.pad(x_CHWN, ((0, 0), (low[0], high[0]), (low[1], high[1]), (0, 0)))
  total = None
  for i, j, h, w in offsets:
    h, w = h + low[0], w + low[1]
    shifted = padded[:, h : h + reach[0] : stride, w : w + reach[1] : stride]
    term = kernel_CKK[:, i, j, None, None, None] * shifted
    total = term if total is None else total + term
  return total


def _depthwise_output(x_CHWN, kernel_CKK, *, window: Window):
  starts = [i * window.dilation - window.padding for i in range(window.size)]
  offsets = [(i, j, h, w) for i, h in enumerate(starts) for j, w in enumerate(starts)]
  return _shifted_sum(x_CHWN, kernel_CKK, offsets, window.output, window.stride)


def _depthwise_input(kernel_CKK, gradient_CHWN, *, window: Window):
  # x[s q + a] meets tap i at the output q + (a + padding - i dilation) / s, where that
  # is whole: the positions of one remainder a are a shifted sum of their own.
  stride = window.stride

  def taps(remainder):
    reached = (
      (i, remainder + window.padding - i * window.dilation) for i in range(window.size)
    )
    return [(i, place // stride) for i, place in reached if place % stride == 0]

  parts = [
    _shifted_sum(
      gradient_CHWN,
      kernel_CKK,
      [(i, j, h, w) for i, h in taps(a) for j, w in taps(b)],
      window.output,
      1,
    )
    for a in range(stride)
    for b in range(stride)
  ]
  if stride == 1:
    return held(parts[0])
  channels, height, width, examples = parts[0].shape
  together = jnp.stack(parts).reshape(stride, stride, *parts[0].shape)
  together = together.transpose(2, 3, 0, 4, 1, 5)
  whole = together.reshape(channels, height * stride, width * stride, examples)
  return whole[:, : window.image[0], : window.image[1]]


def _every(x_CHWN, first: int, step: int, count: int):
  """So many columns of an image, a step apart."""
  return x_CHWN[:, :, first : first + step * (count - 1) + 1 : step]


def _depthwise_kernel(gradient_CHWN, x_CHWN, *, window: Window):
  # A sum over all positions for each tap, in two steps: some columns that are apart as
  # a sum written out, which is vectorised over the examples (XLA's reduction of middle
  # axes is not), and what is left as a product with ones. The taps of one row at a
  # time: as a loop they are compiled once.
  (height, width), size, stride = window.output, window.size, window.stride
  pieces = -(-width // _COLUMNS)
  columns = -(-width // pieces)
  more = pieces * columns - width
  gradient = jnp.pad(gradient_CHWN, ((0, 0), (0, 0), (0, more), (0, 0)))
  around = window.padding
  padded = jnp.pad(
    x_CHWN, ((0, 0), (around, around), (around, around + stride * more), (0, 0))
  )

  def taps_of_row(start):
    rows = jax.lax.dynamic_slice_in_dim(padded, start, stride * (height - 1) + 1, 1)
    rows = rows[:, ::stride]

    def tap(first):
      """`[C, H, pieces, N]`: the sum of so many columns."""
      products = (
        gradient[:, :, i::columns]
        * _every(rows, first + stride * i, stride * columns, pieces)
        for i in range(columns)
      )
      return functools.reduce(jnp.add, products)

    sums = jnp.stack([tap(j * window.dilation) for j in range(size)])
    sums = sums.reshape(size * sums.shape[1], -1)
    return (sums @ jnp.ones(sums.shape[1], sums.dtype)).reshape(size, -1)

  starts = window.dilation * jnp.arange(size)
  return jax.lax.map(taps_of_row, starts).transpose(2, 0, 1)


def _taps(window: Window) -> np.ndarray:
  """`[Ho, H, Wo, W, K, K]`: whether that output sees that input through that tap."""
  along = []
  for inputs, outputs in zip(window.image, window.output):
    start = window.stride * np.arange(outputs)[:, None, None] - window.padding
    seen = start + window.dilation * np.arange(window.size)
    along.append(np.arange(inputs)[:, None] == seen)
  return along[0][:, :, None, None, :, None] & along[1][None, None, :, :, None, :]


def _matrices(kernel_CKK, window: Window):
  """`[C, Ho, Wo, H, W]`: the convolution of each channel as a matrix."""
  taps = _taps(window).astype(kernel_CKK.dtype)
  return jnp.einsum("cij,phqwij->cpqhw", kernel_CKK, taps)


def _matrix_output(x_CHWN, kernel_CKK, *, window: Window):
  return jnp.einsum("cpqhw,chwn->cpqn", _matrices(kernel_CKK, window), x_CHWN)


def _matrix_input(kernel_CKK, gradient_CHWN, *, window: Window):
  return jnp.einsum("cpqhw,cpqn->chwn", _matrices(kernel_CKK, window), gradient_CHWN)


def _matrix_kernel(gradient_CHWN, x_CHWN, *, window: Window):
  matrices = jnp.einsum("cpqn,chwn->cpqhw", gradient_CHWN, x_CHWN)
  taps = _taps(window).astype(matrices.dtype)
  return jnp.einsum("cpqhw,phqwij->cij", matrices, taps)


def _by_size(matrix: Callable, shifted: Callable) -> Callable:
  """The CPU's program: matrices where images are so small that they are cheap."""

  def program(left, right, *, window: Window):
    small = math.prod(window.image) <= _MATRIX_PIXELS
    return (matrix if small else shifted)(left, right, window=window)

  return program


def _library_output(x_CHWN, kernel_CKK, *, window: Window):
  return jax.lax.conv_general_dilated(
    x_CHWN,
    kernel_CKK[:, None],
    (window.stride, window.stride),
    [(window.padding, window.padding)] * 2,
    rhs_dilation=(window.dilation, window.dilation),
    dimension_numbers=_DIMENSIONS,
    feature_group_count=x_CHWN.shape[0],
  )


def _library_input(kernel_CKK, gradient_CHWN, *, window: Window):
  channels, _, _, examples = gradient_CHWN.shape
  x = jax.ShapeDtypeStruct((channels, *window.image, examples), gradient_CHWN.dtype)
  return jax.linear_transpose(
    lambda x: _library_output(x, kernel_CKK, window=window), x
  )(gradient_CHWN)[0]


def _library_kernel(gradient_CHWN, x_CHWN, *, window: Window):
  kernel = jax.ShapeDtypeStruct(
    (x_CHWN.shape[0], window.size, window.size), x_CHWN.dtype
  )
  return jax.linear_transpose(
    lambda kernel: _library_output(x_CHWN, kernel, window=window), kernel
  )(gradient_CHWN)[0]


_DEPTHWISE = _trilinear(
  "depthwise",
  (
    _by_size(_matrix_input, _depthwise_input),
    _by_size(_matrix_kernel, _depthwise_kernel),
    _by_size(_matrix_output, _depthwise_output),
  ),
  (_library_input, _library_kernel, _library_output),
  _along_channels,
)


def _flat(x_CHWN):
  return x_CHWN.reshape(x_CHWN.shape[0], -1)


def _pointwise_output(x_CHWN, kernel_OI, *, window):
  del window
  return (kernel_OI @ _flat(x_CHWN)).reshape(-1, *x_CHWN.shape[1:])


def _pointwise_input(kernel_OI, gradient_CHWN, *, window):
  return _pointwise_output(gradient_CHWN, kernel_OI.T, window=window)


def _pointwise_kernel(gradient_CHWN, x_CHWN, *, window):
  del window
  return jnp.einsum("oe,ie->oi", _flat(gradient_CHWN), _flat(x_CHWN))


_POINTWISE_PROGRAMS = (_pointwise_input, _pointwise_kernel, _pointwise_output)


def _of_held(program: Callable) -> Callable:
  def run(left, right, *, window):
    return _behind_a_branch(
      lambda left, right: program(left, right, window=window),
      lambda left, right: -program(left, -right, window=window),
      left,
      right,
    )

  return run


_POINTWISE = _trilinear(
  "pointwise",
  tuple(map(_of_held, _POINTWISE_PROGRAMS)),
  _POINTWISE_PROGRAMS,
  _batch_of_products,
)


PRIMITIVES = frozenset((*_DEPTHWISE, *_POINTWISE))


def num_products(shapes: Sequence[tuple[int, ...]], window: Window | None) -> int:
  """Products of a value and a weight in one of `PRIMITIVES`, borders included.

  Args:
    shapes: of its operands and its result, in any order.
    window: its parameter.
  """
  kernel = next(shape for shape in shapes if len(shape) < 4)
  image = next(shape for shape in shapes if len(shape) == 4)
  places = image[1:] if window is None else (*window.output, image[-1])
  return math.prod(kernel) * math.prod(places)


def depthwise(
  x: jax.Array, kernel: jax.Array, stride: int = 1, dilation: int = 1
) -> jax.Array:
  """Each channel with its own kernel, computed in the type of `x`.

  Args:
    x: `[C, H, W, N]`.
    kernel: `[C, K, K]`, K odd.
    stride: of the output.
    dilation: distance of the kernel's points.

  Returns:
    `[C, ceil(H / stride), ceil(W / stride), N]`.
  """
  window = Window(kernel.shape[-1], stride, dilation, (x.shape[1], x.shape[2]))
  return _DEPTHWISE[2].bind(x, kernel.astype(x.dtype), window=window)


def pointwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """A convolution with a 1 x 1 window: `x [I, H, W, N]`, `kernel [O, I]`.

  It is computed in the type of `x`.
  """
  return _POINTWISE[2].bind(x, kernel.astype(x.dtype), window=None)


def dense(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
  """A whole convolution: `x [I, H, W, N]`, `kernel [O, I, K, K]`, K odd.

  As a pointwise one over the K * K shifted images.
  """
  size = kernel.shape[-1]
  window = Window(size, stride, 1, (x.shape[1], x.shape[2]))
  around = (window.padding, window.padding)
  padded = jnp.pad(x, ((0, 0), around, around, (0, 0)))
  reach = [stride * (length - 1) + 1 for length in window.output]
  shifted = [
    padded[:, i : i + reach[0] : stride, j : j + reach[1] : stride]
    for i in range(size)
    for j in range(size)
  ]
  taps = kernel.transpose(0, 2, 3, 1).reshape(kernel.shape[0], -1)
  return pointwise(jnp.concatenate(shifted), taps)
