"""What README promises in code blocks is run."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
FOLDERS = ("nasjax", "experiments", "tests", "benchmarks")
FILES = [path.as_posix() for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
FILES += [path.as_posix() for path in ROOT.iterdir()]


def test_the_library_example_runs(capsys):
  (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
  exec(compile(code, "README.md", "exec"), {})
  arch, score = capsys.readouterr().out.strip().rsplit(" ", 1)
  assert re.fullmatch(r"\d+ \w+( - (\d+ \w+|dropout 0\.2))*", arch)
  assert 0.5 < float(score) <= 1


@pytest.mark.parametrize("page", ["README.md", "BUILD.md", "benchmarks/RESULTS.md"])
def test_every_file_and_experiment_it_names_exists(page):
  text = (ROOT / page).read_text()
  for name in re.findall(r"`(mlpnas_\w+)`", text):
    assert (ROOT / "experiments" / f"{name}.py").is_file()
  for path in re.findall(r"\]\(([^)#:]+)\)", text):
    assert (ROOT / path).is_file(), path
  for module in re.findall(r"python -m ([\w.]+)", text):
    path = ROOT / module.replace(".", "/")
    assert module in ("venv", "pip") or path.with_suffix(".py").is_file(), module
  for name in re.findall(r"`([\w/]+\.(?:py|cfg|toml))`", text):
    assert any(f"/{path}".endswith(f"/{name}") for path in FILES), name
