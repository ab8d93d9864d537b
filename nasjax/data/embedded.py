"""scikit-learn's own data sets: real, small, and there without a network."""

from sklearn import datasets

from nasjax.core.types import InputError
from nasjax.data.base import Dataset, from_arrays

_LOADERS = {
  "digits": (datasets.load_digits, "pixels"),
  "breast_cancer": (datasets.load_breast_cancer, "standard"),
  "iris": (datasets.load_iris, "standard"),
  "wine_cultivars": (datasets.load_wine, "standard"),
  "diabetes": (datasets.load_diabetes, "standard"),
}
NAMES = tuple(_LOADERS)


def load(
  name: str = "digits",
  *,
  seed: int = 0,
  valid_fraction: float = 0.2,
  test_fraction: float = 0.2,
) -> Dataset:
  """One of scikit-learn's sets (digits: 1,797 handwritten digits of 8 x 8 pixels).

  Args:
    name: out of `NAMES`.
    seed: draws the splits.
    valid_fraction: of the rows that are not test.
    test_fraction: of all rows.

  Raises:
    InputError: unknown name.
  """
  if name not in _LOADERS:
    raise InputError(f"no embedded data set {name!r}; there are {', '.join(NAMES)}")
  loader, scaling = _LOADERS[name]
  bunch = loader()
  y = bunch.target
  if "target_names" in bunch and name != "digits":
    y = bunch.target_names[y]
  return from_arrays(
    bunch.data,
    y,
    name=name,
    seed=seed,
    valid_fraction=valid_fraction,
    test_fraction=test_fraction,
    scaling=scaling,
  )
