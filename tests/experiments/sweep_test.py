"""A sweep: what it runs, what it skips, what it says, and a worker that is killed."""

import json
import threading
import time

import psutil
import pytest

import run as command_line
from experiments import sweep
from experiments.common_ray import RayConfig
from nasjax.core.types import InputError

SMALL = "--smoke --config.strategy.rounds=2 --config.baseline=false"


def config(**values):
  return sweep.Config(**{"runs": ("mlpnas_digits",), "seeds": "0", **values})


def start(workdir, *arguments):
  every = [f"--workdir={workdir}", "--config.runs=mlpnas_digits", *arguments]
  return command_line.main(["--experiment=sweep", *every])


def test_seeds_and_grids_are_read():
  assert sweep.parse_seeds("2:5") == [2, 3, 4]
  assert sweep.parse_seeds("0,7,9:11") == [0, 7, 9, 10]
  assert sweep.parse_grid("") == [()]
  grid = sweep.parse_grid("strategy.entropy=0,0.01; --config.estimator.epochs=5")
  assert grid == [
    (("strategy.entropy", "0"), ("estimator.epochs", "5")),
    (("strategy.entropy", "0.01"), ("estimator.epochs", "5")),
  ]
  for text in ("", "x", "3:3", "-1", "1:"):
    with pytest.raises(InputError, match="config.seeds"):
      sweep.parse_seeds(text)
  for text in ("strategy.entropy", "=1", "a=1,,2"):
    with pytest.raises(InputError, match="config.grid"):
      sweep.parse_grid(text)


def test_a_sweep_is_the_product():
  names = ("mlpnas_digits", "mlpnas_wine")
  grid = "strategy.entropy=0,0.01"
  tasks = sweep.plan(config(runs=names, seeds="0:3", grid=grid), "runs")
  assert len(tasks) == 12 == len({task.folder for task in tasks})
  assert tasks[0].label == "mlpnas_digits, strategy.entropy=0, seed 0"
  assert "--config.strategy.entropy=0" in tasks[0].arguments


def test_flags_of_all_and_of_one():
  names = ("mlpnas_digits", "mlpnas_wine")
  flags = "--smoke mlpnas_wine:--config.data.path=a:b.csv"
  digits, wine = sweep.plan(config(runs=names, flags=flags), "runs")
  assert "--smoke" in digits.arguments and "--smoke" in wine.arguments
  assert "--config.data.path=a:b.csv" in wine.arguments
  assert not any("data.path" in word for word in digits.arguments)


def test_runs_use_the_sweeps_cache_but_for_flags_of_their_own():
  names = ("mlpnas_digits", "mlpnas_wine")
  flags = "mlpnas_wine:--compilation_cache=off"
  tasks = sweep.plan(config(runs=names, flags=flags), "runs", "programs")
  read = [command_line.read(task.arguments).flags for task in tasks]
  assert [values.compilation_cache for values in read] == ["programs", "off"]
  plain = sweep.plan(config(runs=names[:1]), "runs")
  assert command_line.read(plain[0].arguments).flags.compilation_cache is None


@pytest.mark.parametrize(
  ("values", "said"),
  [
    ({"runs": ()}, "give --config.runs"),
    ({"runs": ("mlpnas_digit",)}, "Did you mean mlpnas_digits"),
    ({"grid": "strategy.entrop=0"}, "seed 0: unknown flag --config.strategy.entrop"),
    ({"grid": "strategy.entropy=high"}, "strategy.entropy"),
    ({"flags": "--workdir=x"}, "different for every run"),
    ({"flags": "'"}, "config.flags"),
    ({"runs": ("sweep",)}, "cannot be in a sweep"),
    ({"seeds": "1,1"}, "twice"),
    ({"ray": RayConfig(cpus=-1)}, "config.ray.cpus"),
  ],
)
def test_what_cannot_be_is_refused_before_any_run(values, said):
  with pytest.raises(InputError, match=said):
    sweep.plan(config(**values), "runs")


def test_one_after_the_other_and_what_is_done_is_not_done_again(tmp_path, capsys):
  workdir = tmp_path / "sweep"
  options = ["--config.seeds=0:2", "--config.engine=here", f"--config.flags={SMALL}"]
  assert start(workdir, *options) == 0
  summary = json.loads((workdir / "summary.json").read_text())
  assert summary["status"] == "finished" and summary["engine"] == "here"
  folders = [workdir / "runs" / f"mlpnas_digits-seed{seed}" for seed in (0, 1)]
  assert [run["state"] for run in summary["runs"]] == ["finished"] * 2
  assert [run["folder"] for run in summary["runs"]] == list(map(str, folders))
  (task,) = summary["tasks"]
  assert task["groups"][0]["finished_seeds"] == [0, 1]
  page = (workdir / "report.html").read_text()
  assert "The sweep" in page and "over seeds" in page
  # One run is lost; another seed is wanted.
  logs = [(folder / "log.txt").read_text() for folder in folders]
  (folders[1] / "summary.json").unlink()
  options[0] = "--config.seeds=0:3"
  assert start(workdir, *options) == 2
  assert "config.seeds" not in capsys.readouterr().out
  assert start(workdir, *options, "--overwrite") == 0
  assert (folders[0] / "log.txt").read_text() == logs[0]
  assert (folders[1] / "log.txt").read_text() != logs[1]
  summary = json.loads((workdir / "summary.json").read_text())
  assert [run["state"] for run in summary["runs"]] == ["finished"] * 3


def test_a_run_that_fails_is_told_and_the_others_go_on(tmp_path, capsys):
  workdir = tmp_path / "sweep"
  # More devices than there are.
  options = ["--config.seeds=0", "--config.engine=here", f"--config.flags={SMALL}"]
  options += ["--config.grid=mesh.population=1,99"]
  assert start(workdir, *options) == 2
  said = capsys.readouterr().err
  assert said.startswith("error: 1 of 2 runs failed") and "mesh.population" in said
  assert said.count("\n") == 1 and "tries them again" in said
  summary = json.loads((workdir / "summary.json").read_text())
  assert summary["status"] == "incomplete"
  states = {run["label"].split(", ")[1]: run["state"] for run in summary["runs"]}
  assert states == {"mesh.population=1": "finished", "mesh.population=99": "failed"}


def test_ray_tries_a_run_again_whose_worker_was_killed(tmp_path):
  pytest.importorskip("ray")
  workdir, killed = tmp_path / "sweep", []

  def kill():
    log = workdir / "runs" / "mlpnas_digits-seed1" / "records.jsonl"
    while not killed and not (workdir / "summary.json").exists():
      if log.exists() and log.read_text().count("\n") >= 6:
        for process in psutil.process_iter(["cmdline"]):
          if "ray::execute" in " ".join(process.info["cmdline"] or ()):
            process.kill()
            killed.append(process.pid)
      time.sleep(0.02)

  thread = threading.Thread(target=kill)
  thread.start()
  flags = SMALL.replace("rounds=2", "rounds=30")
  options = ["--config.seeds=1", "--config.engine=ray", f"--config.flags={flags}"]
  assert start(workdir, *options) == 0
  thread.join()
  assert len(killed) == 1
  folder = workdir / "runs" / "mlpnas_digits-seed1"
  assert json.loads((folder / "summary.json").read_text())["status"] == "finished"
  assert "it goes on" in (folder / "log.txt").read_text()
  lines = (folder / "records.jsonl").read_text().splitlines()
  indices = [json.loads(line)["index"] for line in lines]
  assert indices == list(range(len(indices)))
