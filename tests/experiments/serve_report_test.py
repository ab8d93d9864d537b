"""The command that serves a run's report, and what it refuses."""

import re
import urllib.request

import pytest

import run as command_line
from nasjax.core import interrupts
from nasjax.results import records


def serve(*arguments):
  return command_line.main(["--experiment=serve_report", *arguments])


@pytest.fixture
def folder(tmp_path):
  identity = {"experiment": "mlpnas_digits", "seed": 0, "config": {}}
  records.write_json(tmp_path / "config.json", identity)
  return tmp_path


def test_it_serves_until_it_is_interrupted(folder, capsys, monkeypatch):
  pages = []

  def then_stop():
    address = re.search(r"http://127.0.0.1:\d+/", capsys.readouterr().out)[0]
    with urllib.request.urlopen(address) as answer:
      pages.append(answer.read().decode())
    raise KeyboardInterrupt

  monkeypatch.setattr(interrupts, "check", then_stop)
  assert serve(f"--config.workdir={folder}", "--config.port=0") == 0
  assert "Nothing is measured yet." in pages[0]
  assert sorted(path.name for path in folder.iterdir()) == ["config.json"]


@pytest.mark.parametrize(
  ("flags", "said"),
  [
    ((), "which run?"),
    (("--config.workdir=nowhere",), "holds no run"),
    (("--config.workdir=.", "--config.refresh_seconds=0"), "holds no run"),
    (("--config.workdir=FOLDER", "--config.refresh_seconds=0"), "must be positive"),
    (("--config.workdir=FOLDER", "--config.port=-1"), "cannot listen"),
  ],
)
def test_what_cannot_be_is_one_line(folder, capsys, flags, said):
  flags = [flag.replace("FOLDER", str(folder)) for flag in flags]
  assert serve(*flags) == 2
  error = capsys.readouterr().err
  assert said in error and error.count("\n") == 1
