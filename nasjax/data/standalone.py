"""Predictions of a model that nasjax found, for raw rows.

  python predict.py ROWS.csv [PREDICTIONS.csv] [--overwrite] [--unseen=refuse]

It stands beside `genotype.json`, `weights.npz` and `preprocessing.json`, reads them and
the rows (`.csv`, `.tsv`, `.txt`, `.csv.gz`; `.npz` for a model of arrays), and needs
Python 3.11 and NumPy alone. Without PREDICTIONS.csv it prints. As a module: `load`,
`read`, `features` (what model.onnx and model.jaxexport take) and `predict`.

A missing value is filled and flagged as in training, an infinite one is missing; a
category that training has not seen is all zeros, with a warning (or refused); columns
that the model does not know are ignored. In nasjax this file is
`nasjax/data/standalone.py`: training prepares its rows with the same functions.
"""

import argparse
import csv
import datetime
import gzip
import io
import json
import os
import pathlib
import re
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

NULLS = ["", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "?"]
UNNAMED = "unnamed"
"""The name of a column without one: a word that no shell and no flag parser changes."""
MISSING, OTHER = "(missing)", "(other)"
ORDERS = {"year first": (0, 1, 2), "month first": (2, 0, 1), "day first": (2, 1, 0)}
"""Which of the three numbers of a date are year, month and day; the preferred first."""

_TEXTS = (".csv", ".tsv", ".txt", ".csv.gz")
_BOOLEANS = {"true": 1.0, "1": 1.0, "false": 0.0, "0": 0.0}
_DATE = re.compile(
  r"\s*(\d{1,2}|\d{4})([-/.])(\d{1,2})\2(\d{1,2}|\d{4})"
  r"(?:[ T](\d{1,2}):(\d\d)(?::(\d\d)(?:\.\d*)?)?)?\s*",
  re.ASCII,
)
_YEAR = re.compile(r"1[5-9]\d\d|2[01]\d\d")
# The mean Gregorian year: a date keeps its phase to within two days.
_YEAR_DAYS = 365.2425
# Rows at a time: float64 copies of 70,000 images at once would take gigabytes.
_BLOCK_ROWS = 8192
_MAX_LISTED = 20

Columns = dict[str, np.ndarray]
"""Raw values by column: `[N]`, or `[N, M]` where a column is a matrix."""


class Model(NamedTuple):
  """What the three files hold.

  Attributes:
    activations: of the hidden layers.
    weights: `layer_0/kernel` `[I, O]`, `layer_0/bias` `[O]` and so on, output last.
    features: how each raw column becomes features.
    target: task, class names, and for regression mean and scale.
  """

  activations: tuple[str, ...]
  weights: dict[str, np.ndarray]
  features: list[dict[str, Any]]
  target: dict[str, Any]


def model_of(
  description: dict[str, Any], weights: dict[str, np.ndarray], fitted: dict[str, Any]
) -> Model:
  """The model that the contents of the three files describe.

  Raises:
    ValueError: they do not belong together, or are no chain of dense layers.
  """
  if description.get("space", {}).get("kind") != "mlp_chain":
    raise ValueError("the model is not a chain of dense layers")
  parts = [part.split() for part in description["arch"].split(" - ")]
  activations = tuple(word for size, word, *_ in parts if size != "dropout")
  width = len(feature_names(fitted["features"]))
  for i in range(len(activations) + 1):
    kernel, bias = (weights.get(f"layer_{i}/{part}") for part in ("kernel", "bias"))
    if kernel is None or bias is None or kernel.shape != (width, len(bias)):
      raise ValueError(f"layer {i} of weights.npz does not fit the other files")
    width = len(bias)
  if len(weights) > 2 * len(activations) + 2:
    raise ValueError(f"layer {len(activations) + 1} of weights.npz is not in genotype")
  return Model(activations, weights, fitted["features"], fitted["target"])


def load(folder: str | os.PathLike) -> Model:
  """Reads the three files.

  Raises:
    ValueError: one is missing or is not what it should be.
  """
  source = pathlib.Path(folder)
  try:
    with np.load(source / "weights.npz", allow_pickle=False) as archive:
      weights = {name: archive[name] for name in archive.files}
    description, fitted = (
      json.loads((source / f"{name}.json").read_text(encoding="utf-8"))
      for name in ("genotype", "preprocessing")
    )
  except FileNotFoundError as error:
    raise ValueError(f"no model in {source}: {error.filename} is missing") from None
  except (OSError, EOFError, zipfile.BadZipFile) as error:
    raise ValueError(f"the model in {source} cannot be read: {error}") from None
  return model_of(description, weights, fitted)


def outputs(model: Model, x: np.ndarray) -> np.ndarray:
  """Outputs `[N, C]` of the network on features `[N, F]`, in float64."""
  functions: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "sigmoid": lambda z: 0.5 * (1.0 + np.tanh(0.5 * z)),
    "tanh": np.tanh,
    "relu": lambda z: np.maximum(z, 0.0),
    "elu": lambda z: np.where(z > 0.0, z, np.expm1(np.minimum(z, 0.0))),
  }
  exact = {name: value.astype(np.float64) for name, value in model.weights.items()}
  last = len(model.activations)
  blocks = [np.zeros((0, len(exact[f"layer_{last}/bias"])))]
  for start in range(0, len(x), _BLOCK_ROWS):
    h = x[start : start + _BLOCK_ROWS].astype(np.float64)
    for i in range(last + 1):
      h = h @ exact[f"layer_{i}/kernel"] + exact[f"layer_{i}/bias"][None]
      h = functions[model.activations[i]](h) if i < last else h
    blocks.append(h)
  return np.concatenate(blocks)


def answers(target: dict[str, Any], outputs_NC: Any, xp: Any = np) -> Any:
  """What outputs mean: probabilities `[N, K]`, or for regression values `[N]`.

  Args:
    target: of the model.
    outputs_NC: of the network.
    xp: `numpy`, or another module with its functions, such as `jax.numpy`.
  """
  if target["task"] == "regression":
    return outputs_NC[:, 0] * target["scale"] + target["mean"]
  if target["task"] == "binary":
    odds = xp.tanh(0.5 * outputs_NC[:, 0])
    return xp.stack([0.5 * (1.0 - odds), 0.5 * (1.0 + odds)], axis=1)
  powers = xp.exp(outputs_NC - outputs_NC.max(1, keepdims=True))
  return powers / powers.sum(1, keepdims=True)


def predict(model: Model, columns: Columns) -> np.ndarray:
  """Answers for raw rows, see `answers`."""
  return answers(model.target, outputs(model, features(model.features, columns)))


def features(fitted: list[dict[str, Any]], columns: Columns) -> np.ndarray:
  """Features `[N, F]` float32 of raw rows.

  Args:
    fitted: of the model, one dict a column.
    columns: raw values; columns that were not fitted are ignored.

  Raises:
    ValueError: naming a column that is missing, that is not numbers where numbers were
      fitted, or that has another width.
  """
  missing = [spec["name"] for spec in fitted if spec["name"] not in columns]
  if missing:
    raise ValueError(f"columns are missing: {_listed(missing)}")
  appliers = {"numeric": _numeric_features, "boolean": _numeric_features}
  appliers |= {"category": _category_features, "date": _date_features}
  rows = len(columns[fitted[0]["name"]])
  x = np.empty((rows, len(feature_names(fitted))), np.float32)
  for start in range(0, rows, _BLOCK_ROWS):
    block = slice(start, start + _BLOCK_ROWS)
    parts = [
      appliers[spec["kind"]](spec, columns[spec["name"]][block]) for spec in fitted
    ]
    x[block] = np.concatenate(parts, axis=1)
  return x


def feature_names(fitted: list[dict[str, Any]]) -> list[str]:
  """`[F]` names of the features."""
  return [name for spec in fitted for name in _names(spec)]


def raw_names(spec: dict[str, Any]) -> list[str]:
  """The columns of a file that one fitted column is read from; a matrix has several."""
  width = len(spec["fill"]) if spec["kind"] == "numeric" else 1
  names = [f"{spec['name']}[{i}]" for i in range(width)]
  return spec.get("names", names if width > 1 else [spec["name"]])


def _names(spec: dict[str, Any]) -> list[str]:
  name = spec["name"]
  if spec["kind"] == "category":
    return [f"{name}={value}" for value in spec["categories"]]
  if spec["kind"] == "date":
    cycles = ["year", "week"] + ["day"] * spec["has_time"]
    parts = ["days"] + [
      f"{wave}_{cycle}" for cycle in cycles for wave in ("sin", "cos")
    ]
    return [f"{name}:{part}" for part in parts] + [f"{name}_missing"] * spec["flagged"]
  names = raw_names(spec)
  return names + [f"{names[i]}_missing" for i in spec["flagged"]]


def unseen(fitted: list[dict[str, Any]], columns: Columns) -> list[str]:
  """One line for each column with categories that training has not seen."""
  lines = []
  for spec in fitted:
    if spec["kind"] == "category":
      known = {*spec["categories"], *spec["folded"]}
      told = enumerate(words(columns[spec["name"]]), 1)
      strange = [(row, word) for row, word in told if word not in known]
      if strange:
        lines.append(
          f"column {spec['name']!r}: training has not seen {len(strange)} of the "
          "values, the first in row {}: {!r}".format(*strange[0])
        )
  return lines


def matrix(values: np.ndarray) -> np.ndarray:
  """`[N, M]`: float32 where it holds every value exactly, else float64."""
  values = np.asarray(values)
  exact = values.dtype.itemsize <= (4 if values.dtype.kind == "f" else 2)
  values = values.astype(np.float32 if exact else np.float64, copy=False)
  return values.reshape(len(values), -1)


def _numeric_features(spec: dict[str, Any], values: np.ndarray) -> np.ndarray:
  try:
    x = matrix(values)
  except (TypeError, ValueError):
    raise ValueError(f"column {spec['name']!r} must be numbers") from None
  width = len(spec["fill"])
  if x.shape[1] != width:
    raise ValueError(
      f"column {spec['name']!r} has {x.shape[1]} values a row, the model knows {width}"
    )
  absent = ~np.isfinite(x)
  filled = np.where(absent, np.asarray(spec["fill"])[None], x)
  scaled = (filled - np.asarray(spec["offset"])[None]) / np.asarray(spec["scale"])[None]
  return np.concatenate([scaled, absent[:, spec["flagged"]]], axis=1)


def words(values: np.ndarray) -> np.ndarray:
  """Categories `[N]` as texts; a missing one has a text of its own."""
  # A NaN among objects is the one value that differs from itself.
  missing = (v is None or v != v for v in values)
  return np.array([MISSING if m else str(v) for m, v in zip(missing, values)], object)


def _category_features(spec: dict[str, Any], values: np.ndarray) -> np.ndarray:
  folded = set(spec["folded"])
  seen = np.array([OTHER if word in folded else word for word in words(values)], object)
  return (seen[:, None] == np.array(spec["categories"], object)[None]).astype(float)


def days(values: np.ndarray) -> np.ndarray:
  """Days since 1970, a Thursday; NaN where missing."""
  since = values.astype("datetime64[s]") - np.datetime64(0, "s")
  return np.where(np.isnat(values), np.nan, since / np.timedelta64(1, "D"))


def _date_features(spec: dict[str, Any], values: np.ndarray) -> np.ndarray:
  try:
    day = days(np.asarray(values))
  except (TypeError, ValueError):
    raise ValueError(f"column {spec['name']!r} must be dates") from None
  absent = np.isnan(day)
  day = np.where(absent, spec["fill"][0], day)
  parts = [(day - spec["offset"]) / spec["scale"]]
  for period in (_YEAR_DAYS, 7.0) + (1.0,) * spec["has_time"]:
    angle = 2 * np.pi * day / period
    parts += [np.sin(angle), np.cos(angle)]
  parts += [absent] * spec["flagged"]
  return np.stack(parts, axis=1)


def read(path: str | os.PathLike, fitted: list[dict[str, Any]]) -> Columns:
  """The raw values of the columns that the model knows.

  A column is read as what it was in training, whatever the new rows look like: a column
  of words may hold nothing but digits, and dates keep their order.

  Args:
    path: text with a header (see the module), or an npz with a matrix for each column.
    fitted: of the model, one dict a column.

  Raises:
    ValueError: naming the file, or the column and the row, counted from 1.
  """
  file = pathlib.Path(path)
  try:
    if file.name.lower().endswith(".npz"):
      with np.load(file, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
      wanted = [spec["name"] for spec in fitted]
      return {name: arrays[name] for name in _all_there(file, wanted, arrays)}
    if not file.name.lower().endswith(_TEXTS):
      raise ValueError(f"{file} is not one of {', '.join((*_TEXTS, '.npz'))}")
    texts = _read_texts(file, [name for spec in fitted for name in raw_names(spec)])
  except FileNotFoundError:
    raise ValueError(f"there is no file {file}") from None
  except (OSError, EOFError, UnicodeDecodeError, zipfile.BadZipFile, csv.Error) as why:
    raise ValueError(f"{file} cannot be read: {why}") from None
  columns = {}
  for spec in fitted:
    parts = [parse(texts[name], name, spec) for name in raw_names(spec)]
    columns[spec["name"]] = parts[0] if len(parts) == 1 else np.stack(parts, axis=1)
  return columns


def _all_there(
  file: pathlib.Path, wanted: Sequence[str], there: Iterable[str]
) -> Sequence[str]:
  there = list(there)
  missing = [name for name in wanted if name not in there]
  if missing:
    what = "column" if len(missing) == 1 else "columns"
    raise ValueError(f"{file} lacks {what} {_listed(missing)}; it has {_listed(there)}")
  return wanted


def _listed(names: Sequence[str]) -> str:
  more = len(names) - _MAX_LISTED
  return ", ".join(names[:_MAX_LISTED]) + (f" and {more} more" if more > 0 else "")


def _read_texts(file: pathlib.Path, wanted: list[str]) -> dict[str, list[str]]:
  """The texts `[N]` of the wanted columns."""
  opener: Any = gzip.open if file.name.lower().endswith(".gz") else open
  with opener(file, "rt", encoding="utf-8-sig", newline="") as handle:
    text = handle.read()
  header = text.partition("\n")[0]
  if not header.strip():
    raise ValueError(f"{file} cannot be read: its first line, the header, is empty")
  rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter_of(header))
  names = [name.strip() or UNNAMED for name in next(rows)]
  place = [names.index(name) for name in _all_there(file, wanted, names)]
  twice = [name for name in wanted if names.count(name) > 1]
  if twice:
    raise ValueError(f"{file} has more than one column {twice[0]!r}")
  found: list[list[str]] = [[] for _ in wanted]
  for row in rows:
    if not row:  # a blank line
      continue
    if len(row) != len(names):
      raise ValueError(
        f"{file} has {len(row)} values in row {len(found[0]) + 1}, its header has "
        f"{len(names)}"
      )
    for texts, i in zip(found, place):
      texts.append(row[i])
  return dict(zip(wanted, found))


def delimiter_of(header: str) -> str:
  """The one of four that a header holds most of, outside quotes."""
  return max(",;\t|", key=re.sub('"[^"]*"', "", header).count)


def parse(texts: Sequence[str], name: str, spec: dict[str, Any]) -> np.ndarray:
  """Texts `[N]` as values of the kind that the column was in training.

  Raises:
    ValueError: naming the column, the row and what is wrong with it.
  """
  if spec["kind"] == "category":
    return np.array([None if text in NULLS else text for text in texts], object)
  order = spec.get("order")
  one, what, nothing = {
    "numeric": (_number, "a number", np.nan),
    "boolean": (lambda text: _BOOLEANS.get(text.lower()), "true or false", np.nan),
    "date": (
      lambda text: moment(text, order),
      f"a date with the {order}" if order else "an ISO date such as 2024-12-31",
      None,
    ),
  }[spec["kind"]]
  values: list[Any] = []
  for row, text in enumerate(texts, 1):
    text = text.strip()
    value = nothing if text in NULLS else one(text)
    if value is None and text not in NULLS:
      raise ValueError(f"column {name!r} must be {what}; row {row} has {text!r}")
    values.append(value)
  return np.array(values, "datetime64[s]" if spec["kind"] == "date" else float)


def _number(text: str) -> float | None:
  try:
    return None if "_" in text else float(text)  # not Python's own 1_000
  except ValueError:
    return None


def moment(text: str, order: str | None) -> datetime.datetime | None:
  """The moment that a text is in an order out of `ORDERS`, or in ISO's (None)."""
  if order is None:
    try:
      value = datetime.datetime.fromisoformat(text.strip())
    except ValueError:
      return None
    if value.tzinfo is not None:
      value = value.astimezone(datetime.UTC).replace(tzinfo=None)
    return value
  match = _DATE.fullmatch(text)
  if not match:
    return None
  first, separator, second, third, *time = match.groups()
  year, month, day = ((first, second, third)[i] for i in ORDERS[order])
  hours, minutes, seconds = (int(part or 0) for part in time)
  if not _YEAR.fullmatch(year) or (separator == "." and order == "month first"):
    return None
  try:
    return datetime.datetime(int(year), int(month), int(day), hours, minutes, seconds)
  except ValueError:  # the 31st of February
    return None


def table(target: dict[str, Any], answer: np.ndarray) -> str:
  """CSV: the prediction of each row, and the probability of each class."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  classes = target["classes"]
  writer.writerow(["prediction", *(f"probability_{name}" for name in classes)])
  for row in answer:
    if classes:
      writer.writerow([classes[int(row.argmax())], *(f"{value:.9g}" for value in row)])
    else:
      writer.writerow([f"{row:.9g}"])
  return text.getvalue()


def check_output(
  output: str | os.PathLike, rows: str | os.PathLike, overwrite: bool
) -> None:
  """Raises ValueError for an output that must not, or cannot, be written."""
  path = pathlib.Path(output)
  if path.is_dir():
    raise ValueError(f"{path} is a folder, not a file")
  if path.exists() and path.samefile(rows):
    raise ValueError(f"{path} is the file of the rows; give another output")
  if path.exists() and not overwrite:
    raise ValueError(f"{path} is there already; --overwrite replaces it")
  if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
    raise ValueError(f"{path} cannot be written: {path.parent} is no writable folder")


def main() -> None:
  """The command line; exits with status 2 and one line for the user's mistake."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
  parser.add_argument("rows", help="raw rows: .csv, .tsv, .txt, .csv.gz or .npz")
  parser.add_argument("output", nargs="?", help="a CSV file; printed without it")
  parser.add_argument("--overwrite", action="store_true", help="replace the output")
  parser.add_argument("--unseen", choices=("zeros", "refuse"), default="zeros")
  given = parser.parse_args()
  try:
    model = load(pathlib.Path(__file__).resolve().parent)
    columns = read(given.rows, model.features)
    if given.output:
      check_output(given.output, given.rows, given.overwrite)
    strange = unseen(model.features, columns)
    if strange and given.unseen == "refuse":
      raise ValueError("; ".join(strange))
    text = table(model.target, predict(model, columns))
    write(given.output, text) if given.output else print(text, end="")
  except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(2)
  if text.count("\n") == 1:  # the header
    print(f"warning: {given.rows} has no rows", file=sys.stderr)
  for line in strange:
    print(f"warning: {line}: no category (all zeros)", file=sys.stderr)


def write(output: str | os.PathLike, text: str) -> None:
  """Writes the whole file or nothing."""
  path = pathlib.Path(output)
  descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
  try:
    with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
      file.write(text)
    os.chmod(temporary, 0o644)  # mkstemp is for the owner alone
    os.replace(temporary, path)
  except BaseException:
    pathlib.Path(temporary).unlink(missing_ok=True)
    raise


if __name__ == "__main__":
  main()
