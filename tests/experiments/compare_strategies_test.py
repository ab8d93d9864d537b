"""All strategies in both units on a small table, and what bounds a comparison."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import common_compare, compare_mlp_digits, compare_nasbench201
from experiments.common_compare import CompareConfig, Protocol
from experiments.common_strategies import STRATEGIES, eta_of, rungs_of
from nasjax import workdir
from nasjax.core.types import InputError
from nasjax.data import benchmarks
from nasjax.spaces.categorical import Categorical

SPACE = Categorical((4,) * 5)


def table(tmp_path, seconds=None):
  """A table of 1,024 rows: three fidelities of one training, a second an epoch."""
  genotypes = np.asarray(jax.jit(jax.vmap(SPACE.at))(jnp.arange(SPACE.size)))
  noise = np.random.default_rng(0).normal(size=(4, SPACE.size))
  worth = genotypes @ np.array([1.0, 1.5, 2.0, 2.5, 3.0])
  arrays = {
    "space": np.array(json.dumps(SPACE.to_dict())),
    "genotypes": genotypes,
    "epochs": np.array(12),
    "one_training": np.array(1),
    "made_valid": 50 + worth + noise[0],
    "made_test": 50 + worth + noise[1],
    "ep1_made_valid": 40 + worth + 4 * noise[2],
    "ep4_made_valid": 45 + worth + 2 * noise[3],
    "made_train_seconds": np.full(SPACE.size, 12.0) if seconds is None else seconds,
  }
  benchmarks.write(tmp_path / "made.npz", arrays)
  return benchmarks.read(tmp_path / "made.npz")


def compare(out, config, benchmark, *protocols):
  """The summary of a comparison."""
  opened = workdir.open_run(out, "made", 0, config)
  try:
    common_compare.compare(config, opened, benchmark, list(protocols))
  finally:
    opened.close()
  return json.loads((out / "summary.json").read_text())


def test_every_strategy_runs_in_both_units(tmp_path, quick_compile):
  # 20.04 full trainings of 12 seconds, so the searches are the same in both units.
  protocols = [
    Protocol("shares", "made", None, 20.04, "evaluations", ("made",)),
    Protocol("clock", "made", None, 12 * 20.04, "seconds", ("made",)),
  ]
  config = CompareConfig(seeds=2)
  summary = compare(tmp_path / "out", config, table(tmp_path), *protocols)
  assert summary["status"] == "finished"
  rows = {(row["protocol"], row["strategy"]): row for row in summary["results"]}
  assert len(STRATEGIES) == 10
  assert set(rows) == {(p.name, name) for p in protocols for name in STRATEGIES}
  for name in STRATEGIES:
    share, clock = rows["shares", name], rows["clock", name]
    assert share["test"] == clock["test"] and share["valid"]["n"] == 2
    assert share["evaluations"] == clock["evaluations"] >= 20
    assert 19 < share["spent"] <= 20.04 and share["exhausted"] == 0
    assert clock["spent"] == pytest.approx(12 * share["spent"], rel=1e-4)
    assert summary["strategy_seconds"][name] > 0
    curve = summary["anytime"]["clock"][name]
    assert len(curve["budget"]) == len(curve["mean"]) == len(curve["low"]) == 60
    # The curve ends at the winner's regret.
    regret = clock["test_regret"]["mean"]
    assert curve["mean"][-1] == pytest.approx(regret, abs=1e-6)
  halved = rows["clock", "successive_halving"]["evaluations"]
  assert halved > 2 * rows["clock", "random_search"]["evaluations"]
  for protocol in summary["protocols"]:
    assert protocol["halving"] == ["successive_halving", "hyperband"]
    assert protocol["rungs"] == [1, 4, 12] and protocol["eta"] == 3
  assert len(summary["sentences"]) == 2 and summary["sentences"][0]["sentence"]
  for part in ("valid", "test", "valid_regret", "test_regret"):
    told = [100 * rows["clock", "evolution"][part][k] for k in ("mean", "std", "sem")]
    cell = "{:.2f} ± {:.2f} ({:.3f})".format(*told)
    assert cell in (tmp_path / "out" / "report.md").read_text()
  page = (tmp_path / "out" / "report.html").read_text()
  assert "hyperband: rungs of 1, 4 and 12 epochs" in page


def test_random_search_alone_has_nothing_to_be_compared_with(tmp_path):
  config = CompareConfig(seeds=2, strategies=())
  protocol = Protocol("plain", "made", 4, 5.0, "evaluations", ("made",))
  summary = compare(tmp_path / "out", config, table(tmp_path), protocol)
  sentence = "only random_search ran: there is nothing to compare it with."
  assert [said["sentence"] for said in summary["sentences"]] == [sentence]
  assert sentence in (tmp_path / "out" / "report.html").read_text()
  assert "rungs" not in summary["protocols"][0]


def test_ctrl_c_keeps_the_strategies_that_were_done(tmp_path, monkeypatch):
  searches = common_compare._searches

  def interrupted(name, *rest):
    if name == "local_search":
      raise KeyboardInterrupt
    return searches(name, *rest)

  monkeypatch.setattr(common_compare, "_searches", interrupted)
  config = CompareConfig(seeds=3, strategies=("evolution", "local_search"))
  protocol = Protocol("plain", "made", 4, 12.0, "evaluations", ("made",))
  with pytest.raises(KeyboardInterrupt):
    compare(tmp_path / "out", config, table(tmp_path), protocol)
  summary = json.loads((tmp_path / "out" / "summary.json").read_text())
  assert summary["status"] == "interrupted" and len(summary["pairs"]) == 1
  done = ["random_search", "evolution"]
  assert [row["strategy"] for row in summary["results"]] == done
  assert list(summary["anytime"]["plain"]) == done
  assert "3 seeds, interrupted" in (tmp_path / "out" / "report.html").read_text()
  with np.load(tmp_path / "out" / "winners.npz") as winners:
    assert winners.files == ["plain/random_search", "plain/evolution"]


ONE_FREE = np.where(np.arange(SPACE.size) == 7, 0.0, 1.0)
UNEVEN = np.where(np.arange(SPACE.size) % 20, 0.01, 10.0)


@pytest.mark.parametrize(
  ("seconds", "limit", "names", "budget", "what"),
  [
    (ONE_FREE, 100, (), 50.0, "row 7: 1 epochs on made cost nothing"),
    (None, 100, (), 11.9, "random_search: a budget of 11.9 seconds is too small"),
    (None, 100, (), 2000.0, "too large: more than 100 children of a search on made"),
    # Enough for full trainings, not for as many of one epoch.
    (None, 100, ("hyperband",), 200.0, "hyperband: a budget of 200 seconds is too lar"),
    (UNEVEN, 30, (), 12.0, "search on made had 30 children and was not done"),
  ],
)
def test_budgets_that_cannot_be_are_refused(
  tmp_path, monkeypatch, seconds, limit, names, budget, what
):
  monkeypatch.setattr(common_compare, "_MAX_EVALUATIONS", limit)
  protocol = Protocol("plain", "made", None, budget, "seconds", ("made",))
  config = CompareConfig(seeds=16, strategies=names)
  with pytest.raises(InputError) as caught:
    compare(tmp_path / "out", config, table(tmp_path, seconds), protocol)
  assert what in str(caught.value) and "\n" not in str(caught.value)
  # What is found by searching alone leaves a summary of what was not finished.
  assert (tmp_path / "out" / "summary.json").exists() == (limit == 30)


def test_a_given_budget_comes_before_the_default(monkeypatch):
  asked = []

  def note(config, run, benchmark, protocols, *, published=None):
    asked.append((protocols, published))

  monkeypatch.setattr(common_compare, "compare", note)
  for given, limits in (
    ({}, (100, "evaluations")),
    ({"budget_evaluations": 7}, (7.0, "evaluations")),
    ({"budget_seconds": 5.0}, (5.0, "seconds")),
  ):
    compare_mlp_digits.run(compare_mlp_digits.Config(**given), None)
    ((protocol,), _) = asked.pop()
    assert (protocol.budget, protocol.unit) == limits


def test_published_figures_stand_beside_their_own_protocol_only(monkeypatch):
  asked = []

  def note(config, run, benchmark, protocols, *, published=None):
    asked.append((protocols, published))

  monkeypatch.setattr(common_compare, "compare", note)
  cells = types.SimpleNamespace(name="t.npz", space={"kind": "nasbench201"})
  monkeypatch.setattr(benchmarks, "read", lambda path: cells)
  for given in (
    {},
    {"budget_seconds": 6000.0},
    {"budget_evaluations": 100},
    {"epochs": 200},
    {"repeats": "free"},
  ):
    compare_nasbench201.run(compare_nasbench201.Config(table="t.npz", **given), None)
    protocols, published = asked.pop()
    assert (published is not None) == (not given)
    budgets = [protocol.budget for protocol in protocols]
    seconds = given.get("budget_seconds", 12_000.0)
    times = (1, 1, 2, 6)
    if "budget_evaluations" in given:
      seconds, times = 100.0, (1, 1, 1, 1)
    assert budgets == [seconds * factor for factor in times]


def test_a_table_of_another_space_is_no_nas_bench_201(tmp_path):
  table(tmp_path)
  config = compare_nasbench201.Config(table=str(tmp_path / "made.npz"))
  what = "made.npz is a table of the space categorical, not nasbench201"
  with pytest.raises(InputError, match=what):
    compare_nasbench201.run(config, None)


@pytest.mark.parametrize(
  ("epochs", "rungs", "eta"),
  [
    ([12, 200], (12, 200), 17),
    (range(1, 13), (1, 4, 12), 3),
    ([1, 3, 9, 27], (1, 3, 9, 27), 3),
    ([50, 100, 108], (108,), 2),
  ],
)
def test_eta_is_the_ratio_of_rungs(epochs, rungs, eta):
  assert rungs_of(np.array(epochs)) == rungs and eta_of(rungs) == eta
