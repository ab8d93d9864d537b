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
import time
import zipfile
from collections.abc import Mapping, Sequence
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

  Attributes:
    seconds: that what was found in this process had taken, from the beginning of each
      call until the last of its children was kept.

  Args:
    folder: of all processes of a job, if they see the same disk; else of this one.
    number: of this process.
    identity: of the job; children of another are not found.
    least_seconds: that the training of the children of a program took, to be kept:
      others are trained again as quickly.
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
    self.seconds = 0.0

  def shelf(
    self,
    key: jax.Array,
    genotypes: np.ndarray,
    layers: Sequence[tuple[Layer, ...]],
    programs: Mapping[int, str],
    hyper: Hyper,
    done: int,
  ) -> "Shelf":
    """The place of the children of one call of a trainer; older rounds' are removed.

    Args:
      key: of the round.
      genotypes: `[P, D]`.
      layers: `[P]`, theirs.
      programs: what each child that may be trained here is to run in: in another
        program its last bits may differ.
      hyper: of the call.
      done: epochs that they were trained before it.
    """
    name = _digest(np.asarray(jax.random.key_data(key)))
    ours = self._mine / name
    call = np.asarray([*hyper, done], np.float64)
    names = {
      i: _digest(self._identity, call, np.asarray(genotypes[i], np.int32), program)
      for i, program in programs.items()
    }
    there: dict[int, pathlib.Path] = {}
    with contextlib.suppress(OSError):  # then nothing is found
      for place in [path / name for path in self._folder.iterdir()]:
        files = {file.name: file for file in place.glob("*.npz")}
        there |= {
          i: files[f"{short}.npz"]
          for i, short in names.items()
          if f"{short}.npz" in files
        }
    with contextlib.suppress(OSError):
      others = [path for path in self._mine.iterdir() if path != ours]
      others.sort(key=lambda path: path.stat().st_mtime_ns)
      for old in others[: 1 - _ROUNDS]:
        shutil.rmtree(old, ignore_errors=True)
    files_of = {i: ours / f"{short}.npz" for i, short in names.items()}
    shelf = Shelf(files_of, there, list(layers), self._least_seconds)
    self.seconds += shelf.seconds
    return shelf

  def forget(self) -> None:
    """Removes what this process has kept: the job is another."""
    shutil.rmtree(self._mine, ignore_errors=True)

  def clear(self) -> None:
    """Removes the folder: the job is done."""
    shutil.rmtree(self._folder, ignore_errors=True)


class Shelf:
  """Where the children of one call are. Made by `KeptChildren.shelf`.

  Attributes:
    seconds: that the call had taken when the last of those that are there was kept.
  """

  def __init__(
    self,
    files: Mapping[int, pathlib.Path],
    there: Mapping[int, pathlib.Path],
    layers: Sequence[tuple[Layer, ...]],
    least_seconds: float,
  ):
    self._files, self._there, self._layers = files, there, layers
    self._least_seconds, self._begin = least_seconds, time.monotonic()
    self.seconds = 0.0
    for file in there.values():
      with contextlib.suppress(*_BROKEN), np.load(file, allow_pickle=False) as arrays:
        self.seconds = max(self.seconds, float(arrays["after_seconds"]))

  def has(self, members: Sequence[int]) -> bool:
    """Whether all these children were there when the call began."""
    return all(i in self._there for i in members)

  def get(self, members: Sequence[int]) -> list[tuple[int, Child]] | None:
    """Those children, if all are there and whole; None if any is to be trained."""
    if not self.has(members):
      return None
    try:
      return [(i, _read(self._there[i], self._layers[i])) for i in members]
    except _BROKEN:
      return None  # torn, or gone: they are trained as if they had not been

  def put(self, children: Sequence[tuple[int, Child]]) -> None:
    """Keeps the children of one program, trained to their ends. If the disk is full
    they are not kept."""
    if sum(child.seconds for _, child in children) < self._least_seconds:
      return
    after = self.seconds + time.monotonic() - self._begin
    with contextlib.suppress(OSError):
      for i, child in children:
        self._files[i].parent.mkdir(parents=True, exist_ok=True)
        write_bytes(self._files[i], _written(child, after))


# What reading a file that is not whole, or not there any more, may raise.
_BROKEN = (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile)


def _digest(*parts: Any) -> str:
  found = hashlib.sha256()
  for part in parts:
    found.update(part.encode() if isinstance(part, str) else part.tobytes())
    found.update(b"/")
  return found.hexdigest()[:24]


_FIELDS = "curve", "valid_loss", "epochs_run", "best_epoch", "seconds", "stopped"


def _written(child: Child, after_seconds: float) -> bytes:
  arrays: dict[str, Any] = {name: getattr(child, name) for name in _FIELDS}
  arrays |= {"after_seconds": after_seconds, "failure": child.failure or ""}
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


def _read(path: pathlib.Path, layers: tuple[Layer, ...]) -> Child:
  with np.load(path, allow_pickle=False) as file:
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
    failure=str(arrays["failure"]) or None,
    stopped=bool(arrays["stopped"]),
    paused=paused,
  )
