"""A recurrent cell as nodes of an ONNX graph, its steps as a Scan."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from nasjax.data import standalone_text
from nasjax.data.standalone_text import Model
from nasjax.training.onnx_graph import Graph


class Nodes:
  """The methods of `standalone_text.NumPy`, on values of a graph."""

  def __init__(self, graph: Graph):
    self._graph = graph

  def product(self, x: str, matrix: Any) -> str:
    """MatMul."""
    return self._graph.add("MatMul", x, self._graph.constant(matrix))

  def halves(self, x: str) -> list[str]:
    """Split."""
    return self._graph.add_several("Split", x, names=["", ""], axis=-1)

  def add(self, left: str, right: str) -> str:
    """Add."""
    return self._graph.add("Add", left, right)

  def gated(self, state: str, gate: str, made: str) -> str:
    """Sigmoid, Sub, Mul and Add."""
    graph = self._graph
    moved = graph.add("Mul", self.sigmoid(gate), graph.add("Sub", made, state))
    return self.add(state, moved)

  def mean(self, parts: Sequence[str]) -> str:
    """Mean."""
    return self._graph.add("Mean", *parts)

  def tanh(self, x: str) -> str:
    """Tanh."""
    return self._graph.add("Tanh", x)

  def sigmoid(self, x: str) -> str:
    """Sigmoid."""
    return self._graph.add("Sigmoid", x)

  def relu(self, x: str) -> str:
    """Relu."""
    return self._graph.add("Relu", x)

  def identity(self, x: str) -> str:
    """Nothing."""
    return x


def to_onnx(model: Model) -> bytes:
  """`tokens [T, B]` and `hidden [B, H]` to `probabilities [T, B, V]` of what follows
  each token and `last_hidden [B, H]`, for any T and B.

  Unit and vocabulary are in its metadata, as JSON.
  """
  units, width = standalone_text.hidden_units(model), len(model.vocabulary)
  graph, body = Graph(), Graph("cell_")
  state = standalone_text.step(model, Nodes(body), "cell_into", "cell_hidden")
  body.add("Identity", state, name="cell_next")
  body.add("Identity", state, name="cell_state")
  row: tuple[Any, list[str | int]] = (np.float32, ["texts", units])
  one_step = body.to_graph(
    {"cell_hidden": row, "cell_into": (np.float32, ["texts", 2 * units])},
    {"cell_next": row, "cell_state": row},
  )
  table = model.arrays["embedding"]
  embedded = graph.add("Gather", graph.constant(table), "tokens")
  first = graph.constant(model.arrays["input"][:units])
  into = graph.add("MatMul", embedded, first)
  _, states = graph.add_several(
    "Scan",
    "hidden",
    into,
    names=["last_hidden", "states"],
    body=one_step,
    num_scan_inputs=1,
  )
  scores = graph.add("MatMul", states, graph.constant(table.T))
  logits = graph.add("Add", scores, graph.constant(model.arrays["bias"]))
  graph.add("Softmax", logits, name="probabilities", axis=-1)
  return graph.to_bytes(
    {"tokens": (np.int32, ["steps", "texts"]), "hidden": row},
    {
      "probabilities": (np.float32, ["steps", "texts", width]),
      "last_hidden": row,
    },
    {"unit": model.unit, "vocabulary": model.vocabulary},
  )
