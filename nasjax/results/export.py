"""The best child as files that anything can read: JSON and npz, no pickle."""

import io
import json
import os
import pathlib
import zipfile
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from nasjax.core.types import InputError
from nasjax.results import records

FILES = ("genotype.json", "weights.npz", "preprocessing.json")
PORTABLE_FILES = ("predict.py", "model.jaxexport", "model.onnx")
"""What stands beside them; see `training.portable` and `training.portable_images`."""
_NOTHING: Mapping[str, bytes] = MappingProxyType({})


class Exported(NamedTuple):
  """What `best/` holds.

  Attributes:
    description: `genotype.json`: genotype, arch, space, task, metrics.
    weights: arrays by name, `layer_0/kernel` and so on.
    preprocessing: see `data.preprocessing`.
  """

  description: dict[str, Any]
  weights: dict[str, np.ndarray]
  preprocessing: dict[str, Any]


def save_best(
  folder: str | os.PathLike,
  *,
  genotype: list[int],
  arch: str,
  space: dict[str, Any],
  task: str,
  weights: dict[str, np.ndarray],
  preprocessing: dict[str, Any],
  metrics: dict[str, float],
  files: Mapping[str, bytes] = _NOTHING,
) -> None:
  """Writes `genotype.json`, `weights.npz` and `preprocessing.json`, each atomically.

  `genotype.json` is written last, so that a folder that has it is whole.

  Args:
    folder: made when absent.
    genotype: `[D]` decisions.
    arch: the same in words.
    space: what rebuilds the search space.
    task: name of the task, such as "multiclass".
    weights: arrays by flat name, `layer_0/kernel` and so on.
    preprocessing: what was fitted on the training rows; JSON values only.
    metrics: by name.
    files: what stands beside them, by name.

  Raises:
    ValueError: a weight is an array of Python objects, which only pickle could hold.
  """
  for name, value in weights.items():
    if np.asarray(value).dtype.hasobject:
      raise ValueError(f"weights {name!r} hold Python objects, not numbers")
  target = pathlib.Path(folder)
  target.mkdir(parents=True, exist_ok=True)
  buffer = io.BytesIO()
  np.savez(buffer, **weights)  # type: ignore[arg-type]
  records.write_bytes(target / "weights.npz", buffer.getvalue())
  records.write_json(target / "preprocessing.json", preprocessing)
  for name, content in files.items():
    records.write_bytes(target / name, content)
  records.write_json(
    target / "genotype.json",
    {
      "genotype": genotype,
      "arch": arch,
      "space": space,
      "task": task,
      "metrics": metrics,
    },
  )


def load_best(folder: str | os.PathLike) -> Exported:
  """Reads what `save_best` wrote.

  Raises:
    InputError: a file is missing or is not what it should be.
  """
  source = pathlib.Path(folder)
  try:
    description = json.loads((source / "genotype.json").read_text(encoding="utf-8"))
    fitted = json.loads((source / "preprocessing.json").read_text(encoding="utf-8"))
    with np.load(source / "weights.npz", allow_pickle=False) as archive:
      weights = {name: archive[name] for name in archive.files}
  except FileNotFoundError as error:
    raise InputError(f"no model in {source}: {error.filename} is missing") from None
  except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
    reason = " ".join(str(error).split())
    raise InputError(f"the model in {source} cannot be read: {reason}") from None
  return Exported(description, weights, fitted)
