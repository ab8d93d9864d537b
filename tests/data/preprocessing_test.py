import json

import numpy as np
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, OneHotEncoder, StandardScaler

from nasjax.core.types import InputError
from nasjax.data import preprocessing

_KEY = np.random.default_rng(0)


def _fitted(columns, kinds, scaling="standard"):
  """Through JSON, as a saved model has it."""
  fitted = preprocessing.fit(columns, kinds, scaling)
  return json.loads(json.dumps(fitted, allow_nan=False))


@pytest.mark.parametrize(
  "scaling, scaler", [("standard", StandardScaler), ("minmax", MinMaxScaler)]
)
def test_numbers_and_categories_equal_scikit_learns_transformer(scaling, scaler):
  numbers = _KEY.normal(50, 9, (200, 3))
  numbers[_KEY.random((200, 3)) < 0.1] = np.nan
  # 60 values of falling frequency: the encoder folds all but 31.
  words = np.array([f"w{int(v)}" for v in _KEY.exponential(15, 200)], object)
  train, test = np.arange(150), np.arange(150, 200)
  numeric = make_pipeline(SimpleImputer(strategy="median"), scaler())
  category = OneHotEncoder(handle_unknown="ignore", max_categories=32)
  table = np.concatenate([numbers.astype(object), words[:, None]], axis=1)
  reference = ColumnTransformer(
    [("n", numeric, [0, 1, 2]), ("c", category, [3])], sparse_threshold=0
  ).fit(table[train])
  expected = reference.transform(table[test])

  columns = {"a": numbers, "w": words}
  fitted = _fitted(
    {name: values[train] for name, values in columns.items()},
    {"a": "numeric", "w": "category"},
    scaling,
  )
  x = preprocessing.apply(fitted, {name: v[test] for name, v in columns.items()})
  names = preprocessing.feature_names(fitted)
  kept = [i for i, name in enumerate(names) if not name.endswith("_missing")]
  assert x.dtype == np.float32 and x.shape == (50, len(names))
  np.testing.assert_allclose(x[:, kept], expected, rtol=1e-5, atol=1e-5)
  flags = [i for i in range(len(names)) if i not in kept]
  np.testing.assert_array_equal(x[:, flags], np.isnan(numbers[test]))
  assert "w=(other)" in names


def test_missing_numbers_take_the_train_median_and_a_flag_of_their_own():
  train = {"a": np.array([1.0, np.nan, 3.0, 100.0]), "b": np.arange(4.0)}
  fitted = _fitted(train, dict.fromkeys("ab", "numeric"), "none")
  assert preprocessing.feature_names(fitted) == ["a", "a_missing", "b"]
  x = preprocessing.apply(fitted, {"a": np.array([np.nan]), "b": np.array([np.nan])})
  np.testing.assert_allclose(x, [[3.0, 1.0, 1.5]])


def test_a_column_without_any_train_value_is_finite():
  fitted = _fitted({"a": np.full(4, np.nan)}, {"a": "numeric"})
  x = preprocessing.apply(fitted, {"a": np.array([2.0, np.nan])})
  np.testing.assert_allclose(x, [[2.0, 0.0], [0.0, 1.0]])


def test_booleans_are_nought_and_one():
  fitted = _fitted({"b": np.array([1, 1, 0, np.nan], np.float32)}, {"b": "boolean"})
  x = preprocessing.apply(fitted, {"b": np.array([0.0, 1.0, np.nan])})
  np.testing.assert_array_equal(x, [[0, 0], [1, 0], [1, 1]])


def test_missing_and_unseen_categories():
  fitted = _fitted({"c": np.array(["x", None, "y", "x"], object)}, {"c": "category"})
  assert preprocessing.feature_names(fitted) == ["c=(missing)", "c=x", "c=y"]
  values = np.array([None, np.nan, "y", "never seen"], object)
  x = preprocessing.apply(fitted, {"c": values})
  np.testing.assert_array_equal(x, [[1, 0, 0], [1, 0, 0], [0, 0, 1], [0, 0, 0]])


def test_dates_become_days_and_cycles():
  days = np.arange("2020-01-01", "2021-12-31", dtype="datetime64[D]")
  fitted = _fitted({"d": days}, {"d": "date"})
  names = preprocessing.feature_names(fitted)
  assert names == ["d:days", "d:sin_year", "d:cos_year", "d:sin_week", "d:cos_week"]
  x = preprocessing.apply(fitted, {"d": days})
  assert x[:, 0].mean() == pytest.approx(0, abs=1e-5)
  assert x[:, 0].std() == pytest.approx(1, abs=1e-5)
  np.testing.assert_allclose(x[0, 3:], x[7, 3:], atol=1e-4)  # a week later
  np.testing.assert_allclose(x[0, 1:3], x[366, 1:3], atol=0.03)  # a year later
  assert np.abs(x[0, 3:] - x[3, 3:]).max() > 0.5
  np.testing.assert_allclose((x[:, 1:3] ** 2).sum(1), 1, atol=1e-5)


def test_times_have_a_daily_cycle_and_missing_ones_a_flag():
  times = np.array(["2024-05-01T06:00", "2024-05-02T18:00", "NaT"], "datetime64[s]")
  fitted = _fitted({"t": times}, {"t": "date"})
  names = preprocessing.feature_names(fitted)
  assert names[-3:] == ["t:sin_day", "t:cos_day", "t_missing"]
  x = preprocessing.apply(fitted, {"t": times})
  np.testing.assert_allclose(x[:2, -3], [1, -1], atol=1e-5)
  np.testing.assert_array_equal(x[:, -1], [0, 0, 1])
  assert np.isfinite(x).all()


def test_many_rows_equal_few_rows():
  values = _KEY.normal(size=(20_000, 2))
  fitted = _fitted({"a": values}, {"a": "numeric"})
  x = preprocessing.apply(fitted, {"a": values})
  expected = StandardScaler().fit_transform(values)
  np.testing.assert_allclose(x, expected, rtol=1e-4, atol=1e-5)


def test_a_small_spread_on_a_large_offset_survives():
  values = 1.7e9 + np.arange(100.0)
  fitted = _fitted({"a": values}, {"a": "numeric"})
  x = preprocessing.apply(fitted, {"a": values})
  assert len(np.unique(x)) == 100


@pytest.mark.parametrize(
  "columns, message",
  [
    ({"a": np.ones(2)}, "columns are missing: d"),
    ({"a": np.array(["x"]), "d": np.zeros(1)}, "column 'a' must be numbers"),
    ({"a": np.ones((2, 3)), "d": np.zeros(2)}, "'a' has 3 values a row.*knows 1"),
    (
      {"a": np.ones(1), "d": np.array(["x"], object)},
      "column 'd' must be dates",
    ),
  ],
)
def test_rows_that_do_not_fit_are_refused(columns, message):
  days = np.array(["2024-01-01", "2024-01-02"], "datetime64[D]")
  fitted = _fitted({"a": np.arange(2.0), "d": days}, {"a": "numeric", "d": "date"})
  with pytest.raises(InputError, match=message):
    preprocessing.apply(fitted, columns)
