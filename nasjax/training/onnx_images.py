"""The operations of a network of convolutional cells as nodes of an ONNX graph."""

from typing import Any

import numpy as np

from nasjax.data import standalone_images
from nasjax.data.standalone_images import Model
from nasjax.training.onnx_graph import Graph

_TO_THE_END = np.iinfo(np.int64).max


class Nodes:
  """The methods of `standalone_images.NumPy`, on images `[N, C, H, W]` of a graph."""

  def __init__(self, graph: Graph):
    self._graph = graph

  def _conv(self, x: str, kernel_OIKK: Any, stride=1, dilation=1, group=1) -> str:
    around = dilation * (kernel_OIKK.shape[-1] - 1) // 2
    return self._graph.add(
      "Conv",
      x,
      self._graph.constant(kernel_OIKK),
      strides=[stride] * 2,
      dilations=[dilation] * 2,
      pads=[around] * 4,
      group=group,
    )

  def relu(self, x: str) -> str:
    """Relu."""
    return self._graph.add("Relu", x)

  def dense(self, x: str, kernel_OIKK: Any) -> str:
    """Conv."""
    return self._conv(x, kernel_OIKK)

  def depthwise(self, x: str, kernel_CKK: Any, stride: int, dilation: int) -> str:
    """Conv with a group for each channel."""
    return self._conv(x, kernel_CKK[:, None], stride, dilation, len(kernel_CKK))

  def pointwise(self, x: str, kernel_OI: Any) -> str:
    """Conv of one pixel."""
    return self._conv(x, kernel_OI[..., None, None])

  def norm(self, x: str, scale: Any, shift: Any, mean: Any, variance: Any) -> str:
    """BatchNormalization."""
    values = map(self._graph.constant, (scale, shift, mean, variance))
    epsilon = standalone_images.NumPy.epsilon
    return self._graph.add("BatchNormalization", x, *values, epsilon=epsilon)

  def max_pool(self, x: str, stride: int) -> str:
    """MaxPool."""
    return self._pool("MaxPool", x, stride)

  def average_pool(self, x: str, stride: int) -> str:
    """AveragePool, without what is outside the image."""
    return self._pool("AveragePool", x, stride, count_include_pad=0)

  def _pool(self, operator: str, x: str, stride: int, **attributes: Any) -> str:
    return self._graph.add(
      operator, x, kernel_shape=[3, 3], strides=[stride] * 2, pads=[1] * 4, **attributes
    )

  def every_second(self, x: str, first: int) -> str:
    """Pad and Slice."""
    graph = self._graph
    if first:
      x = graph.add("Pad", x, graph.constant(np.array([0, 0, 0, 0, 0, 0, 1, 1])))
    ends = [[first] * 2, [_TO_THE_END] * 2, [2, 3], [2, 2]]  # from, to, axes, steps
    return graph.add("Slice", x, *(graph.constant(np.array(end)) for end in ends))

  def add(self, left: str, right: str) -> str:
    """Add."""
    return self._graph.add("Add", left, right)

  def concatenate(self, parts: list[str]) -> str:
    """Concat."""
    return self._graph.add("Concat", *parts, axis=1)

  def mean(self, x: str) -> str:
    """GlobalAveragePool and Flatten."""
    return self._graph.add("Flatten", self._graph.add("GlobalAveragePool", x))

  def linear(self, x: str, kernel: Any, bias: Any) -> str:
    """Gemm."""
    return self._graph.add("Gemm", x, *map(self._graph.constant, (kernel, bias)))


def to_onnx(model: Model) -> bytes:
  """Pixels `images [N, H, W, C]` to `probabilities [N, K]`, for any N.

  Names of the classes are in its metadata, as JSON.
  """
  graph = Graph()
  mean, std = map(graph.constant, (model.mean, model.std))
  x = graph.add("Div", graph.add("Sub", "images", mean), std)
  x = graph.add("Transpose", x, perm=[0, 3, 1, 2])
  logits = standalone_images.Network(model, Nodes(graph))(x)
  graph.add("Softmax", logits, name="probabilities", axis=1)
  return graph.to_bytes(
    {"images": (np.float32, ["images", *model.image])},
    {"probabilities": (np.float32, ["images", len(model.classes)])},
    {"classes": model.classes},
  )
