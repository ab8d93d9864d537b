import json
import pathlib
import subprocess
import sys
import textwrap

import pytest

import experiments
import run

ROOT = pathlib.Path(run.__file__).resolve().parent

TOY = '''
"""A toy that trains nothing.

More about the toy.
"""

import dataclasses

from nasjax.core.config import field
from nasjax.core.types import InputError


@dataclasses.dataclass(frozen=True)
class Strategy:
  learning_rate: float = field(0.1, "of nothing")
  rounds: int = field(10, "how many")
  mode: str = field("best", "which", ("best", "last"))


@dataclasses.dataclass(frozen=True)
class Config:
  strategy: Strategy = Strategy()
  action: str = field("finish", "what happens")

  def smoke(self):
    strategy = dataclasses.replace(self.strategy, rounds=1)
    return dataclasses.replace(self, strategy=strategy)


def _long(config):
  return dataclasses.replace(config, strategy=Strategy(learning_rate=0.5, rounds=99))


def _short(config):
  rounds = config.strategy.rounds // 2
  return dataclasses.replace(
    config, strategy=dataclasses.replace(config.strategy, rounds=rounds)
  )


PRESETS = {"long": _long, "same": lambda config: config}
SCALES = {"short": _short}


def run(config, run):
  run.begin()
  run.log("started")
  if config.action == "mistake":
    raise InputError("the column is\\n missing")
  if config.action == "bug":
    raise KeyError("bug")
  if config.action == "interrupt":
    raise KeyboardInterrupt
  run.interrupted = config.action == "end in order"
  run.write_summary({"status": "finished", "best_arch": "8 relu", "best_score": 0.5})
'''


@pytest.fixture
def toy(tmp_path, monkeypatch):
  """A folder of experiments, and a working folder to run them in."""
  folder = tmp_path / "experiments"
  folder.mkdir()
  files = {
    "toy": TOY,
    "other": '"""Another."""\nimport common_x\nConfig = 1\ndef run(c, r): ...',
    "common_x": "class Config: ...\ndef run(c, r): ...",
    "_hidden": "class Config: ...\ndef run(c, r): ...",
    "no_run": '"""Only a config."""\nclass Config: ...',
    "no_config": "def run(c, r): ...",
  }
  for name, text in files.items():
    (folder / f"{name}.py").write_text(textwrap.dedent(text).lstrip())
  monkeypatch.setattr(run, "_EXPERIMENTS", folder)
  monkeypatch.setattr(experiments, "__path__", [str(folder)])
  monkeypatch.delitem(sys.modules, "experiments.toy", raising=False)
  monkeypatch.chdir(tmp_path)
  yield tmp_path
  sys.modules.pop("experiments.toy", None)


def config_of(workdir):
  return json.loads((workdir / "config.json").read_text())["config"]


def mistake(capsys, *arguments):
  """The one line that a mistaken command line answers with."""
  assert run.main(arguments) == 2
  out, err = capsys.readouterr()
  assert err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1
  assert "Traceback" not in err
  return err


def test_only_experiments_are_listed_and_none_is_imported(toy):
  assert run.experiments() == {
    "other": "Another.",
    "toy": "A toy that trains nothing.",
  }
  assert "experiments.toy" not in sys.modules


@pytest.mark.parametrize("flag", ["--help", "-h", "-help"])
def test_help_lists_the_experiments(toy, capsys, flag):
  assert run.main([flag]) == 0
  out = capsys.readouterr().out
  assert "--experiment=NAME" in out and "--overwrite" in out
  assert "  other  Another.\n  toy    A toy that trains nothing.\n" in out


@pytest.mark.parametrize("named", [["--experiment=toy"], ["--experiment", "toy"]])
def test_help_of_an_experiment(toy, capsys, named):
  assert run.main([*named, "--help"]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert lines[0] == "A toy that trains nothing."
  for flag, text in {
    "--config.preset=NAME": "start from a named configuration (long | same)",
    "--config.scale=NAME": "the same at another size (short)",
    "--config.strategy.learning_rate=0.1": "of nothing",
    "--config.strategy.mode=best": "which (best | last)",
    "--workdir=FOLDER": "where everything goes (default runs/NAME, runs/NAME_seed1)",
  }.items():
    (line,) = [line for line in lines if line.strip().startswith(flag)]
    assert line.split(flag)[1].strip() == text
  table = [line for line in lines if line.startswith("  --config.")][1:]
  starts = {len(line) - len(line.split("  ")[-1].lstrip()) for line in table[1:]}
  assert len(starts) == 1  # one column
  assert not (toy / "runs").exists()


def test_help_gives_what_is_long_a_line_of_its_own():
  rows = [("--a=1", "one"), ("--many=" + "x" * 60, "long"), ("--ab=2", "two")]
  assert run._aligned(rows) == [
    "  --a=1   one",
    "  --many=" + "x" * 60,
    "          long",
    "  --ab=2  two",
  ]


@pytest.mark.parametrize(
  ("arguments", "expected"),
  [
    ([], {"learning_rate": 0.1, "rounds": 10}),
    (["--smoke"], {"rounds": 1}),
    (["--config.preset=long"], {"learning_rate": 0.5, "rounds": 99}),
    (["--config.preset=long", "--smoke"], {"learning_rate": 0.5, "rounds": 1}),
    (
      ["--smoke", "--config.strategy.rounds=10", "--config.preset=long"],
      {"learning_rate": 0.5, "rounds": 10},
    ),
    (["--config.strategy.mode", "last"], {"mode": "last"}),
    (["--config.scale=short"], {"learning_rate": 0.1, "rounds": 5}),
    (
      ["--config.scale=short", "--config.preset=long"],
      {"learning_rate": 0.5, "rounds": 49},
    ),
  ],
)
def test_preset_then_scale_then_smoke_then_flags(toy, arguments, expected):
  assert run.main(["--experiment=toy", "--workdir=w", *arguments]) == 0
  strategy = config_of(toy / "w")["strategy"]
  assert strategy == {"learning_rate": 0.1, "rounds": 10, "mode": "best"} | expected


@pytest.mark.parametrize(
  ("arguments", "folder"),
  [
    ([], "toy"),
    (["--seed=7"], "toy_seed7"),
    (["--smoke"], "toy_smoke"),
    (["--seed=7", "--smoke"], "toy_seed7_smoke"),
  ],
)
def test_default_workdir(toy, arguments, folder):
  assert run.main(["--experiment=toy", *arguments]) == 0
  assert [path.name for path in (toy / "runs").iterdir()] == [folder]


@pytest.mark.parametrize(
  ("arguments", "parts"),
  [
    ([], ["--experiment=NAME", "other, toy"]),
    (["--seed=1"], ["--experiment=NAME", "other, toy"]),
    (["--experiment"], ["unknown experiment ''"]),
    (["--experiment=tyo"], ["'tyo'", "Did you mean toy?", "other, toy"]),
    (["--experiment=a\nb"], ["unknown experiment"]),
    (["--experiment=common_x"], ["unknown experiment 'common_x'"]),
  ],
)
def test_no_experiment_or_an_unknown_one(toy, capsys, arguments, parts):
  err = mistake(capsys, *arguments)
  assert all(part in err for part in parts)
  assert not (toy / "runs").exists()


@pytest.mark.parametrize(
  ("argument", "parts"),
  [
    ("--config.strategy.round=3", ["did you mean --config.strategy.rounds?"]),
    ("--learning_rate=3", ["did you mean --config.strategy.learning_rate?"]),
    ("--zzz", ["unknown flag --zzz", "--help"]),
    ("--config.strategy.rounds=many", ["config.strategy.rounds", "many"]),
    ("--config.strategy.mode=worst", ["config.strategy.mode", "worst", "best|last"]),
    ("--config.strategy.learning_rate=nan", ["learning_rate", "finite"]),
    ("--config.preset=table9", ["config.preset", "long|same"]),
    ("--config.scale=long", ["config.scale", "short"]),
    ("--seed=-1", ["seed"]),
    ("--seed=4294967296", ["seed"]),
    ("--smoke=perhaps", ["smoke", "perhaps"]),
    ("stray", ["'stray'", "--name=value"]),
  ],
)
def test_a_mistaken_flag_answers_one_line_before_anything_runs(
  toy, capsys, argument, parts
):
  err = mistake(capsys, "--experiment=toy", argument)
  assert all(part in err for part in parts), err
  assert not (toy / "runs").exists()


def test_another_run_in_the_workdir(toy, capsys):
  assert run.main(["--experiment=toy"]) == 0
  capsys.readouterr()
  arguments = ["--experiment=toy", "--config.strategy.rounds=11"]
  err = mistake(capsys, *arguments)
  assert "config.strategy.rounds: 10 -> 11" in err
  assert run.main([*arguments, "--overwrite"]) == 0
  assert config_of(toy / "runs" / "toy")["strategy"]["rounds"] == 11


def test_a_finished_run_shows_its_result_and_does_not_run_again(toy, capsys):
  assert run.main(["--experiment=toy"]) == 0
  assert "started" in capsys.readouterr().out
  assert run.main(["--experiment=toy"]) == 0
  out = capsys.readouterr().out
  assert "started" not in out
  for part in (
    "8 relu",
    "0.5",
    str(pathlib.Path("runs/toy/report.html")),
    "--overwrite",
  ):
    assert part in out


def test_a_mistake_found_by_the_experiment_is_one_line(toy, capsys):
  err = mistake(capsys, "--experiment=toy", "--config.action=mistake")
  assert err == "error: the column is missing\n"


def test_a_bug_shows_its_traceback(toy):
  with pytest.raises(KeyError, match="bug"):
    run.main(["--experiment=toy", "--config.action=bug"])


@pytest.mark.parametrize("action", ["interrupt", "end in order"])
def test_interruption_exits_with_130(toy, action):
  assert run.main(["--experiment=toy", f"--config.action={action}"]) == 130
  assert "started" in (toy / "runs" / "toy" / "log.txt").read_text()


def command_line(*arguments, cwd):
  command = [sys.executable, str(ROOT / "run.py"), *arguments]
  return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60)


def test_real_command_line_from_another_folder(tmp_path):
  result = command_line("--experiment=nothing_like_it", cwd=tmp_path)
  assert result.returncode == 2 and result.stdout == ""
  assert result.stderr.startswith("error: unknown experiment 'nothing_like_it'")
  assert result.stderr.count("\n") == 1
  result = command_line("--help", cwd=tmp_path)
  assert result.returncode == 0 and result.stderr == ""
  for name in run.experiments():
    assert f"  {name} " in result.stdout
  assert list(tmp_path.iterdir()) == []
