"""Raw columns to features: fitted with scikit-learn, applied from plain JSON values.

Kinds of columns: "numeric" (`[N]` or a matrix `[N, M]`; NaN is missing), "boolean" (0,
1 or NaN), "category" (objects; None is missing) and "date" (datetime64; NaT is
missing). A missing value takes the train median (a boolean the most frequent value) and
a 0/1 column says so where train rows miss any; a category has its own. What was
fitted is a dict of JSON values, and `apply` needs numpy alone: a model leaves with it.
"""

from typing import Any

import numpy as np
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import MinMaxScaler, OneHotEncoder, StandardScaler

from nasjax.core.types import InputError

KINDS = ("numeric", "boolean", "category", "date")
SCALINGS = ("standard", "minmax", "pixels", "none")
_MAX_CATEGORIES = 32
_MISSING = "(missing)"
_OTHER = "(other)"
_DAY = np.timedelta64(1, "D")
# The mean Gregorian year: a date keeps its phase to within two days.
_YEAR_DAYS = 365.2425
# Rows at a time: float64 copies of 70,000 images at once would take gigabytes.
_BLOCK_ROWS = 8192


def fit(
  columns: dict[str, np.ndarray], kinds: dict[str, str], scaling: str = "standard"
) -> list[dict[str, Any]]:
  """Fits on train rows.

  Args:
    columns: `[N]` or `[N, M]` raw values of the train rows only.
    kinds: of each column, out of `KINDS`.
    scaling: of numeric columns, out of `SCALINGS`.

  Returns:
    One JSON-able dict per column, in order.

  Raises:
    InputError: unknown scaling.
  """
  if scaling not in SCALINGS:
    raise InputError(f"unknown scaling {scaling!r}; there are {', '.join(SCALINGS)}")
  fitters = {"numeric": _fit_numeric, "boolean": _fit_boolean}
  fitters |= {"category": _fit_category, "date": _fit_date}
  return [
    {"name": name, "kind": kinds[name], **fitters[kinds[name]](values, scaling)}
    for name, values in columns.items()
  ]


def apply(fitted: list[dict[str, Any]], columns: dict[str, np.ndarray]) -> np.ndarray:
  """Features of raw rows.

  Args:
    fitted: from `fit`.
    columns: raw values; columns that were not fitted are ignored.

  Returns:
    `[N, F]` float32. A category never seen in training is all zeros.

  Raises:
    InputError: naming a column that is missing, that is not numbers where numbers were
      fitted, or that has another width.
  """
  missing = [spec["name"] for spec in fitted if spec["name"] not in columns]
  if missing:
    raise InputError(f"columns are missing: {', '.join(missing)}")
  appliers = {"numeric": _apply_numeric, "boolean": _apply_numeric}
  appliers |= {"category": _apply_category, "date": _apply_date}
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


def _names(spec: dict[str, Any]) -> list[str]:
  name = spec["name"]
  if spec["kind"] == "category":
    return [f"{name}={value}" for value in spec["categories"]]
  if spec["kind"] == "date":
    names = [f"{name}:{part}" for part in _date_parts(spec)]
    return names + [f"{name}_missing"] * spec["flagged"]
  width = len(spec["fill"])
  names = [name] if width == 1 else [f"{name}[{i}]" for i in range(width)]
  names = spec.get("names", names)
  return names + [f"{names[i]}_missing" for i in spec["flagged"]]


def _scaler(x: np.ndarray, scaling: str) -> tuple[list[float], list[float]]:
  """Offset and divisor per column; a constant column is divided by one."""
  width = x.shape[1]
  if scaling == "standard":
    scaler = StandardScaler().fit(x)
    return scaler.mean_.tolist(), scaler.scale_.tolist()
  if scaling == "minmax":
    low = MinMaxScaler().fit(x)
    return low.data_min_.tolist(), (1.0 / low.scale_).tolist()
  # One scale for all pixels: their ratios carry the picture.
  largest = float(np.abs(x).max()) or 1.0 if scaling == "pixels" else 1.0
  return [0.0] * width, [largest] * width


def _matrix(values: np.ndarray) -> np.ndarray:
  """`[N, M]`: float32 where it holds every value exactly, else float64."""
  values = np.asarray(values)
  exact = values.dtype.itemsize <= (4 if values.dtype.kind == "f" else 2)
  values = values.astype(np.float32 if exact else np.float64, copy=False)
  return values.reshape(len(values), -1)


def _fit_numeric(
  values: np.ndarray, scaling: str, strategy: str = "median"
) -> dict[str, Any]:
  x = _matrix(values)
  absent = np.isnan(x)
  if strategy == "median" and not absent.any():
    fill = np.median(x, axis=0)  # the imputer's own answer, ten times faster
  else:
    imputer = SimpleImputer(strategy=strategy, keep_empty_features=True).fit(x)
    fill, x = imputer.statistics_, imputer.transform(x)
  offset, scale = _scaler(x, scaling)
  return {
    "fill": fill.tolist(),
    "flagged": np.flatnonzero(absent.any(0)).tolist(),
    "offset": offset,
    "scale": scale,
  }


def _apply_numeric(spec: dict[str, Any], values: np.ndarray) -> np.ndarray:
  try:
    x = _matrix(values)
  except (TypeError, ValueError):
    raise InputError(f"column {spec['name']!r} must be numbers") from None
  width = len(spec["fill"])
  if x.shape[1] != width:
    raise InputError(
      f"column {spec['name']!r} has {x.shape[1]} values a row, the model knows {width}"
    )
  absent = np.isnan(x)
  filled = np.where(absent, np.asarray(spec["fill"])[None], x)
  scaled = (filled - np.asarray(spec["offset"])[None]) / np.asarray(spec["scale"])[None]
  return np.concatenate([scaled, absent[:, spec["flagged"]]], axis=1)


def _fit_boolean(values: np.ndarray, scaling: str) -> dict[str, Any]:
  del scaling
  return _fit_numeric(values, "none", "most_frequent")


def _words(values: np.ndarray) -> np.ndarray:
  # A NaN among objects is the one value that differs from itself.
  missing = (v is None or v != v for v in values)
  return np.array([_MISSING if m else str(v) for m, v in zip(missing, values)], object)


def _fit_category(values: np.ndarray, scaling: str) -> dict[str, Any]:
  del scaling
  encoder = OneHotEncoder(
    handle_unknown="ignore", max_categories=_MAX_CATEGORIES, sparse_output=False
  ).fit(_words(values)[:, None])
  rare = encoder.infrequent_categories_[0]
  folded = [] if rare is None else rare.tolist()
  kept = [value for value in encoder.categories_[0].tolist() if value not in folded]
  return {"categories": kept + [_OTHER] * bool(folded), "folded": folded}


def _apply_category(spec: dict[str, Any], values: np.ndarray) -> np.ndarray:
  words, folded = _words(values), set(spec["folded"])
  words = np.array([_OTHER if word in folded else word for word in words], object)
  return (words[:, None] == np.array(spec["categories"], object)[None]).astype(float)


def _date_parts(spec: dict[str, Any]) -> list[str]:
  cycles = ["year", "week"] + ["day"] * spec["has_time"]
  return ["days"] + [f"{wave}_{cycle}" for cycle in cycles for wave in ("sin", "cos")]


def _days(values: np.ndarray) -> np.ndarray:
  """Days since 1970, a Thursday; NaN where missing."""
  days = values.astype("datetime64[s]") - np.datetime64(0, "s")
  return np.where(np.isnat(values), np.nan, days / _DAY)


def _fit_date(values: np.ndarray, scaling: str) -> dict[str, Any]:
  del scaling
  days = _days(values)
  known = days[~np.isnan(days)]
  known = known if len(known) else np.zeros(1)
  return {
    "fill": [float(np.median(known))],
    "offset": float(known.mean()),
    "scale": float(known.std()) or 1.0,
    "has_time": bool(np.any(known != np.floor(known))),
    "flagged": bool(np.isnan(days).any()),
  }


def _apply_date(spec: dict[str, Any], values: np.ndarray) -> np.ndarray:
  try:
    days = _days(np.asarray(values))
  except (TypeError, ValueError):
    raise InputError(f"column {spec['name']!r} must be dates") from None
  absent = np.isnan(days)
  days = np.where(absent, spec["fill"][0], days)
  parts = [(days - spec["offset"]) / spec["scale"]]
  for period in (_YEAR_DAYS, 7.0) + (1.0,) * spec["has_time"]:
    angle = 2 * np.pi * days / period
    parts += [np.sin(angle), np.cos(angle)]
  parts += [absent] * spec["flagged"]
  return np.stack(parts, axis=1)
