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
from nasjax.data import standalone
from nasjax.data.standalone import OTHER, days, feature_names, matrix, words

__all__ = ["KINDS", "SCALINGS", "apply", "feature_names", "fit"]

KINDS = ("numeric", "boolean", "category", "date")
SCALINGS = ("standard", "minmax", "pixels", "none")
_MAX_CATEGORIES = 32


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
  """Features of raw rows, by `standalone.features`.

  Args:
    fitted: from `fit`.
    columns: raw values; columns that were not fitted are ignored.

  Returns:
    `[N, F]` float32. A category never seen in training is all zeros.

  Raises:
    InputError: naming a column that is missing, that is not numbers where numbers were
      fitted, or that has another width.
  """
  try:
    return standalone.features(fitted, columns)
  except ValueError as error:
    raise InputError(str(error)) from None


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


def _fit_numeric(
  values: np.ndarray, scaling: str, strategy: str = "median"
) -> dict[str, Any]:
  x = matrix(values)
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


def _fit_boolean(values: np.ndarray, scaling: str) -> dict[str, Any]:
  del scaling
  return _fit_numeric(values, "none", "most_frequent")


def _fit_category(values: np.ndarray, scaling: str) -> dict[str, Any]:
  del scaling
  encoder = OneHotEncoder(
    handle_unknown="ignore", max_categories=_MAX_CATEGORIES, sparse_output=False
  ).fit(words(values)[:, None])
  rare = encoder.infrequent_categories_[0]
  folded = [] if rare is None else rare.tolist()
  kept = [value for value in encoder.categories_[0].tolist() if value not in folded]
  return {"categories": kept + [OTHER] * bool(folded), "folded": folded}


def _fit_date(values: np.ndarray, scaling: str) -> dict[str, Any]:
  del scaling
  day = days(values)
  known = day[~np.isnan(day)]
  known = known if len(known) else np.zeros(1)
  return {
    "fill": [float(np.median(known))],
    "offset": float(known.mean()),
    "scale": float(known.std()) or 1.0,
    "has_time": bool(np.any(known != np.floor(known))),
    "flagged": bool(np.isnan(day).any()),
  }
