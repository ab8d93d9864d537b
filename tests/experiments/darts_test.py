"""DARTS end to end, small: search, derive, retrain, control, report; and bad input."""

import json
import random

import jax
import numpy as np
import pytest
from killed_runs import copied_cache, found, killed_when, started

import run as cli
from experiments import common_darts, common_darts_run, common_supernet_ways
from nasjax.core.types import InputError
from nasjax.data import images, standalone_images
from nasjax.results import export
from nasjax.spaces.conv_cell import ConvCell

pytestmark = pytest.mark.usefixtures("quick_compile")


def genotype(op="skip_connect", source=1, more=""):
  """Cells of one node each, in the authors' notation."""
  return (
    f"Genotype(normal=[('max_pool_3x3', 0), ('{op}', {source}){more}], "
    "normal_concat=[2], reduce=[('avg_pool_3x3', 0), ('skip_connect', 1)], "
    "reduce_concat=[2])"
  )


# Epochs enough to be killed in.
LINE = ["--experiment=darts_digits", "--smoke", "--config.retrain.epochs=6"]
SEARCH = [*LINE, "--config.strategy.epochs=2"]


def run(*arguments):
  return cli.main([*arguments, "--compilation_cache=off"])


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
  jax.config.update("jax_disable_most_optimizations", True)  # as `quick_compile`
  out = tmp_path_factory.mktemp("darts") / "out"
  assert run(*SEARCH, f"--workdir={out}") == 0
  return out


def test_a_run_from_search_to_report(searched):
  summary = json.loads((searched / "summary.json").read_text())
  assert summary["status"] == "finished" and summary["epochs_searched"] == 2
  assert 0 <= summary["test_accuracy"] <= 1 and summary["num_params"] > 100
  assert summary["flops"] > 1000
  assert summary["supernet_params"] > summary["num_params"]
  assert len(summary["random_cells"]) == 1
  lines = (searched / "records.jsonl").read_text().splitlines()
  row = json.loads(lines[-1])
  assert len(lines) == row["epoch"] == 2
  assert np.shape(row["alphas"]["normal"]) == (2, 8)
  assert row["arch"] == summary["arch"]
  assert np.isfinite([row["train_loss"], row["valid_loss"], row["outer_loss"]]).all()
  space = ConvCell(1)
  alphas = {name: np.array(table) for name, table in row["alphas"].items()}
  assert space.describe(space.derive(alphas)) == summary["arch"]
  page = (searched / "report.html").read_text()
  for said in ("Normal cell", "Reduction cell", "edges of the normal cell", "<svg"):
    assert said in page
  assert (searched / "cell_normal.png").read_bytes().startswith(b"\x89PNG")
  best = export.load_best(searched / "best")
  assert best.description["arch"] == summary["arch"]
  assert best.description["metrics"]["test_accuracy"] == summary["test_accuracy"]
  # With NumPy alone, from pixels: as many right as the run has said.
  data = images.digits(seed=0)
  model = standalone_images.load(searched / "best")
  answers = standalone_images.predict(model, data.test.x * data.std + data.mean)
  accuracy = (answers.argmax(1) == data.test.y).mean()
  assert accuracy == pytest.approx(summary["test_accuracy"], abs=1e-6)
  for name in export.PORTABLE_FILES:
    assert (searched / "best" / name).stat().st_size > 1000


def test_kills_change_nothing(searched, tmp_path):
  """In the search and in the training that follows, each after its first checkpoint."""
  out, rng = tmp_path / "out", random.Random(0)
  line = [*SEARCH, f"--workdir={out}"]
  cache = copied_cache(tmp_path)
  for part in ("search", "derived"):
    checkpoint = out / "checkpoints" / part / "1"
    killed_when(started(line, cache, quick=True), checkpoint.exists, rng)
  last = started(line, cache, quick=True)
  last.join()
  assert last.exitcode == 0
  assert found(out) == found(searched)
  log = (out / "log.txt").read_text()
  for said in (
    "search: goes on after epoch",
    "the derived cell: goes on after epoch",
  ):
    assert said in log


def test_a_genotype_is_trained_without_a_search(searched, tmp_path):
  out = tmp_path / "out"
  status = run(
    *LINE,
    f"--workdir={out}",
    f"--config.genotype={searched / 'best' / 'genotype.json'}",
    "--config.random_cells=0",
  )
  assert status == 0
  before = json.loads((searched / "summary.json").read_text())
  summary = json.loads((out / "summary.json").read_text())
  assert not (out / "records.jsonl").exists()
  # The same cell, seed and recipe.
  assert summary["arch"] == before["arch"]
  assert summary["test_accuracy"] == before["test_accuracy"]


def test_darts_cifar10_reads_a_file(tmp_path):
  rng = np.random.default_rng(0)
  arrays = {
    f"{kind}_{part}": value
    for part, count in (("train", 128), ("test", 64))
    for kind, value in (
      ("x", rng.integers(0, 256, (count, 8, 8, 3), np.uint8)),
      ("y", np.arange(count) % 3),
    )
  }
  np.savez(tmp_path / "images.npz", **arrays)
  out = tmp_path / "out"
  status = run(
    "--experiment=darts_cifar10",
    "--smoke",
    f"--workdir={out}",
    f"--config.data.path={tmp_path / 'images.npz'}",
    f"--config.genotype={genotype()}",
    "--config.random_cells=0",
    "--config.retrain.auxiliary_weight=0",
  )
  assert status == 0
  summary = json.loads((out / "summary.json").read_text())
  assert summary["data"]["image"] == [8, 8, 3] and summary["data"]["classes"] == 3
  assert summary["normal_skips"] == 1 and "max_pool_3x3" in summary["arch"]


@pytest.mark.parametrize(
  "flag, message",
  [
    ("--config.genotype=DARTS_V9", "--config.genotype: not a genotype"),
    (f"--config.genotype={genotype(op='conv_9x9')}", "normal cell: no operation 'conv"),
    (f"--config.genotype={genotype(source=3)}", "--config.genotype: edge 2 of the"),
    ("--config.genotype=DARTS_V2", "--config.genotype: normal_concat must join"),
    (f"--config.genotype={genotype(more=', (1, 2)')}", "has 3 edges; 1 nodes read 2"),
    ("--config.genotype=nowhere.json", "nowhere.json: No such file"),
    ("--config.strategy.inner_steps=0", "--config.strategy: inner_steps must be 1"),
    ("--config.strategy.epochs=0", "--config.strategy.epochs must be positive"),
    ("--config.retrain.drop_path=1", "--config.retrain.drop_path must be at least 0"),
    ("--config.retrain.auxiliary_weight=0.4", "the auxiliary head needs"),
    ("--config.supernet.layers=2", "2 cells are too few"),
    ("--config.supernet.channels=0", "--config.supernet: channels and nodes must"),
    ("--config.retrain.layers=2", "--config.retrain: 2 cells are too few"),
    ("--config.nodes=0", "--config.nodes: a cell needs at least one node"),
    ("--config.mesh.data=99", "--config.mesh.data: must be between 1 and"),
    ("--config.strategy.crop=-1", "--config.strategy.crop must not be negative"),
    ("--config.random_cells=-1", "--config.random_cells must not be negative"),
    ("--config.data.train_fraction=2", "--config.data.train_fraction must be"),
  ],
)
def test_bad_input_is_one_line_before_anything_is_written(
  flag, message, tmp_path, capsys
):
  out = tmp_path / "out"
  assert run("--experiment=darts_digits", "--smoke", f"--workdir={out}", flag) == 2
  lines = capsys.readouterr().err.strip().splitlines()
  assert len(lines) == 1 and message in lines[0]
  assert not out.exists()


def test_images_too_small_for_the_reductions_name_the_file(tmp_path, capsys):
  arrays = {
    f"{kind}_{part}": value
    for part in ("train", "test")
    for kind, value in (("x", np.zeros((20, 3, 8, 1))), ("y", np.arange(20) % 2))
  }
  np.savez(tmp_path / "images.npz", **arrays)
  out, path = tmp_path / "out", tmp_path / "images.npz"
  given = f"--config.data.path={path}"
  assert run("--experiment=darts_cifar10", "--smoke", f"--workdir={out}", given) == 2
  assert "--config.data.path: images of 3 x 8 pixels are too small" in (
    capsys.readouterr().err
  )
  other = "--config.data.data_dir=nowhere"
  assert run("--experiment=darts_cifar10", f"--workdir={out}", given, other) == 2
  assert "leave --config.data.data_dir and" in capsys.readouterr().err
  assert not out.exists()


def test_alphas_that_are_not_finite_end_the_search_and_nothing_is_lost(
  tmp_path, capsys
):
  """A huge rate: the third step's alphas are beyond float32."""
  out = tmp_path / "out"
  status = run(
    "--experiment=darts_digits",
    "--smoke",
    f"--workdir={out}",
    "--config.strategy.epochs=2",
    "--config.strategy.alpha_learning_rate=1.6e38",
    "--config.strategy.alpha_weight_decay=0",
  )
  assert status == 2
  (line,) = capsys.readouterr().err.strip().splitlines()
  for said in ("cell is ", "from state", "in step 1 of epoch 2", "of epoch 1 are kept"):
    assert said in line
  good = export.load_best(out / "last_good")
  assert good.description["metrics"] == {"epoch": 1}
  (row,) = [json.loads(x) for x in (out / "records.jsonl").read_text().splitlines()]
  assert good.description["arch"] == row["arch"]
  alphas = {name: good.weights[f"alphas/{name}"] for name in ("normal", "reduce")}
  for name, table in alphas.items():
    np.testing.assert_allclose(table, row["alphas"][name])
  space = ConvCell(1)
  assert space.describe(space.derive(alphas)) == row["arch"]
  assert all(np.isfinite(part).all() for part in good.weights.values())
  summary = json.loads((out / "summary.json").read_text())
  assert summary["status"] == "failed" and summary["failure"] in line
  page = (out / "report.html").read_text()
  assert "in step 1 of epoch 2" in page and "Reduction cell" in page
  assert not (out / "best").exists()


def test_a_file_that_is_no_genotype(tmp_path):
  path = tmp_path / "genotype.json"
  path.write_text("[1, 2]")
  config = common_darts.DARTSConfig(genotype=str(path))
  with pytest.raises(InputError, match="is no genotype.json of a run"):
    common_darts.check(config)


def test_skips_are_counted_in_the_normal_cell():
  space = ConvCell()
  assert common_darts_run.num_skips(space.parse("DARTS_V1"), space) == 3
  assert common_darts_run.num_skips(space.parse("DARTS_V2"), space) == 2


def test_throughput_smoke(tmp_path):
  out = tmp_path / "out"
  assert run("--experiment=darts_throughput", "--smoke", f"--workdir={out}") == 0
  summary = json.loads((out / "summary.json").read_text())
  assert summary["status"] == "finished" and summary["ratios"] == []
  assert [row["way"] for row in summary["rows"]] == ["mixed", "order_1"]
  for row in summary["rows"]:
    assert row["seconds"] > 0 and row["peak_gb"] > 0.05 and row["flops"] > 0


def test_what_a_step_multiplies():
  """With an edge's pass done again on the way back a gradient for the weights is four
  forward passes of products, one for alphas three, and the mixed derivative nine:
  twice three, and three transposed. So exact steps are 21 / 7 first-order steps."""
  work = common_supernet_ways.Work((32, 32, 3), 10, 4, 3, 2, 0)
  counts = {
    way: common_supernet_ways.num_flops(way, work)
    for way in common_supernet_ways.PROGRAMS
  }
  passes = {"of_alphas": 3, "of_weights": 4, "gradient": 4, "mixed": 9, "order_1": 7}
  for way, expected in passes.items():
    assert counts[way] / counts["forward"] == pytest.approx(expected, rel=0.05)
  for way, expected in {"exact": 21 / 7, "finite_difference": 18 / 7}.items():
    assert counts[way] / counts["order_1"] == pytest.approx(expected, rel=0.02)
  assert common_supernet_ways.num_flops("torch_gradient", work) is None


def test_the_peer_is_the_same_network():
  """PyTorch's supernet has as many weights as ours, alphas apart."""
  torch = pytest.importorskip("torch")
  work = common_supernet_ways.Work((32, 32, 3), 10, 16, 8, 2, 0)
  network = common_supernet_ways._torch_supernet(work)
  names = dict(network.named_parameters())
  counts = {"alphas" in name: 0 for name in names}
  for name, value in names.items():
    counts["alphas" in name] += value.numel()
  assert counts == {True: 2 * 14 * 8, False: 1_930_618}
  assert torch.isfinite(network(torch.zeros(2, 3, 32, 32))).all()
