"""Raw columns to features: fitted with scikit-learn, applied from plain JSON values.

Kinds of columns: "numeric" (`[N]` or a matrix `[N, M]`; NaN is missing), "boolean",
"category" (objects; None is missing) and "date" (datetime64; NaT is missing). What was
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
    InputError: naming a column that is missing.
  """
  missing = [spec["name"] for spec in fitted if spec["name"] not in columns]
  if missing:
    raise InputError(f"columns are missing: {', '.join(missing)}")
  appliers = {"numeric": _apply_numeric, "boolean": _apply_boolean}
  appliers |= {"category": _apply_category, "date": _apply_date}
  parts = [appliers[spec["kind"]](spec, columns[spec["name"]]) for spec in fitted]
  return np.concatenate(parts, axis=1).astype(np.float32)


def feature_names(fitted: list[dict[str, Any]]) -> list[str]:
  """`[F]` names of the features."""
  return [name for spec in fitted for name in _names(spec)]


def _names(spec: dict[str, Any]) -> list[str]:
  name = spec["name"]
  if spec["kind"] == "category":
    return [f"{name}={value}" for value in spec["categories"]]
  if spec["kind"] == "date":
    return [f"{name}:{part}" for part in _date_parts(spec)]
  wide = len(spec.get("fill", [0])) > 1
  names = [f"{name}[{i}]" for i in range(len(spec["fill"]))] if wide else [name]
  return names + [f"{names[i]}_missing" for i in spec.get("flagged", [])]


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
  values = np.asarray(values, np.float64)
  return values.reshape(len(values), -1)


def _fit_numeric(values: np.ndarray, scaling: str) -> dict[str, Any]:
  x = _matrix(values)
  imputer = SimpleImputer(strategy="median", keep_empty_features=True).fit(x)
  offset, scale = _scaler(imputer.transform(x), scaling)
  return {
    "fill": imputer.statistics_.tolist(),
    "flagged": np.flatnonzero(np.isnan(x).any(0)).tolist(),
    "offset": offset,
    "scale": scale,
  }


def _apply_numeric(spec: dict[str, Any], values: np.ndarray) -> np.ndarray:
  x = _matrix(values)
  absent = np.isnan(x)
  filled = np.where(absent, np.asarray(spec["fill"])[None], x)
  scaled = (filled - np.asarray(spec["offset"])[None]) / np.asarray(spec["scale"])[None]
  return np.concatenate([scaled, absent[:, spec["flagged"]]], axis=1)


def _fit_boolean(values: np.ndarray, scaling: str) -> dict[str, Any]:
  del scaling
  return {"fill": [float(np.nanmedian(_matrix(values)))], "flagged": []}


def _apply_boolean(spec: dict[str, Any], values: np.ndarray) -> np.ndarray:
  x = _matrix(values)
  return np.where(np.isnan(x), spec["fill"][0], x)


def _words(values: np.ndarray) -> np.ndarray:
  return np.array([_MISSING if v is None else str(v) for v in values], object)


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
  }


def _apply_date(spec: dict[str, Any], values: np.ndarray) -> np.ndarray:
  days = _days(np.asarray(values))
  days = np.where(np.isnan(days), spec["fill"][0], days)
  parts = [(days - spec["offset"]) / spec["scale"]]
  for period in (365.2425, 7.0) + (1.0,) * spec["has_time"]:
    angle = 2 * np.pi * days / period
    parts += [np.sin(angle), np.cos(angle)]
  return np.stack(parts, axis=1)
