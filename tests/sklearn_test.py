import pickle
import time

import jax
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_iris
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.estimator_checks import check_estimator

from nasjax import MLPSearchClassifier, MLPSearchRegressor
from nasjax import sklearn as ours
from nasjax.data import standalone
from nasjax.runtime import CompileCounter

# A space of one architecture: of the fifty fits of scikit-learn's checks each has other
# shapes, and compiling would take most of the time.
ONE = dict(
  strategy="random_search",
  evaluations=1,
  population=1,
  epochs=2,
  widths=(32,),
  activations=("relu",),
  max_layers=2,
)
FEW = dict(
  strategy="random_search",
  evaluations=4,
  population=2,
  epochs=5,
  refit_epochs=50,
  learning_rate=0.01,
  widths=(8, 16),
  max_layers=3,
  random_state=0,
)


@pytest.fixture(scope="module", autouse=True)
def _quick():
  """As `quick_compile`, but for what the tests of this module share, too."""
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def iris():
  return load_iris(return_X_y=True)


@pytest.fixture(scope="module")
def fitted(iris):
  x, y = iris
  return MLPSearchClassifier(**FEW).fit(x[::2], y[::2])


@pytest.mark.parametrize("member", [MLPSearchClassifier, MLPSearchRegressor])
def test_scikit_learns_own_checks_pass(member):
  results = check_estimator(member(**ONE), on_fail=None, on_skip=None)
  assert len(results) > 40
  not_passed = {each["check_name"] for each in results if each["status"] != "passed"}
  # Skipped: scikit-learn asks for pandas and for an environment variable.
  skipped = {each["check_name"] for each in results if each["status"] == "skipped"}
  assert not_passed == skipped
  assert skipped <= {
    "check_array_api_input",
    "check_classifier_data_not_an_array",
    "check_regressor_data_not_an_array",
  }


def test_iris_is_learned_and_the_search_can_be_read(fitted, iris):
  x, y = iris
  assert fitted.score(x[1::2], y[1::2]) > 0.9
  probabilities = fitted.predict_proba(x)
  assert probabilities.shape == (150, 3)
  np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-6)
  first, *others = fitted.leaderboard_
  assert first["arch"] == fitted.best_arch_ and first["score"] == fitted.best_score_
  assert len(others) == 3 and first["score"] >= max(each["score"] for each in others)
  assert len({each["arch"] for each in fitted.leaderboard_}) == 4
  assert first.keys() == {"arch", "score", "num_params", "epochs_run", "seconds"}


def test_two_fits_are_the_same_and_the_second_compiles_nothing(fitted, iris):
  x, y = iris
  with CompileCounter() as compiles:
    again = clone(fitted).fit(x[::2], y[::2])
  assert compiles.count == 0
  np.testing.assert_array_equal(again.predict_proba(x), fitted.predict_proba(x))
  assert [e["arch"] for e in again.leaderboard_] == [
    e["arch"] for e in fitted.leaderboard_
  ]
  other = clone(fitted).set_params(random_state=1).fit(x[::2], y[::2])
  assert np.abs(other.predict_proba(x) - fitted.predict_proba(x)).max() > 0


def test_labels_of_any_type_and_missing_values(fitted, iris):
  x, y = iris
  names = np.array(["setosa", "versicolor", "virginica"], object)
  gaps = np.where(np.random.default_rng(0).random(x.shape) < 0.1, np.nan, x)
  model = clone(fitted).fit(gaps[::2], names[y[::2]])
  assert model.classes_.tolist() == names.tolist()
  assert np.mean(model.predict(gaps[1::2]) == names[y[1::2]]) > 0.85
  # All of one row missing is every median, and still an answer.
  assert np.isfinite(model.predict_proba(np.full((1, 4), np.nan))).all()


def test_a_pipeline_in_a_grid_search_in_cross_validation_and_pickle(iris):
  x, y = iris
  pipeline = make_pipeline(MinMaxScaler(), MLPSearchClassifier(**FEW))
  assert cross_val_score(pipeline, x, y, cv=2).mean() > 0.9
  name = "mlpsearchclassifier__learning_rate"
  grid = GridSearchCV(pipeline, {name: [1e-5, 0.01]}, cv=2).fit(x, y)
  assert grid.best_params_ == {name: 0.01}
  copy = pickle.loads(pickle.dumps(grid))
  np.testing.assert_array_equal(copy.predict_proba(x), grid.predict_proba(x))


def test_a_regressor_answers_in_the_targets_unit():
  x, y = load_diabetes(return_X_y=True)
  model = MLPSearchRegressor(**FEW).fit(x[:300], y[:300] + 1000)
  assert model.score(x[300:], y[300:] + 1000) > 0.35
  assert model.predict(x).mean() == pytest.approx(1000 + y.mean(), rel=0.02)
  assert not hasattr(model, "predict_proba") and not hasattr(model, "classes_")


@pytest.mark.parametrize("strategy", sorted(ours.STRATEGIES))
def test_every_strategy_by_name(strategy, iris):
  x, y = iris
  options = FEW | {"strategy": strategy, "evaluations": 6}
  model = MLPSearchClassifier(**options).fit(x, y)
  assert 3 <= len(model.leaderboard_) <= 6 and model.score(x, y) > 0.85


def test_time_ends_a_search(iris):
  x, y = iris
  options = FEW | {"evaluations": None}
  start = time.monotonic()
  model = MLPSearchClassifier(**options, time_budget_seconds=1e-3).fit(x, y)
  assert len(model.leaderboard_) == 2  # the round that was on
  model.set_params(time_budget_seconds=1.0).fit(x, y)
  assert len(model.leaderboard_) > 2 and time.monotonic() - start < 120


def test_a_saved_model_predicts_the_same_alone(fitted, iris, tmp_path):
  x, _ = iris
  fitted.save(tmp_path / "best")
  alone = standalone.load(tmp_path / "best")
  np.testing.assert_array_equal(
    standalone.predict(alone, {"x": x}), fitted.predict_proba(x)
  )
  names = {path.name for path in (tmp_path / "best").iterdir()}
  assert {"genotype.json", "predict.py", "model.onnx", "model.jaxexport"} <= names


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"strategy": "luck"}, "unknown strategy 'luck'; there are random_search, local"),
    ({"evaluations": None}, "evaluations or time_budget_seconds"),
    ({"evaluations": 0}, "evaluations must be at least 1, got 0"),
    ({"population": 0}, "population must be at least 1"),
    ({"time_budget_seconds": 0.0}, "time_budget_seconds must be positive"),
    ({"learning_rate": -1.0}, "learning_rate must be positive"),
    ({"validation_fraction": 1.0}, "validation_fraction must be between 0 and 1"),
    ({"widths": (0,)}, "widths must be positive"),
    ({"activations": ("swish",)}, "activations must be out of"),
  ],
)
def test_what_cannot_be_is_refused_by_name(changes, message, iris):
  with pytest.raises(ValueError, match=message):
    MLPSearchClassifier(**FEW | changes).fit(*iris)


def test_data_that_cannot_be_learned_from_and_a_model_that_is_not_there(tmp_path):
  model = MLPSearchClassifier(**FEW)
  with pytest.raises(ValueError, match="all rows are of one class, 7"):
    model.fit(np.ones((9, 2)), np.full(9, 7))
  with pytest.raises(ValueError, match="infinity"):
    model.fit(np.full((9, 2), np.inf), np.arange(9) % 2)
  for use in (lambda: model.predict(np.ones((1, 2))), lambda: model.save(tmp_path)):
    with pytest.raises(NotFittedError):
      use()


def test_few_rows_with_a_class_of_one():
  x = np.arange(10.0).reshape(5, 2)
  model = MLPSearchClassifier(**FEW).fit(x, ["a", "a", "b", "b", "c"])
  assert model.predict_proba(x).shape == (5, 3)
