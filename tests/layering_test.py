"""The layers of BUILD.md, read off the imports."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
LAYERS = {
  "core": 0,
  "spaces": 1,
  "data": 1,
  "parallel": 1,
  "results": 1,
  "networks": 2,
  "predictors": 3,
  "training": 3,
  "strategies": 4,
  "estimators": 4,
  "search": 5,
  "runtime": 5,
  "workdir": 6,
  "sklearn": 6,
}
# What a room may not import although it lies below.
FORBIDDEN = {"strategies": {"networks", "training", "data", "parallel", "results"}}
FILES = sorted((ROOT / "nasjax").rglob("*.py"))
# NATS-Bench's authors ship pickles, and this one module reads them, as plain data.
UNPICKLER = ROOT / "nasjax/data/plain_pickle.py"
PICKLES = {"pickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def imports(path):
  """Every module that a file imports, dotted."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      found |= {f"{node.module}.{alias.name}" for alias in node.names}
  return found


def room(path):
  """The room of a file: its folder, or its own name at the top."""
  return path.relative_to(ROOT / "nasjax").parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_imports_its_own_room_and_below(path):
  mine = room(path)
  for name in imports(path):
    parts = name.split(".")
    if parts[0] != "nasjax" or len(parts) < 2 or parts[1] not in LAYERS:
      continue
    assert parts[1] == mine or LAYERS[parts[1]] < LAYERS[mine], f"{mine} -> {name}"
    assert parts[1] not in FORBIDDEN.get(mine, ()), f"{mine} -> {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_flags_and_global_settings_have_one_home(path):
  names, text = imports(path), path.read_text()
  if path != ROOT / "nasjax/core/config.py":
    assert not any(name.startswith("absl") for name in names)
  if path != ROOT / "nasjax/parallel/processes.py":
    assert "jax.distributed" not in text
    assert "jax.config" not in text or room(path) == "runtime"
  assert not any(name.split(".")[0] in ("experiments", "run") for name in names)
  allowed = {"pickle"} if path == UNPICKLER else set()
  assert {name.split(".")[0] for name in names} & PICKLES <= allowed


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_pickle_is_never_simply_loaded(path):
  """Loading a pickle runs what it names.

  So nothing of `pickle` may be used but `pickle.Unpickler`, and that only as the base
  of a class with a `find_class` of its own that never calls the inherited one;
  NumPy's door to pickles stays shut.
  """
  tree = ast.parse(path.read_text())
  bases = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      assert not any(a.name == "pickle" and a.asname for a in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.module != "pickle"
    elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
      assert isinstance(node.value, ast.Constant) and node.value.value is False
    elif isinstance(node, ast.ClassDef):
      for base in node.bases:
        if ast.unparse(base) == "pickle.Unpickler":
          own = [n for n in node.body if getattr(n, "name", None) == "find_class"]
          assert len(own) == 1 and "super" not in ast.unparse(own[0])
          bases.add(id(base.value))
  for node in ast.walk(tree):
    if isinstance(node, ast.Name) and node.id == "pickle":
      assert id(node) in bases, f"{path}, line {node.lineno} uses pickle"


def test_every_room_is_known():
  rooms = {room(path) for path in FILES} - {"__init__"}
  assert rooms <= set(LAYERS)
