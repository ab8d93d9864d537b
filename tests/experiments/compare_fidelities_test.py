"""compare_fidelities on a made table whose answers are known, end to end."""

import json

import numpy as np
import pytest

import run as command_line
from experiments import common_fidelities, compare_fidelities
from nasjax.data import benchmarks

SIDE, EPOCHS, SHALLOW = 6, 5, 90


def make_table(path, *, partial=True, **changes):
  """216 architectures, ranked by their decisions from left to right.

  The first epoch knows the first decision, the second the first two; test scores are
  the full ones in reverse.
  """
  ops = np.stack(np.meshgrid(*[np.arange(SIDE)] * 3, indexing="ij"), -1).reshape(-1, 3)
  worth = ops / (SIDE - 1) * np.array([30.0, 5.0, 0.8])
  full = 40 + worth.sum(-1)
  known = np.stack([40 + worth[:, :k].sum(-1) for k in (1, 2, 3, 3)])
  rise = 1 - np.exp(-np.arange(1, EPOCHS))[:, None]
  arrays = {
    "space": json.dumps({"kind": "categorical", "num_choices": [SIDE] * 3}),
    "genotypes": ops,
    "epochs": EPOCHS,
    "toy_valid": full,
    "toy_test": 100 - full,
    "toy_train_seconds": np.full(len(ops), 10.0),
    **{f"ep{k}_toy_valid": v for k, v in enumerate(known * rise, 1)},
  }
  if partial:
    has = np.arange(len(ops)) < SHALLOW
    noisy = full + np.random.default_rng(0).normal(0, 1.0, len(ops))
    arrays["toy_valid_per_seed"] = np.stack([full, np.where(has, noisy, np.nan)], 1)
    arrays["rows50_toy_valid"] = np.where(has, 90 - full, np.nan)
  benchmarks.write(path, arrays | changes)
  return path


def execute(tmp_path, *flags):
  """The exit status; the run is in `tmp_path / "run"`."""
  arguments = ["--experiment=compare_fidelities", f"--workdir={tmp_path / 'run'}"]
  return command_line.main([*arguments, *flags])


@pytest.fixture(scope="module")
def groups(tmp_path_factory):
  """The folder, and both groups of the smoke run with all rows: whole and shallow."""
  folder = tmp_path_factory.mktemp("fidelities")
  table = make_table(folder / "toy.npz")
  flags = [f"--config.table={table}", "--config.full_rows=200", "--smoke"]
  assert execute(folder, *flags, "--config.architectures=none") == 0
  summary = json.loads((folder / "run" / "summary.json").read_text())
  assert summary["status"] == "finished"
  return folder / "run", summary["groups"]


def by_name(group):
  return {(row["kind"], row["name"]): row for row in group["rows"]}


def test_epochs_rank_by_what_they_know(groups):
  whole = by_name(groups[1][0])
  taus = [whole["fewer epochs", f"{k} epoch{'s' * (k > 1)}"] for k in (1, 2, 3, 4)]
  assert [row["cost"] for row in taus] == pytest.approx([0.2, 0.4, 0.6, 0.8])
  values = [row["tau_valid"] for row in taus]
  # The first epoch ties the 36 that differ in what it does not know: tau-b is
  # sqrt of the share of pairs that it does not tie.
  untied = 1 - 6 * (36 * 35 / 2) / (216 * 215 / 2)
  assert values[0] == pytest.approx(np.sqrt(untied), abs=1e-4)
  assert values[0] < values[1] < values[2] and values[3] > 0.999
  assert all(row["tau_test"] == pytest.approx(-row["tau_valid"]) for row in taus)
  # Of equal predictions the first counts as higher: within the best first decision
  # that is the worst, 5.8 points below the best of all.
  assert taus[0]["regret_1"] == pytest.approx(0.058, abs=1e-5)
  assert taus[3]["regret_1"] == pytest.approx(0, abs=1e-6)


def test_the_full_training_is_the_truth_and_is_not_ranked_by_itself(groups):
  full = by_name(groups[1][0])["full training", "5 epochs"]
  assert full["cost"] == 1 and full["tau_valid"] is None and full["regret_10"] is None
  assert full["tau_test"] == pytest.approx(-1)


def test_what_not_all_have_is_ranked_among_those_that_have_it(groups):
  whole, shallow = (by_name(group) for group in groups[1])
  assert [g["architectures"] for g in groups[1]] == [216, SHALLOW]
  partial = {("fewer rows", "50 rows"), ("another seed", "5 epochs")}
  assert not partial & whole.keys() and partial <= shallow.keys()
  rows = shallow["fewer rows", "50 rows"]
  assert rows["tau_valid"] == pytest.approx(-1) and rows["cost"] == 0.25
  assert 0.7 < shallow["another seed", "5 epochs"]["tau_valid"] < 1
  assert shallow["fewer epochs", "4 epochs"]["ranked"] == SHALLOW


def test_a_predictor_is_judged_on_what_it_has_not_seen(groups):
  whole = by_name(groups[1][0])
  few, more = (whole["predictor, one-hot", f"{n} trained"] for n in (20, 50))
  assert [row["ranked"] for row in (few, more)] == [196, 166]
  assert [row["cost"] for row in (few, more)] == pytest.approx([20 / 216, 50 / 216])
  assert few["tau_valid"] < more["tau_valid"] and more["tau_valid"] > 0.6
  assert few["tau_valid_low"] < few["tau_valid"] < few["tau_valid_high"]
  assert not any(kind == "predictor, paths" for kind, _ in whole)  # it has no paths


def test_a_curve_costs_its_epochs_and_tells_more_than_its_last(groups):
  whole = by_name(groups[1][0])
  curve = whole["curve extrapolated", "from 3 epochs"]
  assert curve["cost"] == pytest.approx(0.6) and curve["tau_valid"] > 0.8


def test_the_report_says_it(groups):
  folder, found = groups
  page = (folder / "report.html").read_text()
  assert page.count("<svg") == 4 * len(found)
  assert page.count("Lower and further left is better") == len(found)
  text = (folder / "report.md").read_text()
  for group in found:
    assert group["sentence"] in text
  assert "stopping after 1 epoch" not in found[0]["sentence"]  # it costs a fifth
  assert found[0]["sentence"].startswith("toy, 216 architectures: for at most a tenth")
  assert "a predictor with one-hot features (20 trained)" in found[0]["sentence"]
  assert "another seed has tau" in found[1]["sentence"]


def row(kind, name, cost, tau, best_tenth=0.1, ranked=1000):
  return {
    "kind": kind,
    "name": name,
    "cost": cost,
    "ranked": ranked,
    "tau_valid": tau,
    "tau_test": 0.9,
    "tau_best_tenth": best_tenth,
    "regret_10": 0.012,
  }


def test_the_sentence_names_another_winner_only_where_it_is_told_apart():
  full = row("full training", "12 epochs", 1.0, np.nan)
  predictor = row("predictor, paths", "400 trained", 0.03, 0.8)
  group = {"dataset": "toy", "architectures": 1000, "of": 1000}
  for best_tenth, words in (
    (0.15, "among the best tenth its tau is 0.10"),
    (0.5, "among the best tenth stopping after 1 epoch does, with tau 0.50"),
  ):
    epochs = row("fewer epochs", "1 epoch", 0.08, 0.6, best_tenth)
    late = row("fewer epochs", "11 epochs", 0.9, 0.99, 0.99)
    rows = [full, epochs, late, predictor]
    said = compare_fidelities.sentence(group | {"rows": rows})
    assert words in said and "1.20 points below" in said
    assert "a predictor with paths features (400 trained) ranks best" in said
  said = compare_fidelities.sentence(group | {"rows": [full, late]})
  assert "the cheapest, stopping after 11 epochs, ranks with tau 0.99 at 90 %" in said


def test_our_own_table_costs_fewer_rows_by_its_training_split():
  rows = compare_fidelities._known_rows("mlp_digits")
  assert (rows // 2, rows // 4) == (431, 215)  # columns of the table
  assert compare_fidelities._known_rows("other.npz") is None


def test_a_seed_is_not_compared_with_a_mean_that_it_is_in(tmp_path):
  rng = np.random.default_rng(1)
  seeds = 50 + rng.normal(0, 1, (SIDE**3, 3))  # nothing but noise
  table = make_table(
    tmp_path / "toy.npz",
    partial=False,
    toy_valid=seeds.mean(1),
    toy_valid_per_seed=seeds,
  )
  measured = benchmarks.read(table).on("toy")
  assert common_fidelities.other_seeds(measured) == [0, 1, 2]
  (estimate,) = common_fidelities._another_seed(measured)
  row = compare_fidelities._row(estimate, measured)
  assert row["repeats"] == 3 and abs(row["tau_valid"]) < 0.1
  (only,) = common_fidelities.groups_of(measured, np.arange(SIDE**3))
  assert len(only) == SIDE**3


@pytest.mark.parametrize(
  ("flag", "words"),
  [
    ("--config.datasets=cifar11", ["no data set 'cifar11'", "toy"]),
    ("--config.table=nowhere.npz", ["no table at nowhere.npz", "mlp_digits"]),
    ("--config.curve_points=2", ["curve_points", "at least 3"]),
    ("--config.members=1", ["members", "at least 2"]),
    ("--config.architectures=3", ["architectures", "at least 20"]),
  ],
)
def test_mistakes_are_one_line_and_touch_nothing(tmp_path, capsys, flag, words):
  table = make_table(tmp_path / "toy.npz")
  assert execute(tmp_path, f"--config.table={table}", flag) == 2
  err = capsys.readouterr().err
  assert err.startswith("error: ") and err.count("\n") == 1
  assert all(word in err for word in words)
  assert not (tmp_path / "run").exists()
