"""The benchmarks that read finished runs, on a smoke run."""

import json
import re
import sys

import run as command_line
from benchmarks import retraining, seeds


def test_retraining_repeats_the_run_and_undoes_its_choices(
  tmp_path, monkeypatch, capsys
):
  flags = ["--experiment=mlpnas_digits", f"--workdir={tmp_path / 'run'}", "--smoke"]
  flags += ["--config.control=false", "--config.baseline=false"]
  flags += ["--config.retrain.epochs=50"]  # as the benchmark has it
  assert command_line.main(flags) == 0
  summary = json.loads((tmp_path / "run" / "summary.json").read_text())
  capsys.readouterr()
  monkeypatch.setattr(
    sys, "argv", ["x", str(tmp_path / "run"), "--ways=default,the survey's"]
  )
  assert retraining.main() == 0
  lines = capsys.readouterr().out.splitlines()
  names = [line.split("|")[1].strip() for line in lines[2:]]
  assert names == ["default", "the survey's"]
  again = float(re.findall(r"0\.\d+", lines[2])[0])
  assert abs(again - summary["test_score"]) < 1e-4
  table = seeds.table("mlpnas_digits", range(1), [summary])
  assert f"{summary['test_score']:.4f}" in table and summary["best_arch"] in table
