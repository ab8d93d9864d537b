"""Children of the round that is under way, on disk as soon as they are done.

A checkpoint is made after a round. What is lost when a job is killed is the round that
was on, which may be an hour of many machines' work; so every process keeps, in a folder
of its own, the children that it has trained itself, and a job that goes on trains those
that are not there. A child's result is that of its genotype and its key, whoever trains
it and when, so the records are those of a job that was not killed.
"""

import contextlib
import hashlib
import io
import pathlib
import shutil
import zipfile
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from nasjax.networks import mlp
from nasjax.results.records import write_bytes
from nasjax.spaces.mlp_chain import Layer
from nasjax.training.children import Child, Paused
from nasjax.training.step import Hyper, TrainState

_ROUNDS = 2  # on disk: the checkpoint of the last may still be on its way


class KeptChildren:
  """The folder, and what this process puts there.

  Args:
    folder: of all processes of a job, if they see the same disk; else of this one.
    number: of this process.
    identity: of the job; children of another are not found.
    least_seconds: that a child's training took, to be kept: others are trained again
      as quickly.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    number: int = 0,
    identity: str = "",
    least_seconds: float = 0.0,
  ):
    self._folder, self._mine = folder, folder / str(number)
    self._identity, self._least_seconds = identity, least_seconds

  def shelf(
    self,
    key: jax.Array,
    genotypes: np.ndarray,
    layers: Sequence[tuple[Layer, ...]],
    hyper: Hyper,
    done: int,
  ) -> "Shelf":
    """The place of the children of one call of a trainer; older rounds' are removed.

    Args:
      key: of the round.
      genotypes: `[P, D]`.
      layers: `[P]`, theirs.
      hyper: of the call.
      done: epochs that they were trained before it.
    """
    name = _digest(np.asarray(jax.random.key_data(key)))
    ours = self._mine / name
    places: list[pathlib.Path] = []
    try:
      ours.mkdir(parents=True, exist_ok=True)
      ours.touch()
      by_age = sorted(self._mine.iterdir(), key=lambda path: path.stat().st_mtime_ns)
      for old in [path for path in by_age if path != ours][: -(_ROUNDS - 1)]:
        shutil.rmtree(old, ignore_errors=True)
      places = [path / name for path in self._folder.iterdir() if path.is_dir()]
    except OSError:
      pass  # nothing is found or kept; the next checkpoint says what the disk has
    call = np.asarray([*hyper, done], np.float64)
    names = [
      _digest(self._identity, call, np.asarray(genotype, np.int32)) + ".npz"
      for genotype in genotypes
    ]
    return Shelf(ours, places, names, list(layers), self._least_seconds)

  def clear(self) -> None:
    """Removes the folder: the job is done."""
    shutil.rmtree(self._folder, ignore_errors=True)


class Shelf:
  """Where the children of one call are. Made by `KeptChildren.shelf`."""

  def __init__(
    self,
    ours: pathlib.Path,
    places: Sequence[pathlib.Path],
    names: Sequence[str],
    layers: Sequence[tuple[Layer, ...]],
    least_seconds: float,
  ):
    self._ours, self._names, self._layers = ours, names, layers
    self._least_seconds = least_seconds
    self._there: dict[int, pathlib.Path] = {}
    for i, name in enumerate(names):
      for place in places:
        if (place / name).is_file():
          self._there[i] = place / name

  def __contains__(self, i: int) -> bool:
    """Whether child i was there when the call began."""
    return i in self._there

  def get(self, members: Sequence[int]) -> list[tuple[int, Child]] | None:
    """Those children, if all are there and whole; None if any is to be trained."""
    if not all(i in self for i in members):
      return None
    found = []
    for i in members:
      try:
        child = _read(self._there[i].read_bytes(), self._layers[i])
      except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None  # torn, or gone: it is trained as if it had not been
      found.append((i, child))
    return found

  def put(self, i: int, child: Child) -> None:
    """Keeps a child that was trained to its end. If the disk is full it is not kept."""
    if child.failure is None and child.seconds >= self._least_seconds:
      with contextlib.suppress(OSError):
        write_bytes(self._ours / self._names[i], _written(child))


def _digest(*parts: Any) -> str:
  found = hashlib.sha256()
  for part in parts:
    found.update(part.encode() if isinstance(part, str) else part.tobytes())
    found.update(b"/")
  return found.hexdigest()[:24]


_FIELDS = "curve", "valid_loss", "epochs_run", "best_epoch", "seconds", "stopped"


def _written(child: Child) -> bytes:
  arrays: dict[str, Any] = {name: getattr(child, name) for name in _FIELDS}
  trees = {"weights": child.weights or []}
  if child.paused is not None:
    arrays["best_value"] = child.paused.best_value
    trees |= {f"paused_{name}": v for name, v in child.paused.state._asdict().items()}
  for tree, network in trees.items():
    for number, layer in enumerate(network):
      arrays |= {f"{tree}.{number}.{name}": value for name, value in layer.items()}
  file = io.BytesIO()
  np.savez(file, allow_pickle=False, **arrays)
  return file.getvalue()


def _read(data: bytes, layers: tuple[Layer, ...]) -> Child:
  with np.load(io.BytesIO(data), allow_pickle=False) as file:
    arrays = dict(file)
  depth = len(mlp.dense_widths(layers)) + 1

  def network(tree: str) -> mlp.Weights:
    return [
      {name: arrays[f"{tree}.{number}.{name}"] for name in ("kernel", "bias")}
      for number in range(depth)
    ]

  paused = None
  if "best_value" in arrays:
    state = TrainState(*(network(f"paused_{name}") for name in TrainState._fields))
    paused = Paused(state, arrays["best_value"])
  return Child(
    layers=layers,
    weights=network("weights") if "weights.0.kernel" in arrays else None,
    curve=arrays["curve"],
    valid_loss=arrays["valid_loss"],
    epochs_run=int(arrays["epochs_run"]),
    best_epoch=int(arrays["best_epoch"]),
    seconds=float(arrays["seconds"]),
    failure=None,
    stopped=bool(arrays["stopped"]),
    paused=paused,
  )
