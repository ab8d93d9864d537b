"""Every test runs with reused keys and silent rank promotion turned into errors."""

import os
import pathlib
import tempfile

# Two workers share two cores as it is; and once, XLA's threads waited for each other in
# a vmapped search for good (jax 0.10.2), which one thread cannot.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

import jax  # noqa: E402
import pytest  # noqa: E402

from nasjax import runtime  # noqa: E402

jax.config.update("jax_debug_key_reuse", True)
jax.config.update("jax_numpy_rank_promotion", "raise")

# What a test caches is neither this user's nor from an earlier session. The workers of
# one session share it: what one has compiled another need not.
if "PYTEST_XDIST_WORKER" not in os.environ:
  _CACHE = tempfile.TemporaryDirectory(prefix="nasjax-tests-")
  os.environ["XDG_CACHE_HOME"] = _CACHE.name
runtime.use_compilation_cache(None)

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture
def quick_compile():
  """Programs that run once or twice: XLA had better not spend long on them."""
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
  """The folder of real data beside the checkout; the test skips where it is absent."""
  folder = ROOT.parent / "shared" / "data"
  if not folder.is_dir():
    pytest.skip("no shared data beside this checkout")
  return folder
