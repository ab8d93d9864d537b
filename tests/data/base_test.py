import json

import numpy as np
import pytest

from nasjax.core.types import InputError
from nasjax.data import base, preprocessing

_KEY = np.random.default_rng(0)
_X = _KEY.normal(3.0, 2.0, (60, 4))
_Y = np.arange(60) % 3


def test_splits_are_disjoint_stratified_and_fixed_by_the_seed():
  labels = np.repeat([0, 1], [80, 20])
  first = base.split_indices(labels, 100, seed=1)
  again = base.split_indices(labels, 100, seed=1)
  other = base.split_indices(labels, 100, seed=2)
  assert [len(part) for part in first] == [64, 16, 20]
  assert sorted(np.concatenate(first)) == list(range(100))
  assert all((a == b).all() for a, b in zip(first, again))
  assert any((a != b).any() for a, b in zip(first, other))
  assert [labels[part].mean() for part in first] == pytest.approx([0.2] * 3, abs=0.02)


def test_an_official_test_mask_is_the_test_split():
  mask = np.arange(50) >= 40
  split = base.split_indices(None, 50, seed=0, test_mask=mask, valid_fraction=0.25)
  assert sorted(split.test) == list(range(40, 50))
  assert len(split.valid) == 10


@pytest.mark.parametrize(
  "options, message",
  [
    (dict(valid_fraction=0.0), "valid_fraction must be between 0 and 1, got 0.0"),
    (dict(test_fraction=1.0), "test_fraction must be between 0 and 1, got 1.0"),
    (dict(test_mask=np.zeros(30)), "without rows"),
    (dict(test_mask=np.zeros(29)), "shape"),
  ],
)
def test_splits_that_cannot_be(options, message):
  with pytest.raises(InputError, match=message):
    base.split_indices(None, 30, seed=0, **options)


def test_scaling_is_fitted_on_train_rows_only():
  data = base.from_arrays(_X, _Y, seed=3)
  np.testing.assert_allclose(data.train.x.mean(0), 0, atol=1e-6)
  np.testing.assert_allclose(data.train.x.std(0), 1, atol=1e-5)
  assert abs(data.test.x.mean()) > 1e-4
  rows = base.split_indices(_Y, 60, seed=3)
  again = preprocessing.apply(data.preprocessing["features"], {"x": _X[rows.test]})
  np.testing.assert_array_equal(again, data.test.x)


def test_pixels_are_divided_by_the_largest_train_value_and_flattened():
  x = np.zeros((30, 2, 2), np.uint8)
  x[:, 0, 0], x[:, 1, 1] = 200, 50
  data = base.from_arrays(x, np.arange(30) % 2, scaling="pixels")
  np.testing.assert_allclose(data.test.x, [[1, 0, 0, 0.25]] * 6)
  assert data.preprocessing["features"][0]["scale"] == [200.0] * 4


def test_black_pixels_divide_by_no_zero():
  data = base.from_arrays(np.zeros((30, 4)), np.arange(30) % 2, scaling="pixels")
  assert (data.train.x == 0).all()


@pytest.mark.parametrize("scaling", preprocessing.SCALINGS)
def test_constant_columns_divide_by_no_zero(scaling):
  x = np.concatenate([_X, np.zeros((60, 1)), np.full((60, 1), 7.0)], 1)
  data = base.from_arrays(x, _Y, scaling=scaling)
  assert np.isfinite(data.train.x).all()
  assert (data.train.x[:, 4] == 0).all()


@pytest.mark.parametrize(
  "y, task, names, outputs",
  [
    (np.arange(60) % 2, "binary", ("0", "1"), 1),
    (np.array(["b", "a"])[np.arange(60) % 2], "binary", ("a", "b"), 1),
    (_Y, "multiclass", ("0", "1", "2"), 3),
    (np.arange(60) % 2 == 0, "binary", ("False", "True"), 1),
    (np.arange(60), "regression", (), 1),
    (np.arange(60) % 3 + 0.5, "regression", (), 1),
    (np.array([0, "a", 2.5], object)[_Y], "multiclass", ("0", "2.5", "a"), 3),
  ],
)
def test_the_task_is_inferred(y, task, names, outputs):
  data = base.from_arrays(_X, y)
  assert (data.task, data.class_names, data.num_outputs) == (task, names, outputs)
  assert data.num_classes == len(names)
  assert data.train.y.dtype == (np.float32 if task == "regression" else np.int32)


def test_labels_follow_the_class_names():
  words = np.array(["pear", "apple", "fig"])[_Y]
  data = base.from_arrays(_Y[:, None], words, scaling="none")
  assert data.class_names == ("apple", "fig", "pear")
  code = {0: 2, 1: 0, 2: 1}
  assert data.test.y.tolist() == [code[int(x)] for x in data.test.x[:, 0]]


def test_regression_targets_are_standardised_and_can_be_restored():
  y = 1e9 + np.arange(60) * 0.5  # beyond what float32 tells apart
  data = base.from_arrays(_X, y)
  info = data.preprocessing["target"]
  assert data.train.y.mean() == pytest.approx(0, abs=1e-5)
  assert data.train.y.std() == pytest.approx(1, abs=1e-5)
  rows = base.split_indices(None, 60, seed=0)
  restored = data.test.y.astype(float) * info["scale"] + info["mean"]
  np.testing.assert_allclose(restored - 1e9, y[rows.test] - 1e9, atol=1e-4)


def test_names_can_be_given_and_preprocessing_is_json():
  names = ["a", "b", "c", "d"]
  x = _X.copy()
  x[::4, 2] = np.nan
  data = base.from_arrays(x, _Y, feature_names=names, class_names=["x", "y", "z"])
  assert data.feature_names == ("a", "b", "c", "d", "c_missing")
  assert data.class_names == ("x", "y", "z")
  stored = json.loads(json.dumps(data.preprocessing, allow_nan=False))
  assert preprocessing.feature_names(stored["features"]) == list(data.feature_names)
  assert stored["target"]["classes"] == ["x", "y", "z"]
  assert np.isfinite(data.train.x).all()


def test_given_test_rows_are_the_test_split():
  data = base.from_arrays(_X, _Y, x_test=_X[:6] + 100, y_test=_Y[:6])
  assert len(data.test.y) == 6 and data.test.x.min() > 10
  assert len(data.train.y) + len(data.valid.y) == 60


def test_describe_says_rows_features_and_classes():
  text = base.describe(base.from_arrays(_X, _Y, name="made"))
  assert text == "made: 38 train + 10 valid + 12 test rows, 4 features, 3 classes"


def _with(values, row, value):
  values = np.array(values, float)
  values[row] = value
  return values


@pytest.mark.parametrize(
  "x, y, options, message",
  [
    (np.zeros((0, 4)), np.zeros(0), {}, "arrays is empty"),
    (_X, _Y[:-1], {}, "x has 60 rows and y has 59"),
    (_X[:9], _Y[:9], {}, "9 rows; at least 10"),
    (_X, _with(_Y, [4, 9], np.nan), {}, "2 NaN or infinite values, the first in row 5"),
    (_X, _with(_Y, 7, np.inf), {}, "1 NaN or infinite values, the first in row 8"),
    (_X, np.array(["a", None, "b"], object)[_Y], {}, "20 missing.*first in row 2"),
    (_X.astype(str), _Y, {}, "x must be numbers"),
    (_with(_X, (2, 1), -np.inf), _Y, {}, "x is infinite in row 3, column 2"),
    (_X, np.zeros(60, int), {}, "one class only \\('0'\\)"),
    (_X, np.repeat([0, 1], [58, 2]), {}, "class '1' has 2 rows.*at least 3"),
    (_X, _Y, dict(task="binary"), "two classes, this one has 3"),
    (_X, _Y, dict(task="ranking"), "unknown task 'ranking'"),
    (_X, _Y.astype(str), dict(task="regression"), "needs a target of numbers"),
    (_X, np.ones(60), dict(task="regression"), "1.0 in every row"),
    (_X, _Y, dict(valid_fraction=1.5), "valid_fraction"),
    (_X, _Y, dict(scaling="log"), "unknown scaling 'log'"),
    (_X, _Y, dict(x_test=_X), "go together"),
    (_X, _Y, dict(x_test=_X[:, :3], y_test=_Y), "rows of x have shape"),
    (_X, _Y, dict(x_test=_X, y_test=_Y[:5]), "x_test has 60 rows and y_test has 5"),
    (_X[_Y > 0], _Y[_Y > 0], dict(x_test=_X, y_test=_Y), "class '0' has no train row"),
    (_X, _Y, dict(class_names=["a"]), "1 class names for 3 classes"),
    (_X, _Y, dict(feature_names=["a"]), "1 feature names for 4 features"),
    (_X, _Y[:, None], {}, "must be one column"),
    (_X, np.array(["a", " ", b"\t"], object)[_Y], {}, "40 missing.*first in row 2"),
    (_X, np.array(["a", " ", "b"])[_Y], {}, "20 missing.*first in row 2"),
    (np.array(3.0), _Y, {}, "x is a single value"),
    (_X, np.array(1), {}, "y is a single value"),
    (_X, _Y, dict(x_test=np.array(1.0), y_test=_Y), "x_test is a single value"),
    (_X, _Y, dict(x_test=_X, y_test=1), "y_test is a single value"),
    (_X[:12], np.arange(12) % 4, dict(test_fraction=0.2), "cannot be split"),
  ],
)
def test_mistakes_are_one_line(x, y, options, message):
  with pytest.raises(InputError, match=message) as error:
    base.from_arrays(x, y, **options)
  assert "\n" not in str(error.value)
