"""An ONNX graph as it is written, by onnx's own helpers."""

import importlib.util
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_OPSET, _IR_VERSION = 17, 8  # what onnxruntime has read since 2022
LEFT_OUT = 'model.onnx is left out: pip install -e ".[onnx]" brings what writes it'


def available() -> bool:
  """Whether onnx is installed, which nasjax does not need for anything else."""
  return importlib.util.find_spec("onnx") is not None


class Graph:
  """Nodes and constants; a value is the name of what makes it."""

  def __init__(self, prefix: str = "") -> None:
    """Args:
    prefix: of all names: those of a graph inside of another differ from its own.
    """
    self._prefix = prefix
    self._nodes: list[Any] = []
    self._values: dict[str, np.ndarray] = {}

  def add(self, operator: str, *inputs: str, name: str = "", **attributes: Any) -> str:
    """A node of one output, called `name`; without it by operator and number."""
    return self.add_several(operator, *inputs, names=[name], **attributes)[0]

  def add_several(
    self, operator: str, *inputs: str, names: Sequence[str], **attributes: Any
  ) -> list[str]:
    """A node of several outputs."""
    import onnx

    number = len(self._nodes)
    outputs = [
      name or f"{self._prefix}{operator}_{number}" + f"_{i}" * (len(names) > 1)
      for i, name in enumerate(names)
    ]
    node = onnx.helper.make_node(operator, inputs, outputs, outputs[0], **attributes)
    self._nodes.append(node)
    return outputs

  def constant(self, value: Any, name: str = "") -> str:
    """A value that is part of the model; float64 and JAX's arrays become float32."""
    value = np.asarray(value)
    value = value.astype(np.float32) if value.dtype == np.float64 else value
    name = name or f"{self._prefix}constant_{len(self._values)}"
    self._values[name] = value
    return name

  def to_graph(
    self,
    inputs: Mapping[str, tuple[Any, Sequence[str | int]]],
    outputs: Mapping[str, tuple[Any, Sequence[str | int]]],
  ) -> Any:
    """The graph as onnx has it, for a model or a node of another; see `to_bytes`."""
    import onnx
    from onnx import helper

    def infos(values):
      return [
        helper.make_tensor_value_info(
          name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), list(shape)
        )
        for name, (dtype, shape) in values.items()
      ]

    return helper.make_graph(
      self._nodes,
      f"{self._prefix}nasjax",
      infos(inputs),
      infos(outputs),
      [onnx.numpy_helper.from_array(v, name) for name, v in self._values.items()],
    )

  def to_bytes(
    self,
    inputs: Mapping[str, tuple[Any, Sequence[str | int]]],
    outputs: Mapping[str, tuple[Any, Sequence[str | int]]],
    metadata: Mapping[str, Any],
  ) -> bytes:
    """The model, checked.

    Args:
      inputs: NumPy's type and the shape of each by name; a text in a shape is any size.
      outputs: likewise.
      metadata: values by name, which it holds as JSON.
    """
    import onnx
    from onnx import helper

    model = helper.make_model(
      self.to_graph(inputs, outputs),
      opset_imports=[helper.make_opsetid("", _OPSET)],
      ir_version=_IR_VERSION,
      producer_name="nasjax",
    )
    helper.set_model_props(model, {k: json.dumps(v) for k, v in metadata.items()})
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()
