"""What README promises in code blocks is run."""

import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[1]


def test_the_library_example_runs(capsys):
  (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
  exec(compile(code, "README.md", "exec"), {})
  arch, score = capsys.readouterr().out.strip().rsplit(" ", 1)
  assert re.fullmatch(r"\d+ \w+( - (\d+ \w+|dropout 0\.2))*", arch)
  assert 0.5 < float(score) <= 1


def test_every_file_and_experiment_it_names_exists():
  text = (ROOT / "README.md").read_text()
  for name in re.findall(r"`(mlpnas_\w+)`", text):
    assert (ROOT / "experiments" / f"{name}.py").is_file()
  for path in re.findall(r"\]\(([^)#:]+)\)", text):
    assert (ROOT / path).is_file(), path
