"""nasjax: neural architecture search as pure JAX functions.

What a search on arrays of one's own needs is here by name (README has the example).
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
  "MLPChain": "nasjax.spaces.mlp_chain",
  "MLPSearchClassifier": "nasjax.sklearn",
  "MLPSearchRegressor": "nasjax.sklearn",
  "from_arrays": "nasjax.data.base",
  "random_search": "nasjax.strategies.random_search",
  "reinforce": "nasjax.strategies.reinforce",
  "trained": "nasjax.estimators.trained",
}
__all__ = ["__version__", *_HOMES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
  """Imported when asked for: JAX takes a second, and a mistyped flag should not."""
  if name not in _HOMES:
    raise AttributeError(f"module 'nasjax' has no attribute {name!r}")
  return getattr(importlib.import_module(_HOMES[name]), name)
