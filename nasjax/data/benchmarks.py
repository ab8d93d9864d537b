"""Tabular benchmarks: what every architecture of a space scored, as arrays.

A table is one npz file (no pickle). Anyone can bring one, for any space whose genotypes
can be numbered (`spaces.base.Enumerable`). N rows, in any order, each genotype once:

  key                     shape   what
  space                   ()      JSON text of the space; without it, NAS-Bench-201's
  genotypes, or ops       [N, D]  integers: the decisions of each row
  op_names                [K]     what each value of a decision is called (checked)
  epochs                  ()      epochs of the full fidelity (without it, 200)
  <data>_valid            [N]     validation accuracy at the full fidelity, percent
  <data>_test             [N]     test accuracy of the same, percent
  ep<k>_<data>_valid      [N]     validation accuracy after k epochs, any number of k
  <data>_train_seconds    [N]     what the full fidelity costs
  ep<k>_<data>_train_seconds [N]  what k epochs cost; without it, the share k / epochs
  <data>_valid_per_seed   [N, S]  validation accuracy by training seed; NaN where none
  rows<n>_<data>_valid    [N]     the same from n training rows; NaN where none
  <data>_params_m, <data>_flops_m, latency_ms_<device>  [N]  other figures

Accuracies are percent in the file and fractions of one in memory. NaN is an error
where it is not said to be allowed.
"""

import dataclasses
import io
import json
import os
import pathlib
import re
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from nasjax.core.types import InputError

_FULL_EPOCHS = 200
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
  table = _Table(path.name, _arrays(path))
  space = _space(table)
  genotypes = table.genotypes()
  _refuse_repeats(path.name, genotypes)
  return Benchmark(
    name=path.name,
    space=space,
    op_names=tuple(map(str, table.arrays.get("op_names", np.array([])).ravel())),
    genotypes=genotypes,
    measured={name: table.measured(name) for name in table.datasets()},
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
    InputError: as `read`; nothing is written then.
  """
  path = pathlib.Path(path)
  buffer = io.BytesIO()
  columns: dict[str, Any] = {key: np.asarray(value) for key, value in arrays.items()}
  np.savez_compressed(buffer, **columns)
  partial = path.with_name(f".{path.name}.partial.npz")
  try:
    partial.write_bytes(buffer.getvalue())
    read(partial)
    os.replace(partial, path)
  finally:
    partial.unlink(missing_ok=True)


def _arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
  try:
    with np.load(path, allow_pickle=False) as file:
      return {key: file[key] for key in file.files}
  except FileNotFoundError:
    raise InputError(f"no table at {path}") from None
  except (OSError, ValueError, AttributeError, zipfile.BadZipFile) as error:
    reason = str(error).split("\n")[0]
    raise InputError(f"{path} is not an npz file of arrays: {reason}") from None


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
    if not len(values):
      raise InputError(f"{self.name} has no rows")
    return values.astype(np.int32)

  def datasets(self) -> list[str]:
    """Data sets: what has a validation column and a test column of its own."""
    names = [
      key.removesuffix("_valid")
      for key in self.arrays
      if key.endswith("_valid") and not re.match(r"(ep|rows)\d+_", key)
    ]
    names = [name for name in names if not name.startswith("nb201v11_")]
    if not names:
      raise InputError(f"{self.name} has no column <data>_valid")
    return names

  def column(self, key: str, *, may_miss: bool = False, percent: bool = False):
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
    self.check(key, values, may_miss, percent)
    values = values.astype(np.float32)
    return values / np.float32(100) if percent else values

  def check(self, key: str, values: np.ndarray, may_miss: bool, percent: bool) -> None:
    """Refuses what is not a number, and what is no percentage."""
    values = values.reshape(len(values), -1).astype(float)
    bad = np.isinf(values) if may_miss else ~np.isfinite(values)
    if percent:
      bad |= (values < 0) | (values > 100)
    if bad.any():
      row = int(np.argmax(bad.any(-1)))
      value = values[row][bad[row]][0]
      what = "a percentage" if percent else "a number"
      raise InputError(f"{self.name}: {key}, row {row}: {value:g} is not {what}")

  def measured(self, name: str) -> Measured:
    """One data set."""
    full = int(self.arrays.get("epochs", np.int64(_FULL_EPOCHS)))
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
        fewer[int(match[1])] = self.column(key, may_miss=True, percent=True)
      elif key in (f"{name}_params_m", f"{name}_flops_m"):
        figures[key.removeprefix(f"{name}_")] = self.column(key)
    epochs = sorted(fidelities)
    cost = self.column(f"{name}_train_seconds")
    seconds = [
      self.column(f"ep{k}_{name}_train_seconds")
      if f"ep{k}_{name}_train_seconds" in self.arrays
      else cost * np.float32(k / full)
      for k in epochs
    ]
    return Measured(
      epochs=np.array(epochs),
      valid=np.stack([self.column(fidelities[k], percent=True) for k in epochs]),
      test=self.column(f"{name}_test", percent=True),
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
    self.check(key, values, may_miss=True, percent=True)
    return values.astype(np.float32) / np.float32(100)


def _space(table: _Table) -> dict[str, Any]:
  """The description of the table's space."""
  if "space" in table.arrays:
    try:
      space = json.loads(str(table.arrays["space"]))
    except ValueError:
      space = None
    if not isinstance(space, dict) or "kind" not in space:
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
