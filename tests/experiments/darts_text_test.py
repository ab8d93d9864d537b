"""DARTS on a text end to end, small: search, derive, retrain, report; and bad input."""

import json
import pathlib
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from killed_runs import copied_cache, found, killed_when, started

import run as cli
from experiments import common_darts_text_report, common_darts_text_run, darts_text
from nasjax.core import config as config_lib
from nasjax.results import export
from nasjax.spaces.recurrent_cell import RecurrentCell
from nasjax.training import recurrent

pytestmark = pytest.mark.usefixtures("quick_compile")
TEXT = pathlib.Path(__file__).resolve().parents[2] / "LICENSE"  # a real one


LINE = ["--experiment=darts_text", "--smoke"]
SEARCH = [f"--config.data.path={TEXT}", "--config.strategy.epochs=2"]


def run(*arguments):
  return cli.main([*LINE, "--compilation_cache=off", *arguments])


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
  jax.config.update("jax_disable_most_optimizations", True)
  out = tmp_path_factory.mktemp("darts_text") / "out"
  assert run(f"--workdir={out}", *SEARCH) == 0
  return out


def test_a_run_from_search_to_report(searched):
  summary = json.loads((searched / "summary.json").read_text())
  assert summary["status"] == "finished" and summary["epochs_searched"] == 2
  vocabulary = summary["data"]["vocabulary"]
  assert 1 < summary["test_perplexity"] < 1.5 * vocabulary
  np.testing.assert_allclose(
    summary["test_perplexity"], np.exp(summary["test_loss"]), rtol=1e-6
  )
  # A tied table and its bias, W_0, and a matrix a node, of 4 units.
  assert summary["num_params"] == vocabulary * 5 + 8 * 8 + 2 * 4 * 8
  assert summary["supernet_params"] == summary["num_params"]
  assert summary["flops"] == 2 * (8 * 8 + 2 * 4 * 8 + 4 * vocabulary)
  assert len(summary["random_cells"]) == 1 and len(summary["curve"]) == 2
  assert summary["valid_perplexity"] == min(summary["curve"])
  *_, row = map(json.loads, (searched / "records.jsonl").read_text().splitlines())
  space = RecurrentCell(2)
  assert space.describe(space.derive(np.array(row["alphas"]))) == summary["arch"]
  assert row["arch"] == summary["arch"]
  np.testing.assert_allclose(row["train_perplexity"], np.exp(row["train_loss"]))
  assert np.isfinite([row["valid_loss"], row["outer_loss"]]).all()
  page = (searched / "report.html").read_text()
  for said in ("Recurrent cell", "Nodes that only copy", "perplexity", "<svg"):
    assert said in page
  assert (searched / "cell_recurrent.png").read_bytes().startswith(b"\x89PNG")
  best = export.load_best(searched / "best")
  assert best.description["arch"] == summary["arch"]
  assert best.weights["embedding"].shape == (vocabulary, 4)
  assert len(best.preprocessing["vocabulary"]) == vocabulary
  for name in export.PORTABLE_FILES:
    assert (searched / "best" / name).stat().st_size


def test_kills_change_nothing(searched, tmp_path):
  """In the search after its first checkpoint, and in the training that follows, before
  and after its own."""
  out, rng = tmp_path / "out", random.Random(0)
  line = [*LINE, *SEARCH, f"--workdir={out}"]
  cache = copied_cache(tmp_path)
  names = ("checkpoints/search/1", "stages.json", "checkpoints/derived/1")
  for reached in (out / name for name in names):
    killed_when(started(line, cache, quick=True), reached.exists, rng)
  last = started(line, cache, quick=True)
  last.join()
  assert last.exitcode == 0
  assert found(out) == found(searched)
  assert "search: goes on after epoch" in (out / "log.txt").read_text()


def test_a_genotype_is_trained_without_a_search(searched, tmp_path):
  out = tmp_path / "out"
  status = run(
    f"--workdir={out}",
    f"--config.data.path={TEXT}",
    f"--config.genotype={searched / 'best' / 'genotype.json'}",
    "--config.random_cells=0",
  )
  assert status == 0 and not (out / "records.jsonl").exists()
  before = json.loads((searched / "summary.json").read_text())
  summary = json.loads((out / "summary.json").read_text())
  # The same cell, seed and recipe.
  assert summary["arch"] == before["arch"]
  assert summary["test_perplexity"] == before["test_perplexity"]


def test_a_genotype_whose_training_was_killed_goes_on_as_it_began(
  searched, tmp_path, capsys
):
  """Nothing but its checkpoints is there by then: they say whose they are."""
  out = tmp_path / "out"
  line = [f"--config.data.path={TEXT}", "--config.random_cells=0", f"--workdir={out}"]
  line += [f"--config.genotype={searched / 'best' / 'genotype.json'}"]
  line += ["--config.retrain.epochs=60"]
  process = started([*LINE, *line], copied_cache(tmp_path), quick=True)
  killed_when(process, (out / "checkpoints/derived/1").exists, random.Random(0))
  assert run(*line, "--config.retrain.learning_rate=1") == 2
  assert "holds another run" in capsys.readouterr().err
  other = tmp_path / "other.txt"
  other.write_text(TEXT.read_text() + TEXT.read_text()[:100])
  moved = [f"--config.data.path={other}", *line[1:]]
  assert run(*moved) == 2
  assert run(*line) == 0
  log = (out / "log.txt").read_text()
  assert "the derived cell: goes on after epoch" in log
  assert not any((out / "checkpoints").glob("derived/*"))


def test_words_by_the_papers_finite_difference_and_every_dropout(tmp_path):
  out = tmp_path / "out"
  dropouts = ("output", "hidden", "embedded", "input", "words")
  status = run(
    f"--workdir={out}",
    f"--config.data.path={TEXT}",
    "--config.data.unit=words",
    "--config.strategy.order=finite_difference",
    *(f"--config.strategy.dropout.{name}=0.3" for name in dropouts),
    "--config.strategy.stop_at_identities=2",
    "--config.random_cells=0",
  )
  assert status == 0
  summary = json.loads((out / "summary.json").read_text())
  assert summary["data"]["unit"] == "words" and summary["data"]["unknown"] > 0


def test_alphas_that_are_no_numbers_end_it_in_one_line(tmp_path, capsys, monkeypatch):
  def loss(weights, alphas, batch):
    seen = recurrent.Seen(batch.hidden, jnp.float32(1.0))
    return jnp.sqrt(-1.0 - jnp.square(alphas).sum()) * weights["bias"].sum(), seen

  monkeypatch.setattr(recurrent, "supernet_loss", loss)
  out = tmp_path / "out"
  flags = (f"--workdir={out}", f"--config.data.path={TEXT}")
  assert run(*flags, "--config.strategy.order=1") == 2
  (line,) = capsys.readouterr().err.strip().splitlines()
  assert "epoch 1 of the search: alphas of the recurrent cell: edge 0" in line
  assert "is nan" in line and "records.jsonl" in line
  summary = json.loads((out / "summary.json").read_text())
  assert summary["status"] == "failed" and summary["failure"] in line
  assert "The search failed: epoch 1" in (out / "report.md").read_text()
  assert not (out / "best").exists()


@pytest.mark.parametrize(
  "flag, message",
  [
    ("--config.data.path=", "--config.data.path is needed"),
    ("--config.data.path=nowhere.txt", "nowhere.txt: No such file"),
    ("--config.window=5000", "a truncation window takes 5000 and the one after"),
    ("--config.strategy.part=0.001", "the train part of LICENSE has 10 tokens, 2 in"),
    ("--config.strategy.part=0", "--config.strategy.part must be above 0"),
    ("--config.test_streams=600", "(--config.test_streams); a truncation window"),
    ("--config.genotype=DARTS_V1", "concat must join all nodes, [1, 2]"),
    (
      "--config.genotype=Genotype(recurrent=[('tanh', 0), ('relu', 2)], concat=[1, 2])",
      "edge 2 of the recurrent cell reads state 2; node 2 comes after states 0 to 1",
    ),
    ("--config.strategy.epochs=0", "--config.strategy.epochs must be positive"),
    ("--config.retrain.slowness=-1", "--config.retrain.slowness must not be negative"),
    ("--config.retrain.dropout.words=1", "--config.retrain.dropout.words must be at"),
    ("--config.strategy.alpha_decays=0.9", "alpha_decays must be two numbers"),
    ("--config.retrain.patience=0", "--config.retrain.patience must be positive"),
    ("--config.window=0", "--config.window must be positive"),
    ("--config.random_cells=-1", "--config.random_cells must not be negative"),
  ],
)
def test_bad_input_is_one_line_before_anything_is_written(
  flag, message, tmp_path, capsys
):
  out = tmp_path / "out"
  assert run(f"--workdir={out}", f"--config.data.path={TEXT}", flag) == 2
  lines = capsys.readouterr().err.strip().splitlines()
  assert len(lines) == 1 and message in lines[0]
  assert not out.exists()


def test_the_papers_settings():
  config = darts_text.PRESETS["ptb"](darts_text.Config())
  values = config_lib.to_dict(config)
  search, retrain = values["strategy"], values["retrain"]
  assert (search["hidden"], search["batch_size"], search["epochs"]) == (300, 256, 50)
  assert (retrain["hidden"], retrain["batch_size"], retrain["epochs"]) == (
    850,
    64,
    8000,
  )
  assert search["alpha_learning_rate"] == 3e-3 and search["alpha_weight_decay"] == 1e-3
  assert (search["weight_decay"], retrain["weight_decay"]) == (5e-7, 8e-7)
  rates = {"output": 0.75, "hidden": 0.25, "embedded": 0.2, "input": 0.75}
  assert search["dropout"] == rates | {"words": 0.0}
  assert retrain["dropout"] == rates | {"words": 0.1}
  for section in (search, retrain):
    assert section["learning_rate"] == 20.0 and section["clip_norm"] == 0.25
    assert section["slowness"] == 1e-3
  assert values["data"]["unit"] == "words" and values["window"] == 35
  assert values["nodes"] == 8 and retrain["patience"] == 5


def test_copies_are_counted():
  space = RecurrentCell()
  for name in ("DARTS_V1", "DARTS_V2"):
    assert common_darts_text_run.num_identities(space.parse(name), space) == 1


def test_what_the_headline_says():
  headline = common_darts_text_report.headline
  assert "after 3 epochs" in headline({"epochs_searched": 3})
  assert "diverged" in headline({"test_perplexity": None})
  rows = [{"test_perplexity": value} for value in (4.0, 6.0, None)]
  text = headline({"test_perplexity": 5.0, "random_cells": rows})
  assert "5.000" in text and "1 of 3 are at least" in text and "1 of them div" in text
