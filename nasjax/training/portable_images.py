"""A derived network of convolutional cells in files that run without nasjax: `best/`.

As `training.portable` does it for chains: `predict.py` reads `genotype.json`,
`weights.npz` and `preprocessing.json` with NumPy alone (`data.standalone_images`),
`model.jaxexport` and `model.onnx` are the network as programs. All three take pixels as
they were before they were standardised, `[N, H, W, C]` for any N, and give the
probabilities `[N, K]`; normalisations have their running statistics. Nothing here is a
pickle.
"""

import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from nasjax.data import standalone_images
from nasjax.data.images import Images
from nasjax.networks import cell_cnn
from nasjax.results import export
from nasjax.spaces.conv_cell import Cells, ConvCell
from nasjax.training import onnx_graph, onnx_images
from nasjax.training.portable import PLATFORMS


def description(space: ConvCell, plan: cell_cnn.Plan) -> dict[str, Any]:
  """What rebuilds a network, beside its genotype; JSON values only."""
  return space.to_dict() | {"network": plan._asdict()}


def preprocessing(images: Images) -> dict[str, Any]:
  """What was fitted on the training images; JSON values only."""
  return {
    "mean": images.mean.tolist(),
    "std": images.std.tolist(),
    "classes": list(images.class_names),
  }


def named(arrays: Any) -> dict[str, np.ndarray]:
  """The leaves of a pytree by flat name, `weights/network/stem/kernel` and so on."""
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(arrays)
  }


def save(
  folder: str | os.PathLike,
  *,
  space: ConvCell,
  genotype: np.ndarray,
  plan: cell_cnn.Plan,
  weights: dict[str, Any],
  statistics: Any,
  images: Images,
  metrics: dict[str, float],
  log: Callable[[str], None] = lambda message: None,
) -> None:
  """Writes all of it, `genotype.json` last.

  Args:
    folder: made when absent.
    space: of the genotype.
    genotype: `[D]`.
    plan: the network.
    weights: `{"network": ...}`; an auxiliary head is kept, and is in no program.
    statistics: running, of the normalisations.
    images: what they were learned from.
    metrics: by name.
    log: called with a line when `model.onnx` is left out, for want of onnx.
  """
  arrays = named({"weights": weights, "statistics": statistics})
  told: dict[str, Any] = {
    "genotype": np.asarray(genotype).tolist(),
    "arch": space.describe(genotype),
    "space": description(space, plan),
  }
  fitted = preprocessing(images)
  model = standalone_images.model_of(told, arrays, fitted)
  files = {
    "predict.py": pathlib.Path(standalone_images.__file__).read_bytes(),
    "model.jaxexport": to_jax_export(
      plan, space.decode(genotype), weights, statistics, images
    ),
  }
  if onnx_graph.available():
    files["model.onnx"] = onnx_images.to_onnx(model)
  else:
    log(onnx_graph.LEFT_OUT)
    (pathlib.Path(folder) / "model.onnx").unlink(missing_ok=True)
  export.save_best(
    folder,
    **told,
    task="multiclass",
    weights=arrays,
    preprocessing=fitted,
    metrics=metrics,
    files=files,
  )


def to_jax_export(
  plan: cell_cnn.Plan,
  cells: Cells,
  weights: dict[str, Any],
  statistics: Any,
  images: Images,
) -> bytes:
  """The network for `PLATFORMS` and any number of images.

  `jax.export.deserialize(bytearray(data)).call(x)` runs it; no class of ours is needed.
  """
  # On the host: constants of a program that is for any device.
  network, statistics = jax.device_get((weights["network"], statistics))

  def program(pixels: jax.Array) -> jax.Array:
    x = (pixels - images.mean[None, None, None]) / images.std[None, None, None]
    return jax.nn.softmax(cell_cnn.derived(network, plan, cells, x, statistics).logits)

  (rows,) = jax.export.symbolic_shape("images")
  shape = jax.ShapeDtypeStruct((rows, *plan.image), jnp.float32)
  # Else bfloat16 on a TPU; what convolutions are made of is chosen as it is exported.
  with jax.default_matmul_precision("highest"):
    exported = jax.export.export(jax.jit(program), platforms=PLATFORMS)(shape)
  return bytes(exported.serialize())
