"""The user's own file: CSV, Parquet or npz, with a column to predict."""

import csv
import difflib
import gzip
import os
import pathlib
import zipfile
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from nasjax.core.types import InputError
from nasjax.data import base
from nasjax.data.column_checks import column_warnings
from nasjax.data.preprocessing import KINDS

_CSV = (".csv", ".tsv", ".txt", ".csv.gz")
_SUFFIXES = (*_CSV, ".parquet", ".npz")
_NULLS = ["", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "?"]
_MIN_ROWS = 10
_MAX_LISTED = 20
# A text column with more distinct values than this and than half its rows is free text.
_MAX_TEXT_VALUES = 64
UNNAMED = "(unnamed)"


def load(
  path: str | os.PathLike | None,
  target: str | None,
  *,
  task: str | None = None,
  drop: Sequence[str] = (),
  seed: int = 0,
  valid_fraction: float = 0.2,
  test_fraction: float = 0.2,
) -> base.Dataset:
  """A data set from a file.

  Args:
    path: `.csv` (also `.tsv`, `.txt`, `.csv.gz`; comma, semicolon, tab or bar),
      `.parquet`, or `.npz` with arrays `x` and `y` (and `x_test`, `y_test`).
    target: the column to predict; for npz the name of the array, `y` by default.
    task: None infers it from the target.
    drop: columns to leave out; the unnamed one is `(unnamed)`.
    seed: draws the splits.
    valid_fraction: of the rows that are not test.
    test_fraction: of all rows.

  Raises:
    InputError: what cannot be learned from, in one line.
  """
  file = check_path(path)
  if file.name.endswith(".npz"):
    return _load_npz(
      file, target or "y", task, seed, valid_fraction, test_fraction
    )
  table = read_table(file)
  names = table.column_names
  if target is None:
    raise InputError(
      f"which column of {file} is to be predicted? --config.data.target=NAME; "
      f"it has {_listed(names)}"
    )
  for name in (target, *drop):
    if name not in names:
      near = difflib.get_close_matches(name, names, 1)
      hint = f" Did you mean {near[0]!r}?" if near else ""
      raise InputError(
        f"{file} has no column {name!r}.{hint} It has {_listed(names)}"
      )
  if table.num_rows < _MIN_ROWS:
    raise InputError(
      f"{file} has {table.num_rows} rows of data; at least {_MIN_ROWS} are needed"
    )
  labels = _target_values(table[target])
  encoded = base.encode_target(labels, task)
  columns, kinds, warnings = read_columns(table, (target, *drop))
  if not columns:
    raise InputError(f"{file} has no column to learn from besides {target!r}")
  warnings += column_warnings(columns, kinds, encoded)
  indices = base.split_indices(
    encoded, seed=seed, valid_fraction=valid_fraction, test_fraction=test_fraction
  )
  return base.build(
    file.name, columns, kinds, encoded, indices, warnings=tuple(warnings)
  )


def check_path(path: str | os.PathLike | None) -> pathlib.Path:
  """The path of a readable, non-empty file of a known kind.

  Raises:
    InputError: saying what is wrong with it.
  """
  if not path:
    raise InputError("which file? --config.data.path=my.csv")
  file = pathlib.Path(path)
  if not file.exists():
    raise InputError(f"there is no file {file}")
  if file.is_dir():
    raise InputError(f"{file} is a folder, not a file")
  if not file.name.endswith(_SUFFIXES):
    raise InputError(f"{file} is not one of {', '.join(_SUFFIXES)}")
  if file.stat().st_size == 0:
    raise InputError(f"{file} is empty")
  return file


def _listed(names: Sequence[str]) -> str:
  shown = ", ".join(names[:_MAX_LISTED])
  more = len(names) - _MAX_LISTED
  return shown + (f" and {more} more" if more > 0 else "")


def read_table(file: pathlib.Path) -> pa.Table:
  """The file's table with types inferred; an unnamed column is `(unnamed)`.

  Raises:
    InputError: when it cannot be read.
  """
  try:
    if file.name.endswith(".parquet"):
      table = pa.parquet.read_table(file)
    else:
      table = pa.csv.read_csv(
        file,
        parse_options=pa.csv.ParseOptions(delimiter=_delimiter(file)),
        convert_options=pa.csv.ConvertOptions(
          null_values=_NULLS, strings_can_be_null=True
        ),
      )
  except (pa.ArrowException, OSError, UnicodeDecodeError, EOFError, csv.Error) as error:
    raise InputError(f"{file} cannot be read: {' '.join(str(error).split())}") from None
  names = [name.strip() or UNNAMED for name in table.column_names]
  twice = sorted({name for name in names if names.count(name) > 1})
  if twice:
    raise InputError(f"{file} has more than one column {twice[0]!r}")
  return table.rename_columns(names)


def _delimiter(file: pathlib.Path) -> str:
  opener = gzip.open if file.name.endswith(".gz") else open
  with opener(file, "rt", encoding="utf-8", errors="strict") as handle:
    header = handle.readline()
  if not header.strip():
    raise InputError(f"{file} has no header line")
  return max(",;\t|", key=header.count)


def _target_values(column: pa.ChunkedArray) -> np.ndarray:
  kind = column.type
  if pa.types.is_dictionary(kind):
    column, kind = column.cast(kind.value_type), kind.value_type
  if pa.types.is_integer(kind) and not column.null_count:
    return column.to_numpy()
  if pa.types.is_floating(kind) or pa.types.is_integer(kind):
    return column.cast(pa.float64()).to_numpy()
  if pa.types.is_decimal(kind):
    return column.cast(pa.float64()).to_numpy()
  values = [None if v is None else str(v) for v in column.to_pylist()]
  return np.array(values, object)


def read_columns(
  table: pa.Table, leave_out: Sequence[str]
) -> tuple[dict[str, np.ndarray], dict[str, str], list[str]]:
  """Columns as arrays with their kinds, and what was left out and why.

  Args:
    table: from `read_table`.
    leave_out: names of columns that are not features.

  Returns:
    Arrays `[N]` by name, kinds by name (see `preprocessing`), warnings.
  """
  columns: dict[str, np.ndarray] = {}
  kinds: dict[str, str] = {}
  warnings: list[str] = []
  for name in table.column_names:
    if name in leave_out:
      continue
    values, kind = _column(table[name])
    distinct = table[name].drop_null().unique()
    if not len(distinct):
      warnings.append(f"column {name!r} is empty; left out")
    elif len(distinct) == 1 and not table[name].null_count:
      warnings.append(f"column {name!r} is {distinct[0]} in every row; left out")
    elif kind not in KINDS:
      warnings.append(f"column {name!r} holds {kind} values; left out")
    elif kind == "category" and len(distinct) > max(
      _MAX_TEXT_VALUES, table.num_rows // 2
    ):
      warnings.append(
        f"column {name!r} is text with {len(distinct)} different values, an identifier "
        "or free text; left out"
      )
    else:
      columns[name], kinds[name] = values, kind
  return columns, kinds, warnings


def _column(column: pa.ChunkedArray) -> tuple[np.ndarray, str]:
  kind = column.type
  if pa.types.is_dictionary(kind):
    column, kind = column.cast(kind.value_type), kind.value_type
  if pa.types.is_boolean(kind):
    return column.cast(pa.float32()).to_numpy(), "boolean"
  if pa.types.is_integer(kind) or pa.types.is_floating(kind):
    # inf stands for no measured value; the imputer fills it.
    values = column.cast(pa.float64()).to_numpy()
    return np.where(np.isfinite(values), values, np.nan), "numeric"
  if pa.types.is_decimal(kind):
    return column.cast(pa.float64()).to_numpy(), "numeric"
  if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
    return column.cast(pa.timestamp("s"), safe=False).to_numpy(), "date"
  if pa.types.is_string(kind) or pa.types.is_large_string(kind):
    return np.array(column.to_pylist(), object), "category"
  return np.array([]), str(kind)


def read_npz(file: pathlib.Path) -> dict[str, np.ndarray]:
  """The arrays of an npz, pickles refused.

  Raises:
    InputError: not an npz, or one that holds pickled objects.
  """
  try:
    with np.load(file, allow_pickle=False) as archive:
      return {name: archive[name] for name in archive.files}
  except (ValueError, OSError, zipfile.BadZipFile, EOFError) as error:
    why = "it holds pickled objects" if "pickle" in str(error) else str(error)
    raise InputError(f"{file} cannot be read: {' '.join(why.split())}") from None


def _load_npz(file, target, task, seed, valid_fraction, test_fraction) -> base.Dataset:
  arrays = read_npz(file)
  for name in ("x", target):
    if name not in arrays:
      raise InputError(
        f"{file} has no array {name!r}; it has {_listed(sorted(arrays))}"
      )
  x = arrays["x"]
  return base.from_arrays(
    x,
    arrays[target],
    name=file.name,
    task=task,
    seed=seed,
    valid_fraction=valid_fraction,
    test_fraction=test_fraction,
    x_test=arrays.get("x_test"),
    y_test=arrays.get(f"{target}_test"),
    scaling="pixels" if x.dtype == np.uint8 else "standard",
  )
