"""Predictions of an image classifier that nasjax found, for new images.

  python predict.py IMAGES.npz [PREDICTIONS.csv] [--overwrite]

It stands beside `genotype.json`, `weights.npz` and `preprocessing.json`, reads them and
the images, and needs Python 3.11 and NumPy alone. IMAGES.npz holds one array, or one
called x: images `[N, H, W, C]` (`[N, H, W]` where C is 1) of pixels as the model was
trained on. Without PREDICTIONS.csv it prints. As a module: `load`, `read`, `predict`;
model.onnx and model.jaxexport take what `read` gives, and answer as `predict` does.

In nasjax this file is `nasjax/data/standalone_images.py`; the nodes of model.onnx are
made by the same `Network`. `load` is also in `nasjax/data/standalone.py`: each of the
two leaves alone.
"""

import argparse
import csv
import functools
import io
import json
import os
import pathlib
import re
import sys
import zipfile
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

_BLOCK_IMAGES = 256  # at a time: activations are many times as large as images
_CELLS = ("normal", "reduce")


class Model(NamedTuple):
  """What the three files hold.

  Attributes:
    cells: for each of `normal` and `reduce` its edges, two a node: (operation, the
      state that it reads).
    places: the cells of the network in order, dicts with `reduction` and
      `after_reduction`.
    image: (H, W, C).
    classes: their names.
    mean: `[C]`, taken off pixels.
    std: `[C]`, that they are divided by.
    arrays: weights and running statistics by name.
  """

  cells: dict[str, list[tuple[str, int]]]
  places: list[dict[str, Any]]
  image: tuple[int, ...]
  classes: list[str]
  mean: np.ndarray
  std: np.ndarray
  arrays: dict[str, np.ndarray]


def model_of(
  description: dict[str, Any], arrays: dict[str, np.ndarray], fitted: dict[str, Any]
) -> Model:
  """The model that the contents of the three files describe.

  Raises:
    ValueError: they are of no network of convolutional cells.
  """
  space = description.get("space", {})
  if space.get("kind") != "conv_cell":
    raise ValueError("the model is no network of convolutional cells")
  found = dict(re.findall(r"(normal|reduce)=\[(.*?)\]", description["arch"]))
  cells = {
    name: [(op, int(source)) for op, source in re.findall(r"'(\w+)', (\d+)", text)]
    for name, text in found.items()
  }
  network = space["network"]
  image, places, nodes = (network[name] for name in ("image", "cells", "nodes"))
  if any(len(cells.get(name, ())) != 2 * nodes for name in _CELLS):
    raise ValueError(f"the cells of genotype.json have other than {nodes} nodes")
  names = ("channels", "reduction", "after_reduction", "inputs")
  return Model(
    cells,
    [dict(zip(names, place)) for place in places],
    tuple(image),
    fitted["classes"],
    np.array(fitted["mean"], np.float32),
    np.array(fitted["std"], np.float32),
    arrays,
  )


def load(folder: str | os.PathLike) -> Model:
  """Reads the three files.

  Raises:
    ValueError: one is missing or is not what it should be.
  """
  source = pathlib.Path(folder)
  try:
    with np.load(source / "weights.npz", allow_pickle=False) as archive:
      arrays = {name: archive[name] for name in archive.files}
    description, fitted = (
      json.loads((source / f"{name}.json").read_text(encoding="utf-8"))
      for name in ("genotype", "preprocessing")
    )
  except FileNotFoundError as error:
    raise ValueError(f"no model in {source}: {error.filename} is missing") from None
  except (OSError, EOFError, zipfile.BadZipFile) as error:
    raise ValueError(f"the model in {source} cannot be read: {error}") from None
  return model_of(description, arrays, fitted)


class Network:
  """The network of a genotype as a series of operations; `Network(model, ops)(x)`.

  Liu, Simonyan and Yang, "DARTS: differentiable architecture search", ICLR 2019. What
  images are, and how an operation is carried out, is up to `ops`: `NumPy` is here.
  """

  def __init__(self, model: Model, ops: Any):
    """Args:
    model: what to run.
    ops: with the methods of `NumPy`.
    """
    self._model, self._ops = model, ops
    self._block = self._norms = 0  # whose normalisation is next, and which of them

  def __call__(self, x: Any) -> Any:
    """Logits of standardised images."""
    ops = self._ops
    self._begin(0)
    x = ops.dense(x, self._weight("stem/kernel"))
    before = last = self._norm(x, "stem")
    for number in range(len(self._model.places)):
      before, last = last, self._cell(number, before, last)
    kernel, bias = (self._weight(f"classifier/{part}") for part in ("kernel", "bias"))
    return ops.linear(ops.mean(last), kernel, bias)

  def _weight(self, name: str) -> np.ndarray:
    return self._model.arrays[f"weights/network/{name}"]

  def _begin(self, block: int) -> None:
    self._block, self._norms = block, 0

  def _norm(self, x: Any, name: str) -> Any:
    """The next normalisation, by its running mean and variance."""
    place = f"statistics/{self._block}/{self._norms}"
    self._norms += 1
    mean, variance = (self._model.arrays[f"{place}/{part}"] for part in (0, 1))
    scale, shift = (self._weight(f"{name}/norm/{part}") for part in ("scale", "shift"))
    return self._ops.norm(x, scale, shift, mean, variance)

  def _cell(self, number: int, before: Any, last: Any) -> Any:
    place, name = self._model.places[number], f"cells/{number}"
    self._begin(number + 1)
    first = self._halved if place["after_reduction"] else self._pointwise
    states = [first(before, f"{name}/first"), self._pointwise(last, f"{name}/second")]
    edges = self._model.cells["reduce" if place["reduction"] else "normal"]
    for node in range(len(edges) // 2):
      made = []
      for edge, (op, source) in enumerate(edges[2 * node : 2 * node + 2]):
        stride = 2 if place["reduction"] and source < 2 else 1
        made.append(
          self._edge(op, states[source], f"{name}/edges/{node}/{edge}", stride)
        )
      states.append(self._ops.add(*made))
    return self._ops.concatenate(states[2:])

  def _edge(self, op: str, x: Any, name: str, stride: int) -> Any:
    """An operation of a cell: `max_pool_3x3`, `sep_conv_5x5` and so on."""
    if op == "skip_connect":
      return x if stride == 1 else self._halved(x, name)
    if op.endswith("pool_3x3"):
      pool = self._ops.max_pool if op.startswith("max") else self._ops.average_pool
      return pool(x, stride)
    if op.startswith("dil_conv"):
      return self._depthwise(x, name, stride, 2)
    if not op.startswith("sep_conv"):
      raise ValueError(f"genotype.json has an operation {op}, which is not known here")
    x = self._depthwise(x, f"{name}/first", stride, 1)
    return self._depthwise(x, f"{name}/second", 1, 1)

  def _pointwise(self, x: Any, name: str) -> Any:
    """ReLU, 1 x 1 convolution, normalisation."""
    x = self._ops.pointwise(self._ops.relu(x), self._weight(f"{name}/pointwise"))
    return self._norm(x, name)

  def _depthwise(self, x: Any, name: str, stride: int, dilation: int) -> Any:
    """ReLU, depthwise and 1 x 1 convolution, normalisation."""
    kernel = self._weight(f"{name}/depthwise")
    x = self._ops.depthwise(self._ops.relu(x), kernel, stride, dilation)
    return self._norm(self._ops.pointwise(x, self._weight(f"{name}/pointwise")), name)

  def _halved(self, x: Any, name: str) -> Any:
    """ReLU; half of the channels from even pixels, half from odd ones; normalisation.

    Where a side is odd, the pixels after its last are zeros.
    """
    x = self._ops.relu(x)
    halves = [
      self._ops.pointwise(self._ops.every_second(x, first), self._weight(part))
      for first, part in enumerate((f"{name}/even", f"{name}/odd"))
    ]
    return self._norm(self._ops.concatenate(halves), name)


class NumPy:
  """The operations on images `[N, H, W, C]`; kernels are as in `weights.npz`.

  Windows are centred, with as much padding as keeps the size at stride 1.
  """

  epsilon = 1e-5  # of normalisations

  def relu(self, x: np.ndarray) -> np.ndarray:
    """The larger of x and 0."""
    return np.maximum(x, 0.0)

  def dense(self, x: np.ndarray, kernel_OIKK: np.ndarray) -> np.ndarray:
    """A whole convolution."""
    size = kernel_OIKK.shape[-1]
    return _sum(part @ kernel_OIKK[:, :, i, j].T for i, j, part in _shifted(x, size))

  def depthwise(
    self, x: np.ndarray, kernel_CKK: np.ndarray, stride: int, dilation: int
  ) -> np.ndarray:
    """Each channel with its own kernel."""
    shifted = _shifted(x, kernel_CKK.shape[-1], stride, dilation)
    return _sum(part * kernel_CKK[:, i, j] for i, j, part in shifted)

  def pointwise(self, x: np.ndarray, kernel_OI: np.ndarray) -> np.ndarray:
    """A convolution with a window of one pixel."""
    return x @ kernel_OI.T

  def norm(self, x: np.ndarray, scale, shift, mean, variance) -> np.ndarray:
    """A batch normalisation by given moments, all `[C]`."""
    return (x - mean) / np.sqrt(variance + self.epsilon) * scale + shift

  def max_pool(self, x: np.ndarray, stride: int) -> np.ndarray:
    """The largest value of windows of 3 x 3."""
    shifted = _shifted(x, 3, stride, outside=-np.inf)
    return functools.reduce(np.maximum, (part for *_, part in shifted))

  def average_pool(self, x: np.ndarray, stride: int) -> np.ndarray:
    """The mean of windows of 3 x 3; what is outside the image does not count."""
    total, count = (
      _sum(part for *_, part in _shifted(each, 3, stride))
      for each in (x, np.ones((1, *x.shape[1:3], 1)))
    )
    return total / count

  def every_second(self, x: np.ndarray, first: int) -> np.ndarray:
    """Every second pixel each way, from the first or the second; zeros follow x."""
    padded = np.pad(x, ((0, 0), (0, first), (0, first), (0, 0)))
    return padded[:, first::2, first::2]

  def add(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The sum."""
    return left + right

  def concatenate(self, parts: list[np.ndarray]) -> np.ndarray:
    """Channels beside each other."""
    return np.concatenate(parts, axis=-1)

  def mean(self, x: np.ndarray) -> np.ndarray:
    """`[N, C]` means over the image."""
    return x.mean((1, 2))

  def linear(self, x: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """x `[N, I]` times kernel `[I, O]` plus bias."""
    return x @ kernel + bias


def _sum(parts: Iterable[np.ndarray]) -> np.ndarray:
  return functools.reduce(np.add, parts)


def _shifted(
  x: np.ndarray, size: int, stride: int = 1, dilation: int = 1, outside: float = 0.0
) -> Iterator[tuple[int, int, np.ndarray]]:
  """For each point (i, j) of a window what it sees of x, `[N, H, W, C]`."""
  around, (height, width) = dilation * (size - 1) // 2, x.shape[1:3]
  edges = ((0, 0), (around, around), (around, around), (0, 0))
  padded = np.pad(x, edges, constant_values=outside)
  for i in range(size):
    for j in range(size):
      down, right = dilation * i, dilation * j
      yield (
        i,
        j,
        padded[:, down : down + height : stride, right : right + width : stride],
      )


def predict(model: Model, images: np.ndarray) -> np.ndarray:
  """Probabilities `[N, K]` of images `[N, H, W, C]`, in float64."""
  found = [np.zeros((0, len(model.classes)))]
  for start in range(0, len(images), _BLOCK_IMAGES):
    block = images[start : start + _BLOCK_IMAGES].astype(np.float64)
    logits = Network(model, NumPy())((block - model.mean) / model.std)
    powers = np.exp(logits - logits.max(1, keepdims=True))
    found.append(powers / powers.sum(1, keepdims=True))
  return np.concatenate(found)


def read(path: str | os.PathLike, model: Model) -> np.ndarray:
  """Images `[N, H, W, C]` float32 of an npz file, as they are there.

  Raises:
    ValueError: no such file, or it holds no images of the model's kind.
  """
  try:
    with np.load(path, allow_pickle=False) as archive:
      names = archive.files
      if "x" not in names and len(names) != 1:
        raise ValueError(f"{path} has no array x; it has {', '.join(names)}")
      images = archive["x" if "x" in names else names[0]]
  except FileNotFoundError:
    raise ValueError(f"there is no file {path}") from None
  except (OSError, EOFError, AttributeError, zipfile.BadZipFile) as error:
    raise ValueError(f"{path} is no npz file: {error}") from None
  if images.dtype.kind not in "buif":
    raise ValueError(f"{path} holds {images.dtype}, not pixels")
  wanted = " x ".join(map(str, model.image))
  if images.ndim == 3 and model.image[2] == 1:
    images = images[..., None]
  if images.shape[1:] != model.image:
    raise ValueError(f"{path} holds an array {images.shape}, not images of {wanted}")
  wrong = np.flatnonzero(~np.isfinite(images).all((1, 2, 3)))
  if len(wrong):
    raise ValueError(f"{path}: image {wrong[0] + 1} has a pixel that is not finite")
  return images.astype(np.float32)


def table(model: Model, probabilities: np.ndarray) -> str:
  """CSV: the prediction for each image, and the probability of each class."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow(["prediction", *(f"probability_{name}" for name in model.classes)])
  for row in probabilities:
    writer.writerow([model.classes[row.argmax()], *(f"{value:.9g}" for value in row)])
  return text.getvalue()


def write(output: str | os.PathLike, text: str, overwrite: bool) -> None:
  """Writes the whole file or nothing.

  Raises:
    ValueError: it is there already, unless `overwrite`.
  """
  path = pathlib.Path(output)
  if path.exists() and not overwrite:
    raise ValueError(f"{path} is there already; --overwrite replaces it")
  part = path.with_name(f".{path.name}.{os.getpid()}")
  try:
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
  finally:
    part.unlink(missing_ok=True)


def main() -> None:
  """The command line; exits with status 2 and one line for the user's mistake."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
  parser.add_argument("images", help="an npz file")
  parser.add_argument("output", nargs="?", help="a CSV file; printed without it")
  parser.add_argument("--overwrite", action="store_true", help="replace the output")
  given = parser.parse_args()
  try:
    model = load(pathlib.Path(__file__).resolve().parent)
    text = table(model, predict(model, read(given.images, model)))
    write(given.output, text, given.overwrite) if given.output else print(text, end="")
  except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
  main()
