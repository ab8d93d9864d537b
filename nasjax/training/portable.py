"""A trained chain in files that run without nasjax: `best/`.

`genotype.json`, `weights.npz` and `preprocessing.json` with `predict.py`, which reads
them with NumPy alone (`data.standalone`, the very functions that training prepared its
rows with), and the network as two programs: `model.jaxexport` (StableHLO by
`jax.export`, for cpu, cuda and tpu) and `model.onnx`. Both programs take the features
`[N, F]` float32 that `predict.features` makes of raw rows, for any N, and give the
probabilities `[N, K]`, of a binary task too, or for regression the values `[N]` in the
target's own unit. They hold no preprocessing: words and dates are no numbers, and it
has one definition. Nothing here is a pickle.
"""

import functools
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from nasjax.core.types import InputError
from nasjax.data import standalone
from nasjax.networks import mlp
from nasjax.results import export
from nasjax.spaces.mlp_chain import Dense, Layer, MLPChain
from nasjax.training import onnx_graph
from nasjax.training.onnx_graph import Graph
from nasjax.training.step import predict

PLATFORMS = ("cpu", "cuda", "tpu")
_OPERATORS = {"sigmoid": "Sigmoid", "tanh": "Tanh", "relu": "Relu", "elu": "Elu"}


def save(
  folder: str | os.PathLike,
  *,
  space: MLPChain,
  genotype: np.ndarray,
  weights: mlp.Weights,
  task: str,
  preprocessing: dict[str, Any],
  metrics: dict[str, float],
  log: Callable[[str], None] = lambda message: None,
) -> None:
  """Writes all of it, `genotype.json` last.

  Args:
    folder: made when absent.
    space: of the genotype.
    genotype: `[D]`.
    weights: exact weights of the trained network.
    task: its name.
    preprocessing: of the data set, see `Dataset`.
    metrics: by name.
    log: called with a line when `model.onnx` is left out, for want of onnx.
  """
  layers, target = space.layers(genotype), preprocessing["target"]
  files = {
    "predict.py": pathlib.Path(standalone.__file__).read_bytes(),
    "model.jaxexport": to_jax_export(layers, weights, target),
  }
  if onnx_graph.available():
    files["model.onnx"] = to_onnx(layers, weights, preprocessing)
  else:
    log(onnx_graph.LEFT_OUT)
    (pathlib.Path(folder) / "model.onnx").unlink(missing_ok=True)
  export.save_best(
    folder,
    genotype=np.asarray(genotype).tolist(),
    arch=space.describe(genotype),
    space=space.to_dict(),
    task=task,
    weights={
      f"layer_{i}/{part}": np.asarray(value)
      for i, layer in enumerate(weights)
      for part, value in layer.items()
    },
    preprocessing=preprocessing,
    metrics=metrics,
    files=files,
  )


def load(folder: str | os.PathLike) -> tuple[standalone.Model, Callable[..., Any]]:
  """A saved model, and the network as a function of features on this device.

  Returns:
    The model, and `answers(x [N, F])`, compiled for each N; many rows go in pieces.

  Raises:
    InputError: a file is missing or is not what it should be, or the model is no chain
      of dense layers.
  """
  best = export.load_best(folder)
  try:
    model = standalone.model_of(best.description, best.weights, best.preprocessing)
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise InputError(f"the model in {folder} cannot be used: {error}") from None
  layers = tuple(
    Dense(best.weights[f"layer_{i}/bias"].size, activation)
    for i, activation in enumerate(model.activations)
  )
  weights = [
    {part: model.weights[f"layer_{i}/{part}"] for part in ("kernel", "bias")}
    for i in range(len(layers) + 1)
  ]
  program = _program(layers, weights, model.target)
  return model, jax.jit(functools.partial(predict, program))


def _program(
  layers: tuple[Layer, ...], weights: mlp.Weights, target: dict[str, Any]
) -> Callable[[jax.Array], jax.Array]:
  """Features `[N, F]` to answers, in full float32 on every platform."""

  def program(features: jax.Array) -> jax.Array:
    with jax.default_matmul_precision("highest"):  # else bfloat16 on a TPU
      outputs_NC = mlp.apply(weights, layers, features)
    return standalone.answers(target, outputs_NC, jnp)

  return program


def to_jax_export(
  layers: tuple[Layer, ...], weights: mlp.Weights, target: dict[str, Any]
) -> bytes:
  """The network for `PLATFORMS` and any number of rows.

  `jax.export.deserialize(bytearray(data)).call(x)` runs it; no class of ours is needed.
  """
  (rows,) = jax.export.symbolic_shape("rows")
  shape = jax.ShapeDtypeStruct((rows, weights[0]["kernel"].shape[0]), jnp.float32)
  program = jax.jit(_program(layers, weights, target))
  exported = jax.export.export(program, platforms=PLATFORMS)(shape)
  return bytes(exported.serialize())


def to_onnx(
  layers: tuple[Layer, ...], weights: mlp.Weights, preprocessing: dict[str, Any]
) -> bytes:
  """The network as an ONNX model of Gemm nodes and activations.

  Its input is `features`, its output `probabilities` or `prediction`; the names of
  features and classes are in its metadata, as JSON. Dropout is nothing here.
  """
  graph, target = Graph(), preprocessing["target"]
  activations = [
    _OPERATORS[dense.activation] for _, dense, _ in mlp.with_dropout(layers)
  ]
  h, out = "features", "probabilities"
  shape: list[str | int] = ["rows"]
  for i, layer in enumerate(weights):
    parts = (graph.constant(layer[p], f"layer_{i}/{p}") for p in ("kernel", "bias"))
    h = graph.add("Gemm", h, *parts, name=f"layer_{i}")
    if i < len(activations):
      h = graph.add(activations[i], h, name=f"layer_{i}/activation")
  if target["task"] == "regression":
    axis = graph.constant(np.array([1]), "axis")
    h = graph.add("Squeeze", h, axis, name="standardised")
    scale, mean = (graph.constant(np.float32(target[p]), p) for p in ("scale", "mean"))
    h = graph.add("Mul", h, scale, name="scaled")
    out = "prediction"
    graph.add("Add", h, mean, name=out)
  else:
    shape.append(len(target["classes"]))
    if target["task"] == "binary":
      less = graph.add("Sigmoid", graph.add("Neg", h, name="negative"), name="first")
      more = graph.add("Sigmoid", h, name="second")
      graph.add("Concat", less, more, name=out, axis=1)
    else:
      graph.add("Softmax", h, name=out, axis=1)
  return graph.to_bytes(
    {"features": (np.float32, ["rows", weights[0]["kernel"].shape[0]])},
    {out: (np.float32, shape)},
    {
      "features": standalone.feature_names(preprocessing["features"]),
      "classes": target["classes"],
    },
  )
