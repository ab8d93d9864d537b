import numpy as np
import pytest

from nasjax.core.types import InputError
from nasjax.data import embedded


@pytest.mark.parametrize(
  "name, task, rows, features, classes",
  [
    ("digits", "multiclass", 1797, 64, 10),
    ("breast_cancer", "binary", 569, 30, 2),
    ("iris", "multiclass", 150, 4, 3),
    ("wine_cultivars", "multiclass", 178, 13, 3),
    ("diabetes", "regression", 442, 10, 0),
  ],
)
def test_every_set_loads(name, task, rows, features, classes):
  data = embedded.load(name)
  assert (data.name, data.task) == (name, task)
  assert sum(len(s.y) for s in (data.train, data.valid, data.test)) == rows
  assert (data.num_features, data.num_classes) == (features, classes)
  assert len(data.feature_names) == features
  assert np.isfinite(data.train.x).all()


def test_names_are_those_that_load():
  assert len(embedded.NAMES) == 5
  with pytest.raises(InputError, match="'mnist'.*digits, breast_cancer, iris"):
    embedded.load("mnist")


def test_digits_are_pixels_between_nought_and_one():
  data = embedded.load("digits", seed=4)
  assert data.train.x.min() == 0 and data.train.x.max() == 1


def test_class_names_are_scikit_learns():
  assert embedded.load("breast_cancer").class_names == ("benign", "malignant")
