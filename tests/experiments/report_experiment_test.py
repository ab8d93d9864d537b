"""The report experiment on synthetic runs: its files and what its figures say."""

import json

import numpy as np
import pytest
from synthetic_run import make_records, make_run, make_summary

import run as command_line
from nasjax.results import runs

SEEDS = range(4)


@pytest.fixture
def make(tmp_path):
  """Writes a run folder."""
  return lambda *args, **kwargs: write_run(tmp_path, *args, **kwargs)


def write_run(
  folder,
  name,
  *,
  seed=0,
  rounds=5,
  better=0.0,
  finished=True,
  summary=True,
  metric="accuracy",
  data="wine",
  experiment="mlpnas_wine",
):
  """A run whose children score `better` than usual; its random search does not."""
  search = make_records(10 + seed, improving=True, metric=metric)
  control = make_records(100 + seed, improving=False, metric=metric)
  for record in search:
    if record["score"] is not None:
      record["score"] += better
  if not finished:
    search, control = search[:21], None
  best = max(record["score"] or 0 for record in search)
  values = make_summary(
    experiment=experiment,
    seed=seed,
    metric=metric,
    status="finished" if finished else "interrupted",
    best_score=best,
    test_score=best - 0.01 if finished else None,
    random_search_test_score=0.8 + 0.001 * seed,
    num_evaluations=len(search),
    data={"name": data, "task": "multiclass", "rows": {"train": 90, "test": 10}},
  )
  made = make_run(folder / name, values if summary else None, search, control)
  identity = {
    "experiment": experiment,
    "seed": seed,
    "smoke": False,
    "config": {"strategy": {"rounds": rounds, "population": 8}, "data": {"path": None}},
  }
  (made / "config.json").write_text(json.dumps(identity))
  return made


def execute(folder, *workdirs):
  """The exit status of a report of these; it is in `folder / "report"`."""
  named = ",".join(map(str, workdirs))
  return command_line.main(
    [
      "--experiment=report",
      f"--config.workdirs={named}",
      f"--workdir={folder / 'report'}",
    ]
  )


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
  """The folder and summary of a report: two groups, one unfinished run, R2 apart."""
  folder = tmp_path_factory.mktemp("compared")
  make = lambda *a, **k: write_run(folder, *a, **k)  # noqa: E731
  found = [make(f"a{seed}", seed=seed) for seed in SEEDS]
  found += [make(f"b{seed}", seed=seed, rounds=6, better=0.1) for seed in SEEDS]
  found += [make("unfinished", seed=9, finished=False)]
  found += [make("cut", seed=10, finished=False, summary=False)]
  found += [make("r2", metric="r2", data="diabetes", experiment="mlpnas_file")]
  assert execute(folder, *found) == 0
  return folder, json.loads((folder / "report" / "summary.json").read_text())


def test_tasks_and_metrics_stand_apart(compared):
  _, summary = compared
  tasks = [(one["task"], one["metric"]) for one in summary["tasks"]]
  assert tasks == [
    ("wine (multiclass, 100 rows)", "accuracy"),
    ("diabetes (multiclass, 100 rows)", "r2"),
  ]
  assert summary["tasks"][1]["pairs"] == {"test_score": [], "best_score": []}
  assert "nothing is tested" in summary["tasks"][1]["sentence"]


def test_seeds_of_one_config_are_a_group(compared):
  folder, summary = compared
  first, second = summary["tasks"][0]["groups"]
  assert first["label"] == "mlpnas_wine A" and second["label"] == "mlpnas_wine B"
  assert first["differs"] == "strategy.rounds=5"
  assert first["seeds"] == [0, 1, 2, 3, 9, 10]
  assert first["finished_seeds"] == second["seeds"] == [0, 1, 2, 3]
  best = [
    json.loads((folder / f"a{seed}" / "summary.json").read_text())["best_score"]
    for seed in SEEDS
  ]
  told = first["figures"]["best_score"]
  assert told["mean"] == pytest.approx(np.mean(best))
  assert told["std"] == pytest.approx(np.std(best, ddof=1))
  assert told["sem"] == pytest.approx(np.std(best, ddof=1) / 2)
  assert told["low"] < told["mean"] < told["high"] and told["n"] == 4
  difference = second["figures"]["best_score"]["mean"] - told["mean"]
  assert difference == pytest.approx(0.1)


def test_pairs_are_tested(compared):
  _, summary = compared
  one = summary["tasks"][0]
  (pair,) = one["pairs"]["test_score"]
  assert (pair["better"], pair["worse"]) == ("mlpnas_wine B", "mlpnas_wine A")
  assert pair["difference"] == pytest.approx(0.1)
  # Four seeds that all lie above four others: one order of 70, doubled.
  assert pair["p"] == pytest.approx(1 / 70)
  assert pair["p_holm"] == pytest.approx(2 / 70)
  controls = one["control_pairs"]["test_score"]
  assert [pair["worse"] for pair in controls] == [
    "random, mlpnas_wine A",
    "random, mlpnas_wine B",
  ]
  # All four differences have one sign: one of 16, doubled for the side and by Holm.
  assert [pair["p_holm"] for pair in controls] == pytest.approx([0.25, 0.25])
  assert "mlpnas_wine B is better than mlpnas_wine A" in one["sentence"]


def test_runs_that_did_not_finish_are_shown_and_not_counted(compared):
  folder, summary = compared
  one = summary["tasks"][0]
  rows = {row["folder"].rsplit("/", 1)[-1]: row for row in one["runs"]}
  assert rows["unfinished"]["status"] == "interrupted"
  assert rows["cut"]["status"] == "unfinished" and rows["cut"]["evaluations"] == 21
  assert rows["cut"]["best_score"] > 0.5 and rows["cut"]["test_score"] is None
  text = (folder / "report" / "report.md").read_text()
  assert "not finished, so in no mean and no test" in text


def test_the_page(compared):
  folder, summary = compared
  page = (folder / "report" / "report.html").read_text()
  assert page.count("<svg") == 4
  text = (folder / "report" / "report.md").read_text()
  for word in ("mlpnas_wine A", "strategy.rounds=6", "20,000", "Holm", "R²"):
    assert word in text and word in page
  assert summary["tasks"][0]["sentence"] in text


def test_curves_end_where_an_unfinished_run_does(make):
  finished, cut = runs.read(make("a")), runs.read(make("b", seed=1, finished=False))
  grid = np.arange(1.0, 41)
  parts = [(finished.children, True), (cut.children, False)]
  band = runs.anytime(parts, "evaluations", grid)
  alone = runs.anytime(parts[:1], "evaluations", grid)
  assert (band.mean[21:] == alone.mean[21:]).all() and np.isnan(band.low[21:]).all()
  assert np.isfinite(band.low[:21]).all()
  assert band.mean[0] == pytest.approx(
    np.mean([finished.children[0]["score"], cut.children[0]["score"]])
  )
  # In seconds: nothing before the first child is done, everything at the end.
  seconds = runs.cumulative(finished.children, "seconds")
  by_seconds = runs.anytime(parts[:1], "seconds", np.array([0.0, seconds[-1]]))
  assert np.isnan(by_seconds.mean[0]) and by_seconds.mean[1] == alone.mean[-1]


def test_one_run_alone_is_a_report(make, tmp_path):
  assert execute(tmp_path, make("a")) == 0
  text = (tmp_path / "report" / "report.md").read_text()
  assert "mlpnas_wine" in text and "\n1 run, 1 task\n" in text


def test_a_run_in_which_every_child_failed(make, tmp_path):
  run = make("a", summary=False)
  (run / "control_records.jsonl").unlink()
  lines = [json.loads(x) for x in (run / "records.jsonl").read_text().splitlines()]
  failed = [json.dumps(record | {"score": None}) + "\n" for record in lines]
  (run / "records.jsonl").write_text("".join(failed))
  assert execute(tmp_path, run) == 0
  text = (tmp_path / "report" / "report.md").read_text()
  assert "No child has a score" in text and "<svg" not in text


def test_mistakes_are_one_line(make, tmp_path, capsys):
  run = make("a")
  (tmp_path / "empty").mkdir()
  bare = make("bare")
  (bare / "records.jsonl").unlink()
  for workdirs, words in (
    ([], "give --config.workdirs"),
    ([tmp_path / "nowhere"], "there is no such folder"),
    ([tmp_path / "empty"], "holds no run"),
    ([bare], "has no records"),
    ([run, run], "a seed counts once"),
  ):
    assert execute(tmp_path, *workdirs) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and words in err
  assert not (tmp_path / "report").exists()
