"""A language model of a derived cell in files that run without nasjax: `best/`.

As `training.portable` does it for chains: `predict.py` reads `genotype.json`,
`weights.npz` and `preprocessing.json` with NumPy alone (`data.standalone_text`),
`model.jaxexport` and `model.onnx` are the model as programs. Both take tokens `[T, B]`
int32 and a hidden state `[B, H]`, for any T and B, and give the probabilities
`[T, B, V]` of what follows each token and the hidden state after the last. Nothing here
is a pickle.
"""

import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from nasjax.data import standalone_text
from nasjax.data.text import Text
from nasjax.networks import cell_rnn
from nasjax.results import export
from nasjax.spaces.recurrent_cell import RecurrentCell
from nasjax.training import onnx_graph, onnx_text
from nasjax.training.portable import PLATFORMS


def save(
  folder: str | os.PathLike,
  *,
  space: RecurrentCell,
  genotype: np.ndarray,
  network: Mapping[str, Any],
  weights: Mapping[str, Any],
  text: Text,
  metrics: dict[str, float],
  log: Callable[[str], None] = lambda message: None,
) -> None:
  """Writes all of it, `genotype.json` last.

  Args:
    folder: made when absent.
    space: of the genotype.
    genotype: `[D]`.
    network: what rebuilds the model, beside its genotype; JSON values only.
    weights: of `networks.cell_rnn.init`.
    text: whose vocabulary the model has.
    metrics: by name.
    log: called with a line when `model.onnx` is left out, for want of onnx.
  """
  arrays = {name: np.asarray(value) for name, value in weights.items()}
  told: dict[str, Any] = {
    "genotype": np.asarray(genotype).tolist(),
    "arch": space.describe(genotype),
    "space": space.to_dict() | {"network": dict(network)},
  }
  fitted = {"unit": text.unit, "vocabulary": list(text.vocabulary)}
  model = standalone_text.model_of(told, arrays, fitted)
  files = {
    "predict.py": pathlib.Path(standalone_text.__file__).read_bytes(),
    "model.jaxexport": to_jax_export(space, genotype, arrays),
  }
  if onnx_graph.available():
    files["model.onnx"] = onnx_text.to_onnx(model)
  else:
    log(onnx_graph.LEFT_OUT)
    (pathlib.Path(folder) / "model.onnx").unlink(missing_ok=True)
  export.save_best(
    folder,
    **told,
    task="language_model",
    weights=arrays,
    preprocessing=fitted,
    metrics=metrics,
    files=files,
  )


def to_jax_export(
  space: RecurrentCell, genotype: np.ndarray, arrays: Mapping[str, np.ndarray]
) -> bytes:
  """The model for `PLATFORMS`, any number of steps and of texts side by side.

  `jax.export.deserialize(bytearray(data)).call(tokens, hidden)` runs it; no class of
  ours is needed.
  """
  cell = space.decode(genotype)

  def program(tokens: jax.Array, hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
    weights = {name: jnp.asarray(value) for name, value in arrays.items()}
    output = cell_rnn.derived(weights, cell, tokens, hidden)
    return jax.nn.softmax(output.logits), output.hidden

  steps, texts = jax.export.symbolic_shape("steps, texts")
  units = arrays["embedding"].shape[1]
  shapes = (
    jax.ShapeDtypeStruct((steps, texts), jnp.int32),
    jax.ShapeDtypeStruct((texts, units), jnp.float32),
  )
  with jax.default_matmul_precision("highest"):  # else bfloat16 on a TPU
    exported = jax.export.export(jax.jit(program), platforms=PLATFORMS)(*shapes)
  return bytes(exported.serialize())
