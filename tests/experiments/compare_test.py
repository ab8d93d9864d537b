"""Comparisons of strategies, end to end, on tables made here and on the real one."""

import json

import numpy as np
import pytest

import run as cli
from experiments import build_mlp_table
from nasjax.data import benchmarks


@pytest.fixture(scope="module")
def table(tmp_path_factory):
  """A table in NAS-Bench-201's form: a score that grows with each better operation."""
  path = tmp_path_factory.mktemp("table") / "made.npz"
  ops = np.stack(np.unravel_index(np.arange(5**6), (5,) * 6), -1)
  worth = np.array([0.0, 1.0, 2.0, 4.0, 1.5])[ops].sum(-1)
  arrays = {"ops": ops.astype(np.int8)}
  for name, scale in (("cifar10", 3.0), ("cifar100", 2.5), ("imagenet16", 2.0)):
    arrays[f"{name}_valid"] = scale * worth + 10
    arrays[f"{name}_test"] = scale * worth + 9
    arrays[f"ep12_{name}_valid"] = scale * worth + 5
    arrays[f"{name}_train_seconds"] = 1000.0 + 100 * worth
  benchmarks.write(path, arrays)
  return path


def run(*arguments):
  return cli.main([*arguments, "--compilation_cache=off"])


def test_compare_nasbench201_end_to_end(table, tmp_path, capsys, quick_compile):
  out = tmp_path / "out"
  status = run(
    "--experiment=compare_nasbench201",
    "--smoke",
    f"--config.table={table}",
    f"--workdir={out}",
    "--config.strategies=evolution,local_search",
    "--config.seeds=8",
    "--config.budget_seconds=4000",
  )
  assert status == 0, capsys.readouterr().err
  summary = json.loads((out / "summary.json").read_text())
  assert summary["status"] == "finished" and summary["architectures"] == 15625
  rows = summary["results"]
  assert len(rows) == 3 * (3 + 3)  # strategies x (published on three + direct)
  assert {row["strategy"] for row in rows} == {
    "random_search",
    "evolution",
    "local_search",
  }
  for row in rows:
    assert row["valid"]["n"] == 8 and row["exhausted"] == 0
    assert row["spent"] <= 6 * 4000 and row["evaluations"] > 10
    gap = summary["optimum"][row["dataset"]]["test"] - row["test"]["mean"]
    assert row["test_regret"]["mean"] == pytest.approx(gap, abs=1e-6)
  assert summary["optimum"]["cifar10"]["test"] == pytest.approx(0.81)
  # The made landscape has no local optima: climbing it beats drawing from it.
  by_name = {
    row["strategy"]: row for row in rows if row["protocol"] == "direct cifar10"
  }
  climbed, drawn = by_name["local_search"], by_name["random_search"]
  assert climbed["test"]["mean"] > drawn["test"]["mean"]
  assert all(row["tau_valid"] == pytest.approx(1.0) for row in summary["fidelities"])
  with np.load(out / "winners.npz") as winners:
    best = benchmarks.read(table).on("cifar10").test[winners["published/evolution"]]
  published = next(
    row
    for row in rows
    if (row["protocol"], row["strategy"]) == ("published", "evolution")
  )
  assert published["test"]["mean"] == pytest.approx(float(best.mean()))
  # Within 4,000 seconds theirs are another experiment's.
  assert "published" not in published
  page = (out / "report.html").read_text()
  assert "local_search" in page and "<svg" in page


def test_real_searches_stay_within_their_budget(shared_data, tmp_path):
  table = shared_data / "nasbench201" / "nasbench201.npz"
  out = tmp_path / "out"
  status = run(
    "--experiment=compare_nasbench201",
    "--smoke",
    f"--config.table={table}",
    f"--workdir={out}",
    "--config.seeds=64",
    "--config.budget_seconds=12000",
    "--config.protocols=published",
  )
  assert status == 0
  rows = json.loads((out / "summary.json").read_text())["results"]
  assert sum("published" in row for row in rows) == 2 * 3
  for row in rows:
    assert row["spent"] <= 12000
    if "published" in row:
      # Six combined standard errors: 64 seeds here, and the chance of so many rows.
      assert abs(row["published"]["test_errors"]) < 6
  test = {
    row["strategy"]: row["test"]["mean"] for row in rows if row["dataset"] == "cifar10"
  }
  assert test["evolution"] > test["random_search"]


@pytest.mark.parametrize(
  ("arguments", "what"),
  [
    (["--experiment=compare_nasbench201"], "give --config.table"),
    (
      ["--experiment=compare_nasbench201", "--config.table=none.npz"],
      "no table at none.npz",
    ),
    (["--experiment=compare_mlp_digits", "--config.seeds=1"], "--config.seeds"),
    (
      ["--experiment=compare_mlp_digits", "--config.budget_evaluations=0"],
      "--config.budget_evaluations must be positive",
    ),
    (
      [
        "--experiment=compare_mlp_digits",
        "--config.budget_evaluations=20",
        "--config.budget_seconds=5",
      ],
      "give --config.budget_evaluations or --config.budget_seconds, not both",
    ),
    (
      ["--experiment=compare_mlp_digits", "--config.budget_seconds=0.001"],
      "a budget of 0.001 seconds is too small",
    ),
    (
      ["--experiment=compare_mlp_digits", "--config.budget_evaluations=2000000"],
      "a budget of 2e+06 evaluations is too large",
    ),
    (
      ["--experiment=compare_mlp_digits", "--config.strategies=anealing"],
      "anealing",
    ),
  ],
)
def test_mistakes_get_one_line(arguments, what, tmp_path, capsys):
  out = tmp_path / "out"
  assert run(*arguments, f"--workdir={out}") == 2
  error = capsys.readouterr().err
  assert what in error and error.count("\n") == 1 and not out.exists()


def test_a_budget_for_nothing_is_refused(table, tmp_path, capsys):
  flags = (f"--config.table={table}", "--config.budget_seconds=61")
  out = tmp_path / "out"
  arguments = ["--experiment=compare_nasbench201", "--smoke", f"--workdir={out}"]
  assert run(*arguments, *flags) == 2
  error = capsys.readouterr().err
  assert "a budget of 61 seconds is too small: one child on cifar10" in error
  assert error.count("\n") == 1 and not out.exists()


def test_the_table_is_built_and_a_stopped_build_goes_on(tmp_path, capsys):
  out = tmp_path / "out"
  arguments = ["--experiment=build_mlp_table", "--smoke", f"--workdir={out}"]
  assert run(*arguments) == 0
  first = benchmarks.read(out / "mlp_digits.npz")
  assert len(first.genotypes) == 8 + 64
  measured = first.on("digits")
  assert measured.epochs.tolist() == [1, 2] and measured.per_seed.shape == (72, 2)
  assert list(measured.fewer_rows) == [215, 431]
  # One part is lost, and the run looks unfinished: only that part is trained again.
  parts = sorted(out.glob("parts/*/*.npz"))
  stamps = {path.name: path.stat().st_mtime_ns for path in parts}
  (out / "parts" / parts[0].parent.name / "shallow_seed1.npz").unlink()
  (out / "summary.json").unlink()
  (out / "mlp_digits.npz").unlink()
  assert run(*arguments) == 0
  assert "216 of 288 trainings are there from before" in capsys.readouterr().out
  for path in sorted(out.glob("parts/*/*.npz")):
    assert (path.stat().st_mtime_ns == stamps[path.name]) == (
      path.name != "shallow_seed1.npz"
    )
  again = benchmarks.read(out / "mlp_digits.npz").on("digits")
  np.testing.assert_array_equal(again.valid, measured.valid)
  np.testing.assert_array_equal(again.per_seed, measured.per_seed)


def test_accuracy_by_numpy_is_that_of_the_curve():
  config = build_mlp_table.Config().smoke()
  space, dataset = build_mlp_table.space_of(config), build_mlp_table.load(config)
  train = build_mlp_table.trainer(config, space, dataset, len(dataset.train.y))
  chains = [space.parse(text) for text in ("8 sigmoid", "16 elu", "8 tanh - 16 relu")]
  for child in train(0, np.stack(chains)):
    assert build_mlp_table.accuracy(child, dataset.valid) == pytest.approx(
      child.curve[-1], abs=1e-6
    )
