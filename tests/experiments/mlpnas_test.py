"""Every experiment's smoke run end to end, its files checked; and its bad inputs."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import run as command_line
from experiments import common_run, common_search
from nasjax.data import wine
from nasjax.results import export
from nasjax.spaces.mlp_chain import MLPChain

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _quick(request):
  """Small jobs compile longer than they run; MNIST's does not."""
  if request.node.name != "test_mnist":
    request.getfixturevalue("quick_compile")


FILES = {
  "config.json",
  "records.jsonl",
  "control_records.jsonl",
  "metrics.jsonl",
  "summary.json",
  "report.html",
  "report.md",
  "log.txt",
}
SUMMARY = {
  "experiment",
  "seed",
  "num_evaluations",
  "num_failed",
  "best_arch",
  "best_score",
  "test_accuracy",
  "test_loss",
  "num_params",
  "majority_accuracy",
  "sklearn_test_accuracy",
  "random_search_test_accuracy",
  "holdout_bound",
  "search_seconds",
  "checkpoint_seconds",
  "compile_seconds",
  "num_compiles",
}
RECORD = {
  "index",
  "round",
  "genotype",
  "arch",
  "curve",
  "score",
  "epochs_run",
  "stopped_at_rung",
  "bracket",
  "num_params",
  "flops",
  "seconds",
  "predicted_score",
  "seed",
}
# Beside the search: others run the control and scikit-learn's baseline.
SEARCH_ONLY = ("--config.control=false", "--config.baseline=false")


def run(experiment, workdir, *flags):
  return command_line.main(
    [f"--experiment={experiment}", f"--workdir={workdir}", "--smoke", *flags]
  )


def read(path):
  return json.loads(path.read_text())


def check(workdir, experiment, task="multiclass", control=True):
  """What README promises of a run directory."""
  names = {path.name for path in workdir.iterdir()}
  assert names >= (FILES if control else FILES - {"control_records.jsonl"})
  assert any((workdir / "tensorboard").glob("events.out.tfevents.*"))
  summary = read(workdir / "summary.json")
  assert set(summary) >= SUMMARY
  assert summary["experiment"] == experiment and summary["status"] == "finished"
  lines = (workdir / "records.jsonl").read_text().splitlines()
  records = [json.loads(line) for line in lines]
  assert len(records) == summary["num_evaluations"] == 4
  assert [r["index"] for r in records] == [0, 1, 2, 3]
  space = MLPChain(widths=(8, 16), max_layers=3)
  for record in records:
    assert set(record) >= RECORD
    assert space.describe(np.array(record["genotype"])) == record["arch"]
    assert len(record["curve"]) == record["epochs_run"] == 2
  best = max(records, key=lambda r: r["score"])
  assert summary["best_arch"] == best["arch"]
  assert summary["best_score"] == pytest.approx(best["score"])
  exported = export.load_best(workdir / "best")
  assert exported.description["arch"] == best["arch"]
  assert exported.description["task"] == task
  names = {path.name for path in (workdir / "best").iterdir()}
  assert names == {*export.FILES, *export.PORTABLE_FILES}
  sizes = sum(array.size for array in exported.weights.values())
  assert sizes == best["num_params"] == summary["num_params"]
  report = (workdir / "report.html").read_text()
  assert best["arch"] in report and "<script" not in report
  return summary


def test_digits(tmp_path, capsys):
  workdir = tmp_path / "run"
  assert run("mlpnas_digits", workdir) == 0
  summary = check(workdir, "mlpnas_digits")
  assert summary["sklearn_test_accuracy"] > 0.95 > summary["majority_accuracy"]
  assert 0 < summary["holdout_bound"] < 0.2
  # The plan is a line of the log and figures of the metrics, round by round.
  rounds = (workdir / "metrics.jsonl").read_text().splitlines()[:2]
  assert all(json.loads(line)["search/plan_programs"] >= 1 for line in rounds)
  log = (workdir / "log.txt").read_text()
  assert "search, round 1: 2 children: " in log and "programs to compile" in log
  capsys.readouterr()
  # the same command again: nothing is run, nothing is touched
  before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*")}
  assert run("mlpnas_digits", workdir) == 0
  assert summary["best_arch"] in capsys.readouterr().out
  assert before == {p: p.stat().st_mtime_ns for p in workdir.rglob("*")}
  # another config in this folder is refused
  assert run("mlpnas_digits", workdir, "--seed=1") == 2
  error = capsys.readouterr().err
  assert "seed: 0 -> 1" in error and error.count("\n") == 1
  assert before == {p: p.stat().st_mtime_ns for p in workdir.rglob("*")}


def test_the_same_seed_gives_the_same_records(tmp_path):
  found = []
  for name in ("a", "b"):
    flags = ("--config.control=false", "--config.baseline=false")
    assert run("mlpnas_digits", tmp_path / name, *flags) == 0
    lines = (tmp_path / name / "records.jsonl").read_text().splitlines()
    found.append([json.loads(line) | {"seconds": 0} for line in lines])
  assert found[0] == found[1]


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_file(tmp_path, task, capsys):
  rng = np.random.default_rng(0)
  lines = ["id,colour,size,when,<script>alert(1)</script>,answer"]
  for i in range(120):
    size, colour = rng.normal(), ["red", "green", ""][i % 3]
    answer = f"{size + (colour == 'red'):.4f}" if task == "regression" else size > 0
    lines.append(f"{i},{colour},{size:.3f},2024-01-{i % 28 + 1:02d},{i % 7},{answer}")
  path = tmp_path / "mine.csv"
  path.write_text("\n".join(lines))
  workdir = tmp_path / "run"
  flags = (f"--config.data.path={path}", "--config.data.target=answer")
  assert run("mlpnas_file", workdir, *flags) == 0
  summary = check(workdir, "mlpnas_file", task)
  assert "'id'" in "".join(summary["warnings"])
  assert "'id'" in capsys.readouterr().out
  if task == "regression":
    assert summary["test_accuracy"] is None and summary["metric"] == "r2"
    assert summary["holdout_bound"] is None and summary["test_score"] < 1


def test_wine(tmp_path):
  """On a file like UCI's: its header, semicolons, and a quality that alcohol moves."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(120, len(wine.MEASUREMENTS)))
  quality = np.clip(np.round(6 + 1.5 * x[:, -1] + rng.normal(size=120)), 3, 9)
  lines = [";".join(f'"{name}"' for name in (*wine.MEASUREMENTS, "quality"))]
  for row, grade in zip(x, quality):
    lines.append(";".join([*(f"{value:.3f}" for value in row), f"{grade:.0f}"]))
  path = tmp_path / "winequality-white.csv"
  path.write_text("\n".join(lines) + "\n")
  workdir = tmp_path / "run"
  flags = (f"--config.data.path={path}", "--config.preset=table6", *SEARCH_ONLY)
  assert run("mlpnas_wine", workdir, *flags) == 0
  summary = check(workdir, "mlpnas_wine", control=False)
  assert summary["data"]["features"] == 11
  (warning,) = summary["warnings"]
  assert "120 rows" in warning
  assert summary["data"]["classes"] == ["high", "low", "medium"]
  assert sum(summary["data"]["rows"].values()) == 120
  assert read(workdir / "config.json")["config"]["estimator"]["one_shot"] == "last"
  assert "16 sigmoid - 512 sigmoid" in (workdir / "report.md").read_text()


def test_the_majority_of_the_real_wines_is_what_the_survey_beats(shared_data):
  data = wine.load_csv(shared_data / "wine_quality" / "winequality-white.csv")
  assert common_run.majority_score(data) == pytest.approx(0.628, abs=0.005)


def test_speakers(tmp_path):
  """On recordings of unequal length of three who differ in every frame's mean."""
  rng = np.random.default_rng(0)
  speaker = np.arange(60, dtype=np.int8) % 3
  x = rng.normal(size=(60, 10, 2)) + speaker[:, None, None]
  path = tmp_path / "speakers.npz"
  np.savez(
    path,
    x=x.astype(np.float16),
    n_frames=rng.integers(1, 11, 60).astype(np.int16),
    speaker=speaker,
    is_test=np.arange(60) < 12,
  )
  workdir = tmp_path / "run"
  flags = (f"--config.data.path={path}", *SEARCH_ONLY)
  assert run("mlpnas_speakers", workdir, *flags) == 0
  summary = check(workdir, "mlpnas_speakers", control=False)
  assert summary["data"]["rows"] == {"train": 38, "valid": 10, "test": 12}
  assert summary["data"]["features"] == (2 * 4 + 1) * 2


def test_mnist(tmp_path, shared_data):
  workdir = tmp_path / "run"
  flags = (
    f"--config.data.manual_dir={shared_data / 'mnist'}",
    f"--config.data.data_dir={tmp_path / 'tfds'}",
    "--config.control=false",
    "--config.baseline=false",
  )
  assert run("mlpnas_mnist", workdir, *flags) == 0
  summary = check(workdir, "mlpnas_mnist", control=False)
  assert summary["data"]["rows"] == {"train": 48000, "valid": 12000, "test": 10000}
  assert summary["test_accuracy"] > 0.8


def refused(workdir, capsys, *flags):
  """The line that a mistake is answered with; no folder was made for it."""
  assert run("mlpnas_file", workdir, *flags) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: ") and error.count("\n") == 1
  assert not workdir.exists()
  return error


@pytest.mark.parametrize(
  ("flags", "expected"),
  [
    (("--config.strategy.rounds=0",), "--config.strategy.rounds must be positive"),
    (("--config.strategy.population=-1",), "--config.strategy.population"),
    (("--config.space.widths=0",), "space.widths"),
    (("--config.estimator.rungs=1,4",), "--config.estimator.rungs must end with all 2"),
    (("--config.strategy.max_seconds=0",), "max_seconds must be positive"),
    (("--config.estimator.halving=hyperband",), "needs --config.estimator.rungs"),
    (("--config.data.path=none.csv",), "none.csv"),
    ((), "--config.data.path"),
  ],
)
def test_bad_input_is_one_line_and_status_2(tmp_path, capsys, flags, expected):
  assert expected in refused(tmp_path / "run", capsys, *flags)


@pytest.mark.parametrize(
  ("answers", "target", "expected"),
  [
    (["yes"] * 30, "answer", "one class only ('yes')"),
    (["no"] * 2 + ["yes"] * 28, "answer", "class 'no' has 2 rows"),
    (["NaN", *range(29)], "answer", "1 NaN or infinite values, the first in row 1"),
    (["no", "yes"] * 15, "anwser", "no column 'anwser' (did you mean 'answer'?)"),
    ([], "answer", "0 rows of data"),
    (None, "answer", "is empty"),
  ],
)
def test_a_bad_file_is_one_line_and_status_2(
  tmp_path, capsys, answers, target, expected
):
  lines = [f"{i * 7 % 5},{i * 3 % 11},{v}" for i, v in enumerate(answers or ())]
  path = tmp_path / "bad.csv"
  path.write_text("" if answers is None else "\n".join(["a,b,answer", *lines, ""]))
  flags = (f"--config.data.path={path}", f"--config.data.target={target}")
  assert expected in refused(tmp_path / "run", capsys, *flags)


@pytest.mark.parametrize(
  ("arrays", "expected"),
  [
    ({"x": np.full((30, 2), "much")}, "x must be numbers"),
    ({"x": np.zeros((30, 2)), "y": np.full(30, np.nan)}, "30 NaN or infinite values"),
    ({"x": np.zeros((30, 2)), "y": np.zeros(29)}, "x has 30 rows and y has 29"),
  ],
)
def test_a_bad_npz_is_one_line_and_status_2(tmp_path, capsys, arrays, expected):
  path = tmp_path / "bad.npz"
  np.savez(path, **({"y": np.arange(30) % 2} | arrays))
  assert expected in refused(tmp_path / "run", capsys, f"--config.data.path={path}")


def test_a_space_too_small_says_so_and_stops(tmp_path):
  workdir = tmp_path / "run"
  flags = ("--config.space.widths=8", "--config.space.activations=relu")
  flags += ("--config.space.dropout_rate=0", "--config.space.max_layers=3")
  assert run("mlpnas_digits", workdir, "--config.baseline=false", *flags) == 0
  summary = read(workdir / "summary.json")
  assert summary["num_evaluations"] == 2  # all there are: 8 relu, 8 relu - 8 relu
  assert "nothing new to try after 2 of 4" in (workdir / "log.txt").read_text()


def test_a_search_has_its_seconds_and_the_control_as_many_rounds(tmp_path):
  flags = ("--config.strategy.max_seconds=0.001", "--config.baseline=false")
  for _ in range(2):  # the second goes on from the end of the search
    assert run("mlpnas_digits", tmp_path / "run", *flags) == 0
    for name in ("records", "control_records"):
      assert len((tmp_path / f"run/{name}.jsonl").read_text().splitlines()) == 2
    (tmp_path / "run/summary.json").unlink()
  log = (tmp_path / "run/log.txt").read_text()
  assert "search: its 0.001 seconds were over after round 1 of 2" in log
  assert "nothing new" not in log


def test_ctrl_c_keeps_what_was_recorded(tmp_path):
  workdir = tmp_path / "run"
  command = [sys.executable, "run.py", "--experiment=mlpnas_digits", "--smoke"]
  command += [f"--workdir={workdir}", "--config.strategy.rounds=500"]
  command += ["--config.space.max_layers=6"]
  # Tests that a shell runs in the background ignore Ctrl-C, and so would the child.
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
  signal.signal(signal.SIGINT, before)
  try:
    records = workdir / "records.jsonl"
    deadline = time.monotonic() + 120
    while not (records.exists() and records.read_text().count("\n") >= 2):
      assert process.poll() is None and time.monotonic() < deadline
      time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=120)
  finally:
    process.kill()
  assert process.returncode == 130 and "Traceback" not in error
  assert read(workdir / "summary.json")["status"] == "interrupted"
  assert "Interrupted after" in (workdir / "report.html").read_text()
  assert len(records.read_text().splitlines()) >= 2


def test_a_run_does_not_go_on_with_other_data(tmp_path, capsys):
  workdir, table = tmp_path / "run", tmp_path / "rows.csv"
  rng = np.random.default_rng(0)
  rows = [f"{a:.3f},{b:.3f},{'yes' if a > b else 'no'}" for a, b in rng.random((80, 2))]
  table.write_text("\n".join(["a,b,y", *rows]))
  flags = (f"--config.data.path={table}", "--config.data.target=y", *SEARCH_ONLY)
  assert run("mlpnas_file", workdir, *flags) == 0
  (workdir / "summary.json").unlink()  # as if it had been killed before its end
  assert run("mlpnas_file", workdir, *flags) == 0
  assert "it goes on" in (workdir / "log.txt").read_text()
  (workdir / "summary.json").unlink()
  table.write_text("\n".join(["a,b,y", *rows[1:], rows[2]]))
  capsys.readouterr()
  assert run("mlpnas_file", workdir, *flags) == 2
  assert "the data have changed since the run" in capsys.readouterr().err
  assert run("mlpnas_file", workdir, *flags, "--overwrite") == 0


def test_an_interrupted_round_keeps_its_children(tmp_path, monkeypatch):
  real = common_search.Watch.on_child

  def third_child_then_ctrl_c(self, index, child, score):
    real(self, index, child, score)
    if self._done == 3:
      raise KeyboardInterrupt

  monkeypatch.setattr(common_search.Watch, "on_child", third_child_then_ctrl_c)
  workdir = tmp_path / "run"
  assert run("mlpnas_digits", workdir, *SEARCH_ONLY) == 130
  lines = (workdir / "records.jsonl").read_text().splitlines()
  records = [json.loads(line) for line in lines]
  assert [r["round"] for r in records] == [0, 0, 1]
  assert [r["index"] for r in records] == [0, 1, 2]
  space = MLPChain(widths=(8, 16), max_layers=3)
  for record in records:
    assert set(record) >= RECORD and record["score"] > 0
    assert space.describe(np.array(record["genotype"])) == record["arch"]
  summary = read(workdir / "summary.json")
  assert summary["status"] == "interrupted" and summary["num_evaluations"] == 3
  assert set(summary) >= SUMMARY and summary["best_arch"] is None
