"""The user's own file: CSV, Parquet or npz, with a column to predict."""

import contextlib
import dataclasses
import difflib
import gzip
import itertools
import os
import pathlib
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from nasjax.core.types import InputError
from nasjax.data import base, dates, standalone
from nasjax.data.column_checks import column_warnings, matrix_warnings
from nasjax.data.preprocessing import KINDS
from nasjax.data.standalone import NULLS, UNNAMED, delimiter_of

_CSV = (".csv", ".tsv", ".txt", ".csv.gz")
_SUFFIXES = (*_CSV, ".parquet", ".npz")
_MIN_ROWS = 10
_MAX_LISTED = 20
# A text column with more distinct values than this and than half its rows is free text.
_MAX_TEXT_VALUES = 64


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

  A column of text is dates where all of it is in one order, see `dates`; the order is
  kept in the preprocessing, for `read_columns`.

  Args:
    path: `.csv` (also `.tsv`, `.txt`, `.csv.gz`; comma, semicolon, tab or bar),
      `.parquet`, or `.npz` with arrays `x` and `y` (and `x_test`, `y_test`, or a
      boolean `is_test [N]`).
    target: the column to predict; for npz the name of the array, `y` by default.
    task: None infers it from the target.
    drop: columns to leave out; the unnamed one is `unnamed`, or the empty name.
    seed: draws the splits.
    valid_fraction: of the rows that are not test.
    test_fraction: of all rows.

  Raises:
    InputError: what cannot be learned from, in one line.
  """
  file = check_path(path)
  base.check_options(task, valid_fraction, test_fraction)
  splits: dict[str, Any] = dict(
    seed=seed, valid_fraction=valid_fraction, test_fraction=test_fraction
  )
  if _is(file, ".npz"):
    with naming(file):
      return _load_npz(file, target or "y", task, drop, splits)
  table = read_table(file)
  names = table.column_names
  if target is None:
    raise InputError(
      f"which column of {file} is to be predicted? --config.data.target=NAME; "
      f"it has {_listed(names)}"
    )
  drop = [name or UNNAMED for name in drop]
  for name in (target, *drop):
    if name not in names:
      raise InputError(f"{file} has no column {name!r}{_nearest(name, names)}")
  if table.num_rows < _MIN_ROWS:
    raise InputError(
      f"{file} has {table.num_rows} rows of data; at least {_MIN_ROWS} are needed"
    )
  with naming(file):
    encoded = base.encode_target(target_values(table[target]), task)
    columns, kinds, date_orders, warnings = feature_columns(table, (target, *drop))
    if not columns:
      raise InputError(f"{file} has no column to learn from besides {target!r}")
    warnings += column_warnings(columns, kinds, encoded)
    dataset = base.build(
      file.name, columns, kinds, encoded, warnings=tuple(warnings), **splits
    )
  for spec in dataset.preprocessing["features"]:
    if spec["name"] in date_orders:
      spec["order"] = date_orders[spec["name"]]
  return dataset


@contextlib.contextmanager
def naming(file: pathlib.Path) -> Iterator[None]:
  """Puts the file before the message of an `InputError` that does not name it."""
  try:
    yield
  except InputError as error:
    if file.name in str(error):
      raise
    raise InputError(f"{file}: {error}") from None


def read_columns(
  path: str | os.PathLike | None, fitted: list[dict[str, Any]]
) -> dict[str, np.ndarray]:
  """The raw columns that a model knows, of a new file, for `preprocessing.apply`.

  Columns of text files are read by `standalone.read`, as what they were in training:
  inferred anew, digits alone would make numbers of a category, and 03/04/2024 alone
  could be another day than among the rows of training.

  Args:
    path: the file, of the kinds that `load` takes.
    fitted: what will be applied.

  Raises:
    InputError: naming the file, or the column and the row.
  """
  file = check_path(path)
  if not _is(file, ".parquet"):
    try:
      return standalone.read(file, fitted)
    except ValueError as error:
      raise InputError(str(error)) from None
  table = read_table(file)
  wanted = {spec["name"]: standalone.raw_names(spec) for spec in fitted}
  missing = [
    n for names in wanted.values() for n in names if n not in table.schema.names
  ]
  if missing:
    raise InputError(
      f"{file} has no column {missing[0]!r}{_nearest(missing[0], table.column_names)}"
    )
  columns = {}
  for spec in fitted:
    parts = [_as_trained(table[name], name, spec) for name in wanted[spec["name"]]]
    columns[spec["name"]] = parts[0] if len(parts) == 1 else np.stack(parts, axis=1)
  return columns


def _as_trained(column: pa.ChunkedArray, name: str, spec: dict[str, Any]) -> np.ndarray:
  """A typed column `[N]` as the kind that it was in training."""
  if column.null_count == len(column):
    return standalone.parse([""] * len(column), name, spec)
  try:
    values, kind = column_values(column, spec.get("order"))
  except ValueError as error:
    raise InputError(f"column {name!r}: {error}") from None
  if kind == "date" and spec["kind"] == "category":  # words that happen to be dates
    values, kind = np.array(column.to_pylist(), object), "category"
  if kind != spec["kind"] and {kind, spec["kind"]} != {"numeric", "boolean"}:
    raise InputError(
      f"column {name!r} holds {kind} values, the model knows {spec['kind']}"
    )
  return values


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
  if not _is(file, *_SUFFIXES):
    raise InputError(f"{file} is not one of {', '.join(_SUFFIXES)}")
  if file.stat().st_size == 0:
    raise InputError(f"{file} is empty")
  return file


def _is(file: pathlib.Path, *suffixes: str) -> bool:
  return file.name.lower().endswith(suffixes)


def _nearest(name: str, names: Sequence[str]) -> str:
  near = difflib.get_close_matches(name, names, 1)
  hint = f" (did you mean {near[0]!r}?)" if near else ""
  return f"{hint}; it has {_listed(names)}"


def _listed(names: Sequence[str]) -> str:
  shown = ", ".join(names[:_MAX_LISTED])
  more = len(names) - _MAX_LISTED
  return shown + (f" and {more} more" if more > 0 else "")


def read_table(file: pathlib.Path) -> pa.Table:
  """The file's table with types inferred; an unnamed column is `unnamed`.

  Raises:
    InputError: when it cannot be read.
  """
  try:
    if _is(file, ".parquet"):
      table = pa.parquet.read_table(file)
    else:
      table = pa.csv.read_csv(
        file,
        parse_options=pa.csv.ParseOptions(delimiter=_delimiter(file)),
        convert_options=pa.csv.ConvertOptions(
          null_values=NULLS, strings_can_be_null=True
        ),
      )
  except (pa.ArrowException, OSError, ValueError, EOFError, zlib.error) as error:
    why = " ".join(str(error).split()).rpartition(f"{file}': ")[2]  # named once
    raise InputError(f"{file} cannot be read: {why}") from None
  names = [name.strip() or UNNAMED for name in table.column_names]
  twice = sorted({name for name in names if names.count(name) > 1})
  if twice:
    raise InputError(f"{file} has more than one column {twice[0]!r}")
  table = table.rename_columns(names)
  for name in names:
    if pa.types.is_binary(table.schema.field(name).type) and not _is(file, ".parquet"):
      raise InputError(f"{file} cannot be read: column {name!r} is not UTF-8 text")
  return table


def _delimiter(file: pathlib.Path) -> str:
  opener = gzip.open if _is(file, ".gz") else open
  with opener(file, "rb") as handle:
    header = handle.readline().decode("utf-8")
  if not header.strip():
    raise ValueError("its first line, the header, is empty")
  return delimiter_of(header)


def target_values(column: pa.ChunkedArray) -> np.ndarray:
  """A column as `[N]` numbers (a missing one is NaN) or as strings (None)."""
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


class FeatureColumns(NamedTuple):
  """Columns as arrays `[N]`, their kinds, orders of dates in text, and warnings."""

  columns: dict[str, np.ndarray]
  kinds: dict[str, str]
  date_orders: dict[str, str]
  warnings: list[str]


def feature_columns(table: pa.Table, leave_out: Sequence[str]) -> FeatureColumns:
  """Columns as arrays with their kinds, and what was left out and why.

  Args:
    table: from `read_table`.
    leave_out: names of columns that are not features.
  """
  columns: dict[str, np.ndarray] = {}
  kinds: dict[str, str] = {}
  date_orders: dict[str, str] = {}
  warnings: list[str] = []
  for name in table.column_names:
    if name in leave_out:
      continue
    order = _date_order(table[name])
    values, kind = column_values(table[name], order and order.name)
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
      likely = dates.resemble(v.as_py() for v in itertools.islice(distinct, 100))
      hint = f"; dates are read if all are alike, as {dates.READ}" if likely else ""
      warnings.append(
        f"column {name!r} is text with {len(distinct)} different values, an identifier "
        f"or free text; left out{hint}"
      )
    else:
      infinite = np.isinf(values).sum() if kind == "numeric" else 0
      if infinite:
        warnings.append(
          f"column {name!r} has {infinite} infinite values, taken as missing"
        )
        values = np.where(np.isinf(values), np.nan, values)
      if order:
        date_orders[name] = order.name
        if order.doubtful:
          warnings.append(
            f"column {name!r} has dates that could be month first or day first "
            f"({order.doubtful}), read as {order.name}; if that is wrong write them "
            "year first"
          )
      columns[name], kinds[name] = values, kind
  return FeatureColumns(columns, kinds, date_orders, warnings)


def _is_text(kind: pa.DataType) -> bool:
  return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _date_order(column: pa.ChunkedArray) -> dates.Order | None:
  """How a column of text writes dates, None where it is not text or not dates."""
  kind = column.type
  if not _is_text(kind.value_type if pa.types.is_dictionary(kind) else kind):
    return None
  return dates.find_order(value.as_py() for value in column.drop_null().unique())


def column_values(
  column: pa.ChunkedArray, date_order: str | None = None
) -> tuple[np.ndarray, str]:
  """A column as an array `[N]` with its kind, or with the name of a type of no kind.

  Args:
    column: of a table.
    date_order: of dates in text, None finds it, see `dates`.

  Raises:
    ValueError: naming a text that is no date in the order given.
  """
  if date_order is None and (order := _date_order(column)):
    date_order = order.name
  kind = column.type
  if pa.types.is_dictionary(kind):
    column, kind = column.cast(kind.value_type), kind.value_type
  if pa.types.is_boolean(kind):
    return column.cast(pa.float32()).to_numpy(), "boolean"
  if pa.types.is_integer(kind) or pa.types.is_floating(kind):
    # Whole numbers beyond 2**53 are rounded: identifiers, at that size.
    return column.cast(pa.float64(), safe=False).to_numpy(), "numeric"
  if pa.types.is_decimal(kind) or pa.types.is_null(kind):
    return column.cast(pa.float64()).to_numpy(), "numeric"
  if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
    return column.cast(pa.timestamp("s"), safe=False).to_numpy(), "date"
  if _is_text(kind):
    if date_order is not None:
      return dates.parse(column.to_pylist(), date_order), "date"
    return np.array(column.to_pylist(), object), "category"
  return np.full(len(column), None, object), str(kind)


def read_npz(file: pathlib.Path) -> dict[str, np.ndarray]:
  """The arrays of an npz, pickles refused.

  Raises:
    InputError: not an npz, or one that holds pickled objects.
  """
  if not zipfile.is_zipfile(file):
    raise InputError(f"{file} cannot be read: it is not an npz archive")
  try:
    with np.load(file, allow_pickle=False) as archive:
      return {name: archive[name] for name in archive.files}
  except (ValueError, OSError, zipfile.BadZipFile, EOFError, zlib.error) as error:
    why = "it holds pickled objects" if "pickle" in str(error) else str(error)
    raise InputError(f"{file} cannot be read: {' '.join(why.split())}") from None


def _load_npz(
  file: pathlib.Path,
  target: str,
  task: str | None,
  drop: Sequence[str],
  splits: dict[str, Any],
) -> base.Dataset:
  if drop:
    raise InputError(f"{file} holds arrays, which have no columns to drop")
  arrays = read_npz(file)
  for name in ("x", target):
    if name not in arrays:
      raise InputError(f"{file} has no array {name!r}{_nearest(name, sorted(arrays))}")
  x, y = arrays["x"], arrays[target]
  x_test, y_test = arrays.get("x_test"), arrays.get(f"{target}_test")
  if "is_test" in arrays and x_test is None:
    is_test = arrays["is_test"].astype(bool)
    if not is_test.ndim or not is_test.shape == x.shape[:1] == y.shape[:1]:
      raise InputError(
        f"{file}: x, {target} and is_test must have one row each; got {x.shape}, "
        f"{y.shape} and {is_test.shape}"
      )
    x, y, x_test, y_test = x[~is_test], y[~is_test], x[is_test], y[is_test]
  dataset = base.from_arrays(
    x,
    y,
    name=file.name,
    task=task,
    x_test=x_test,
    y_test=y_test,
    scaling="pixels" if x.dtype == np.uint8 else "standard",
    **splits,
  )
  if x.ndim > 2:  # pictures and recordings have no columns
    return dataset
  if x_test is not None and y_test is not None:
    x, y = np.concatenate([x, x_test]), np.concatenate([y, y_test])
  warnings = matrix_warnings(x.reshape(len(x), -1), base.encode_target(y, task))
  return dataclasses.replace(dataset, warnings=tuple(warnings))
