"""Tabular benchmarks: what every architecture of a space scored, as arrays.

A table is one npz file (no pickle). Anyone can bring one, for any space whose genotypes
can be numbered (`spaces.base.Enumerable`). N rows, in any order, each genotype once:

  key                     shape   what
  space                   ()      JSON text of the space; without it, NAS-Bench-201's
  genotypes, or ops       [N, D]  integers: the decisions of each row
  op_names                [K]     what each value of a decision is called (checked)
  edges                   [D, 2]  of cells: source and target of each decision (checked)
  epochs                  ()      epochs of the full fidelity (an integer; 200 without)
  one_training            ()      1 where the lower fidelities are epochs of the full
                                  training, 0 (or no key) where each is its own
  <data>_valid            [N]     validation accuracy at the full fidelity, percent
  <data>_test             [N]     test accuracy of the same, percent
  ep<k>_<data>_valid      [N]     validation accuracy after k epochs, any number of k
  <data>_train_seconds    [N]     what the full fidelity costs
  ep<k>_<data>_train_seconds [N]  what k epochs cost; without it, the share k / epochs
  <data>_valid_per_seed   [N, S]  validation accuracy by training seed; NaN where none
  rows<n>_<data>_valid    [N]     the same from n training rows; NaN where none
  <data>_params_m, <data>_flops_m, latency_ms_<device>  [N]  other figures

Accuracies are percent in the file and fractions of one in memory. NaN is an error
where it is not said to be allowed. Other keys are not read, nor is one that begins with
nb201v11_: figures of NAS-Bench-201's older release, which some tables have beside.
"""

import dataclasses
import io
import json
import os
import pathlib
import re
import zipfile
import zlib
from collections.abc import Mapping
from typing import IO, Any, NamedTuple

import numpy as np

from nasjax.core.types import InputError

_FULL_EPOCHS = 200
# What a column may hold, by what it is called in a message.
_LIMITS = {
  "a number": (-np.inf, np.inf),
  "a percentage": (0, 100),
  "a cost": (0, np.inf),
}
EMBEDDED = {"mlp_digits": "mlp_digits.npz"}


class Measured(NamedTuple):
  """What the architectures scored on one data set; R fidelities, ascending.

  Attributes:
    epochs: `[R]` int, the last is the full fidelity.
    valid: `[R, N]` validation accuracy, a fraction.
    test: `[N]` test accuracy at the full fidelity.
    seconds: `[R, N]` what each fidelity costs.
    per_seed: `[N, S]` validation accuracy at the full fidelity by training seed, NaN
      where a seed was not run; None when the file has none.
    fewer_rows: validation accuracy `[N]` by number of training rows, NaN likewise.
    figures: other values `[N]` by name, such as `params_m`.
  """

  epochs: np.ndarray
  valid: np.ndarray
  test: np.ndarray
  seconds: np.ndarray
  per_seed: np.ndarray | None
  fewer_rows: Mapping[int, np.ndarray]
  figures: Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Benchmark:
  """A table as read; `estimators.tabular` joins it with its space.

  Attributes:
    name: of the file, for messages.
    space: plain JSON values: `kind`, and the fields of the space.
    op_names: of the decisions' values, when the file names them.
    edges: (source, target) of each decision of a cell, when the file has them.
    genotypes: `[N, D]` int32, in the order of the file.
    measured: by data set.
    latency: milliseconds `[N]` by device, as the file has them (some of NAS-Bench-201's
      are faulty, see its own notes).
  """

  name: str
  space: dict[str, Any]
  op_names: tuple[str, ...]
  genotypes: np.ndarray
  measured: Mapping[str, Measured]
  latency: Mapping[str, np.ndarray]
  one_training: bool = False
  edges: tuple[tuple[int, int], ...] = ()

  def on(self, dataset: str) -> Measured:
    """The figures of one data set.

    Raises:
      InputError: there is no such data set, with those there are.
    """
    if dataset not in self.measured:
      raise InputError(
        f"{self.name} has no data set {dataset!r}; it has {', '.join(self.measured)}"
      )
    return self.measured[dataset]


def embedded(name: str) -> Benchmark:
  """A table that comes with the package.

  Raises:
    InputError: there is none of this name.
  """
  if name not in EMBEDDED:
    raise InputError(f"no embedded table {name!r}; there are {', '.join(EMBEDDED)}")
  return read(pathlib.Path(__file__).parent / EMBEDDED[name])


def read(path: str | os.PathLike) -> Benchmark:
  """Reads and checks a table.

  Args:
    path: the npz file.

  Raises:
    InputError: it is no such file, or one of its arrays is missing, of the wrong shape
      or holds what it must not: the line names file, column and row.
  """
  path = pathlib.Path(path)
  return _benchmark(path.name, _arrays(path, path))


def _benchmark(name: str, arrays: dict[str, np.ndarray]) -> Benchmark:
  table = _Table(name, arrays)
  space = _space(table)
  genotypes = table.genotypes()
  _refuse_repeats(name, genotypes)
  return Benchmark(
    name=name,
    space=space,
    op_names=tuple(map(str, table.arrays.get("op_names", np.array([])).ravel())),
    one_training=bool(table.arrays.get("one_training", np.array(False)).any()),
    edges=table.edges(),
    genotypes=genotypes,
    measured={dataset: table.measured(dataset) for dataset in table.datasets()},
    latency={
      key.removeprefix("latency_ms_"): table.column(key, may_miss=True)
      for key in table.arrays
      if key.startswith("latency_ms_")
    },
  )


def write(path: str | os.PathLike, arrays: Mapping[str, Any]) -> None:
  """Writes a table atomically, after checking that it can be read again.

  Args:
    path: the npz file.
    arrays: as the module says.

  Raises:
    InputError: as `read`, or there is no such folder; nothing is written then.
  """
  path = pathlib.Path(path)
  buffer = io.BytesIO()
  columns: dict[str, Any] = {key: np.asarray(value) for key, value in arrays.items()}
  np.savez_compressed(buffer, **columns)
  buffer.seek(0)
  _benchmark(path.name, _arrays(path, buffer))
  if not path.parent.is_dir():
    raise InputError(f"no folder {path.parent} to write {path.name} to")
  partial = path.with_name(f".{path.name}.partial")
  try:
    partial.write_bytes(buffer.getvalue())
    os.replace(partial, path)
  finally:
    partial.unlink(missing_ok=True)


def _arrays(path: pathlib.Path, file: pathlib.Path | IO[bytes]) -> dict[str, Any]:
  """The arrays of a file; `path` is what messages call it."""
  refusal = f"{path} is not an npz file of arrays"
  try:
    # `allow_pickle` stays off: a table of someone else's must not run anything.
    loaded = np.load(file, allow_pickle=False)
    if not isinstance(loaded, np.lib.npyio.NpzFile):
      raise InputError(f"{refusal}: it is one array")
    with loaded:
      arrays = {key: loaded[key] for key in loaded.files}
  except FileNotFoundError:
    raise InputError(f"no table at {path}") from None
  except InputError:
    raise
  except (
    OSError,
    ValueError,
    EOFError,
    RuntimeError,  # encrypted, or a compression that this Python has not
    zipfile.BadZipFile,
    zlib.error,
  ) as error:
    reason = str(error).split("\n")[0]
    if "pickle" in reason:  # NumPy would have it loaded all the same
      reason = "it is another kind of file, or holds Python objects"
    raise InputError(f"{refusal}: {reason}") from None
  for key, values in arrays.items():
    if not isinstance(values, np.ndarray):
      raise InputError(f"{refusal}: {key} is something else")
  return arrays


class _Table(NamedTuple):
  """The arrays of a file, with what they must be."""

  name: str
  arrays: dict[str, np.ndarray]

  def genotypes(self) -> np.ndarray:
    """`[N, D]` int32."""
    key = "genotypes" if "genotypes" in self.arrays else "ops"
    if key not in self.arrays:
      raise InputError(f"{self.name} has no column genotypes (or ops)")
    values = self.arrays[key]
    if values.ndim != 2 or not np.issubdtype(values.dtype, np.integer):
      raise InputError(
        f"{self.name}: {key} must be integers [rows, decisions], got {values.dtype} "
        f"{list(values.shape)}"
      )
    if not values.size:
      raise InputError(f"{self.name} has no rows")
    small = values.astype(np.int32)
    if (small != values).any():
      row = int(np.argmax((small != values).any(-1)))
      raise InputError(
        f"{self.name}: {key}, row {row}: {values[row].tolist()} is no genotype"
      )
    return small

  def edges(self) -> tuple[tuple[int, int], ...]:
    """(source, target) of each decision; none where the file has no edges."""
    if "edges" not in self.arrays:
      return ()
    values, length = self.arrays["edges"], self.genotypes().shape[1]
    if values.shape != (length, 2) or values.dtype.kind not in "iu":
      raise InputError(
        f"{self.name}: edges must be integers [{length}, 2], one pair a decision; got "
        f"{values.dtype} {list(values.shape)}"
      )
    return tuple((source, target) for source, target in values.tolist())

  def datasets(self) -> list[str]:
    """The names of what has a column `<data>_valid`, in the order of the file.

    Fidelities and fewer rows are no data sets of their own, nor is nb201v11_<data>.
    """
    names = [
      key.removesuffix("_valid")
      for key in self.arrays
      if key.endswith("_valid") and not re.match(r"(ep|rows)\d+_", key)
    ]
    names = [name for name in names if not name.startswith("nb201v11_")]
    if not names:
      raise InputError(f"{self.name} has no column <data>_valid")
    return names

  def column(
    self, key: str, *, may_miss: bool = False, what: str = "a number"
  ) -> np.ndarray:
    """`[N]` float32 of a key, checked.

    Raises:
      InputError: naming the column and the first row that is wrong.
    """
    if key not in self.arrays:
      raise InputError(f"{self.name} has no column {key}")
    values, rows = self.arrays[key], len(self.genotypes())
    if values.shape != (rows,) or values.dtype.kind not in "fiu":
      raise InputError(
        f"{self.name}: {key} must be {rows} numbers, one a row; got {values.dtype} "
        f"{list(values.shape)}"
      )
    return self.checked(key, values, may_miss, what)

  def checked(
    self, key: str, values: np.ndarray, may_miss: bool, what: str
  ) -> np.ndarray:
    """Float32 values `[N, ...]` of which each is `what`; percentages as fractions."""
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and bad
      values = values.astype(np.float32)
    low, high = _LIMITS[what]
    bad = np.isinf(values) | (values < low) | (values > high)
    if not may_miss:
      bad |= np.isnan(values)
    if bad.any():
      row = int(np.argwhere(bad)[0, 0])
      value = values[row][bad[row]].ravel()[0]
      raise InputError(f"{self.name}: {key}, row {row}: {value:g} is not {what}")
    return values / np.float32(100) if what == "a percentage" else values

  def full_epochs(self) -> int:
    """Epochs of the full fidelity."""
    value = self.arrays.get("epochs", np.array(_FULL_EPOCHS))
    if value.shape or value.dtype.kind not in "iu" or value < 1:
      raise InputError(
        f"{self.name}: epochs must be one positive integer, got {value.dtype} "
        f"{value.tolist()}"
      )
    return int(value)

  def measured(self, name: str) -> Measured:
    """One data set."""
    full = self.full_epochs()
    fidelities = {full: f"{name}_valid"}
    fewer: dict[int, np.ndarray] = {}
    figures = {}
    for key in self.arrays:
      if match := re.fullmatch(rf"ep(\d+)_{re.escape(name)}_valid", key):
        if not 0 < int(match[1]) < full:
          raise InputError(
            f"{self.name}: {key} is not a lower fidelity than {full} epochs"
          )
        fidelities[int(match[1])] = key
      elif match := re.fullmatch(rf"rows(\d+)_{re.escape(name)}_valid", key):
        fewer[int(match[1])] = self.column(key, may_miss=True, what="a percentage")
      elif key in (f"{name}_params_m", f"{name}_flops_m"):
        figures[key.removeprefix(f"{name}_")] = self.column(key)
    epochs = sorted(fidelities)
    cost = self.column(f"{name}_train_seconds", what="a cost")
    seconds = [
      self.column(f"ep{k}_{name}_train_seconds", what="a cost")
      if f"ep{k}_{name}_train_seconds" in self.arrays
      else cost * np.float32(k / full)
      for k in epochs
    ]
    return Measured(
      epochs=np.array(epochs),
      valid=np.stack([self.column(fidelities[k], what="a percentage") for k in epochs]),
      test=self.column(f"{name}_test", what="a percentage"),
      seconds=np.stack(seconds),
      per_seed=self._per_seed(f"{name}_valid_per_seed"),
      fewer_rows=dict(sorted(fewer.items())),
      figures=figures,
    )

  def _per_seed(self, key: str) -> np.ndarray | None:
    if key not in self.arrays:
      return None
    values, rows = self.arrays[key], len(self.genotypes())
    if values.ndim != 2 or len(values) != rows or values.dtype.kind not in "fiu":
      raise InputError(
        f"{self.name}: {key} must be numbers [{rows}, seeds]; got {values.dtype} "
        f"{list(values.shape)}"
      )
    return self.checked(key, values, may_miss=True, what="a percentage")


def _space(table: _Table) -> dict[str, Any]:
  """The description of the table's space."""
  if "space" in table.arrays:
    try:
      space = json.loads(str(table.arrays["space"]))
    except ValueError:
      space = None
    if not isinstance(space, dict) or not isinstance(space.get("kind"), str):
      raise InputError(f"{table.name}: space must be a JSON object with a kind")
  else:
    space = {"kind": "nasbench201"}
  return space


def _refuse_repeats(name: str, genotypes: np.ndarray) -> None:
  _, first, inverse = np.unique(
    genotypes, axis=0, return_index=True, return_inverse=True
  )
  repeated = first[inverse.ravel()] != np.arange(len(genotypes))
  if repeated.any():
    row = int(np.argmax(repeated))
    raise InputError(
      f"{name}: row {row} holds the genotype of row {first[inverse.ravel()[row]]} "
      f"again: {genotypes[row].tolist()}"
    )
