"""NATS-Bench's files as a table; `plain_pickle_test` has what no file may do."""

import bz2
import collections
import itertools
import os
import pathlib
import pickle
import subprocess
import sys

import numpy as np
import pytest

from nasjax.core.types import InputError
from nasjax.data import nats_bench
from nasjax.data.plain_pickle import read_plain

ROOT = pathlib.Path(__file__).resolve().parents[2]
ARCHS = [
  "|{}~0|+|{}~0|{}~1|+|{}~0|{}~1|{}~2|".format(*ops)
  for ops in itertools.product(reversed(nats_bench.OP_NAMES), repeat=6)
]
MODELS = (
  ("cifar10-valid", ("x-valid", "ori-test"), 10.0),
  ("cifar10", ("ori-test",), 20.0),
  ("cifar100", ("x-valid", "x-test", "ori-test"), 30.0),
  ("ImageNet16-120", ("x-valid", "x-test", "ori-test"), 40.0),
)


def made_record(row, seeds):
  """A record in the authors' layout, with numbers that tell where they belong."""
  record = collections.OrderedDict()
  for epochs in (12, 200):
    results = {}
    for model, splits, base in MODELS:
      for seed in reversed(seeds):
        results[model, seed] = {
          "name": model,
          "epochs": epochs,
          "train_times": collections.OrderedDict((e, base) for e in range(epochs)),
          "params": np.float64(base / 100 + row),
          "flop": base + row,
          "latency": [np.float64(0.5)],
          "eval_acc1es": {
            f"{split}@{epoch}": base + i + seed / 1000 + (epochs == 200) * 50 - row / 10
            for i, split in enumerate(splits)
            for epoch in (0, epochs - 1)
          },
          "net_state_dict": None,
        }
        results[model, seed]["eval_acc1es"][f"{splits[0]}@0"] = 0.0
    record[str(epochs)] = {
      "arch_index": row,
      "arch_str": ARCHS[row],
      "all_results": results,
      "dataset_seed": {model: list(reversed(seeds)) for model, *_ in MODELS},
    }
  return record


def put(path, value, protocol=4):
  path.write_bytes(bz2.compress(pickle.dumps(value, protocol=protocol)))
  return path


class Calls:
  """Pickles as a call of anything."""

  def __init__(self, function, *args):
    self._call = function, args

  def __reduce__(self):
    return self._call


@pytest.fixture
def folder(tmp_path):
  folder = tmp_path / "NATS-tss-v1_0-made-simple"
  folder.mkdir()
  meta = {"meta_archs": ARCHS, "arch2infos": None, "evaluated_indexes": set()}
  put(folder / "meta.pickle.pbz2", meta)
  for row, seeds in enumerate([(777,), (777, 888), (777, 888, 999)]):
    put(folder / f"{row:06d}.pickle.pbz2", made_record(row, seeds))
  return folder


def test_made_records_round_trip(folder, tmp_path):
  seen = []
  done = nats_bench.convert(
    folder, tmp_path / "o.npz", rows=[2, 0, 1], progress=lambda *a: seen.append(a)
  )
  assert seen == [(1, 3), (2, 3), (3, 3)]
  assert done == (tmp_path / "o.npz", 3, {1: 1, 2: 1, 3: 1})
  with np.load(tmp_path / "o.npz") as table:
    # The first cells by `ARCHS`: the last edge changes first, from the last operation.
    np.testing.assert_array_equal(table["ops"], [[4] * 5 + [k] for k in (2, 4, 3)])
    np.testing.assert_array_equal(table["edges"], nats_bench.EDGES)
    assert tuple(table["op_names"]) == nats_bench.OP_NAMES
    np.testing.assert_array_equal(table["n_seeds"], [3, 1, 2])
    rows = np.array([2, 0, 1])
    mean = np.array([0.888, 0.777, 0.8325]) - rows / 10
    for name, valid, test, base in (
      ("cifar10", 10, 20, 10),
      ("cifar100", 30, 31, 30),
      ("imagenet16", 40, 41, 40),
    ):
      close = dict(rtol=1e-6)
      np.testing.assert_allclose(table[f"{name}_valid"], valid + 50 + mean, **close)
      np.testing.assert_allclose(table[f"{name}_test"], test + 50 + mean, **close)
      np.testing.assert_allclose(table[f"ep12_{name}_valid"], valid + mean, **close)
      np.testing.assert_allclose(table[f"ep12_{name}_test"], test + mean, **close)
      np.testing.assert_allclose(table[f"{name}_train_seconds"], 200 * base, **close)
      np.testing.assert_allclose(table[f"{name}_params_m"], base / 100 + rows, **close)
      np.testing.assert_allclose(table[f"{name}_flops_m"], base + rows, **close)
      per_seed = np.array(
        [[0.777, 0.888, 0.999], [0.777, np.nan, np.nan], [0.777, 0.888, np.nan]]
      )
      per_seed += valid + 50 - rows[:, None] / 10
      np.testing.assert_allclose(table[f"{name}_valid_per_seed"], per_seed, **close)


def test_processes_read_the_same(folder, tmp_path):
  for workers in (1, 2):
    nats_bench.convert(
      folder, tmp_path / f"{workers}.npz", rows=[0, 1, 2], workers=workers
    )
  with np.load(tmp_path / "1.npz") as one, np.load(tmp_path / "2.npz") as two:
    assert one.files == two.files
    for name in one.files:
      np.testing.assert_array_equal(one[name], two[name])


def test_the_authors_record_is_row_0_of_the_table(shared_data, tmp_path):
  home = shared_data / "nasbench201"
  nats_bench.convert(home / "NATS-tss-v1_0-sample", tmp_path / "o.npz", rows=[0])
  with (
    np.load(tmp_path / "o.npz") as ours,
    np.load(home / "nasbench201.npz") as table,
  ):
    common = set(ours.files) & set(table.files)
    lacks = {"cifar100_valid_per_seed", "imagenet16_valid_per_seed"}
    assert set(ours.files) - common == lacks
    for name in common - {"op_names", "edges"}:
      np.testing.assert_allclose(ours[name], table[name][:1], rtol=0, atol=1e-4)
      assert ours[name].dtype == table[name].dtype
    for name in ("op_names", "edges"):
      np.testing.assert_array_equal(ours[name], table[name])
    for name in ("cifar100", "imagenet16"):
      mean = ours[f"{name}_valid_per_seed"].mean(1)
      np.testing.assert_allclose(mean, table[f"{name}_valid"][:1], rtol=0, atol=1e-4)


def test_the_authors_cells_are_those_of_the_table(shared_data):
  home = shared_data / "nasbench201"
  meta = read_plain(home / "NATS-tss-v1_0-sample" / "meta.pickle.pbz2")
  ops = [nats_bench.parse(arch) for arch in meta["meta_archs"]]
  with np.load(home / "nasbench201.npz") as table:
    np.testing.assert_array_equal(ops, table["ops"])


# --- folders and records that are not right -------------------------------------------


def change(*keys, to):
  """Changes one value of a made record; None takes the key away."""

  def change(record):
    for key in keys[:-1]:
      record = record[key]
    if to is None:
      del record[keys[-1]]
    else:
      record[keys[-1]] = to

  return change


MODEL = ("200", "all_results", ("cifar100", 777))
WRONG = {
  "no 12 epochs": (change("12", to=None), "'12'"),
  "another cell": (change("200", "arch_str", to=ARCHS[5]), "row 0"),
  "another row": (change("12", "arch_index", to=1), "row 0"),
  "no model": (change(*MODEL, to=None), "('cifar100', 777)"),
  "no seeds": (change("12", "dataset_seed", "cifar10", to=[]), "no seeds"),
  "odd seeds": (change("12", "dataset_seed", "cifar10", to=["a"]), "no seeds"),
  "fewer epochs": (change(*MODEL, "epochs", to=100), "200 epochs"),
  "no accuracy": (change(*MODEL, "eval_acc1es", "x-test@199", to=None), "x-test@199"),
  "too good": (change(*MODEL, "eval_acc1es", "x-test@199", to=101.0), "101 percent"),
  "not finite": (change(*MODEL, "flop", to=float("nan")), "'flop'"),
  "a text": (change(*MODEL, "params", to="0.1"), "'params'"),
  "an epoch untimed": (change(*MODEL, "train_times", 7, to=None), "7"),
  "no times": (change(*MODEL, "train_times", to=[1.0]), "train_times"),
  "a truth": (change(*MODEL, "train_times", 7, to=True), "7"),
  "negative": (change(*MODEL, "flop", to=-1), "'flop'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_record_that_lacks_something_is_named(case, folder, tmp_path):
  alter, reason = WRONG[case]
  record = made_record(0, (777, 888))
  alter(record)
  put(folder / "000000.pickle.pbz2", record)
  with pytest.raises(InputError) as caught:
    nats_bench.convert(folder, tmp_path / "o.npz", rows=[0])
  assert "000000.pickle.pbz2" in str(caught.value) and reason in str(caught.value)
  assert not (tmp_path / "o.npz").exists()


def test_a_refused_record_leaves_the_old_table_alone(folder, tmp_path):
  (tmp_path / "o.npz").write_bytes(b"old")
  put(folder / "000001.pickle.pbz2", Calls(os.system, f"touch {tmp_path}/ran"))
  with pytest.raises(InputError, match=r"000001.pickle.pbz2: it asks for \w+\.system"):
    nats_bench.convert(folder, tmp_path / "o.npz", rows=[0, 1])
  assert (tmp_path / "o.npz").read_bytes() == b"old"
  assert sorted(os.listdir(tmp_path)) == [folder.name, "o.npz"]


def test_the_first_missing_record_is_named(folder, tmp_path):
  with pytest.raises(InputError, match=r"15,622 of 15,625 .*000003\.pickle.*row 3"):
    nats_bench.convert(folder, tmp_path / "o.npz")
  assert os.listdir(tmp_path) == [folder.name]


def test_what_is_no_folder_of_the_benchmark_is_refused(folder, tmp_path):
  def refuses(message, where=folder, to=tmp_path / "o.npz", **options):
    with pytest.raises(InputError, match=message) as caught:
      nats_bench.convert(where, to, **({"rows": [0]} | options))
    assert "\n" not in str(caught.value)

  refuses("is no folder", where=tmp_path / "absent")
  refuses("is no folder", where=folder / "meta.pickle.pbz2")
  refuses("lacks meta", where=tmp_path)
  refuses("end in .npz", to=tmp_path / "o.txt")
  refuses("cannot be written", to=tmp_path / "absent" / "o.npz")
  refuses("row 15625 is not", rows=[15625])
  refuses("row -1 is not", rows=[-1])
  refuses("rows is empty", rows=[])
  refuses("workers", workers=0)
  meta = folder / "meta.pickle.pbz2"
  put(meta, {"meta_archs": ARCHS[:7]})
  refuses("meta.* lists 7 cells, not 15,625")
  put(meta, {"meta_archs": ARCHS[:-1] + ARCHS[:1]})
  refuses("meta.* lists 15,624 cells")
  put(meta, {"meta_archs": ["8:8:8:8:8"]})  # the size space
  refuses("meta.*'8:8:8:8:8' is no cell")
  put(meta, {"meta_archs": [3]})
  refuses("meta.*a int is no cell")
  put(meta, ARCHS)
  refuses("meta.*'meta_archs'")
  put(meta, Calls(os.mkdir, str(tmp_path / "ran")))
  refuses("meta.*mkdir")
  assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
  "arch",
  ["", "|none~0|", ARCHS[0] + "|", ARCHS[0].replace("avg", "max"), "\n" + ARCHS[0]],
)
def test_what_is_no_cell_is_refused(arch):
  with pytest.raises(InputError, match="is no cell"):
    nats_bench.parse(arch)


def test_the_order_of_the_edges():
  arch = (
    "|nor_conv_3x3~0|+|none~0|skip_connect~1|"
    "+|nor_conv_1x1~0|avg_pool_3x3~1|nor_conv_3x3~2|"
  )
  assert nats_bench.parse(arch) == [3, 0, 1, 2, 4, 3]
  assert nats_bench.EDGES == ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))


def test_the_command_says_what_is_missing_in_one_line(folder, tmp_path):
  command = [sys.executable, "-m", "nasjax.data.nats_bench", folder, tmp_path / "o.npz"]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 2 and not done.stdout
  assert done.stderr.count("\n") == 1 and "000003.pickle.pbz2" in done.stderr


def test_the_command_converts_a_folder(folder, tmp_path, monkeypatch, capsys):
  # A benchmark of three cells, since 15,625 take minutes.
  monkeypatch.setattr(nats_bench, "_NUM_CELLS", 3)
  put(folder / "meta.pickle.pbz2", {"meta_archs": ARCHS[:3]})
  assert nats_bench.main([str(folder), str(tmp_path / "o.npz"), "--workers=1"]) == 0
  assert "3 cells (1 with 1 seeds, 1 with 2 seeds" in capsys.readouterr().out
  with np.load(tmp_path / "o.npz") as table:
    assert table["ops"].shape == (3, 6)
