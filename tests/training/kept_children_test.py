"""Children that were done when a job was killed: found again, and only they."""

import threading
import time

import jax
import numpy as np
import pytest

from nasjax.data import embedded
from nasjax.spaces.mlp_chain import MLPChain
from nasjax.training import population
from nasjax.training.kept_children import KeptChildren
from nasjax.training.losses import get_task
from nasjax.training.step import Hyper

SPACE = MLPChain(widths=(4, 8), max_layers=4)
ARCHS = ["8 relu", "4 tanh - dropout 0.2 - 8 elu", "8 relu - 4 sigmoid", "4 elu"]
GENOTYPES = np.stack([SPACE.parse(arch) for arch in ARCHS])
KEY, HYPER = jax.random.key(3), Hyper(0.01, 9)


@pytest.fixture
def trained(monkeypatch):
  """Which children were really trained, by genotype's place in a call."""
  calls, lock, train_alone = [], threading.Lock(), population.train_alone

  def watched(programs, work, program, i):
    with lock:
      calls.append(i)
    return train_alone(programs, work, program, i)

  monkeypatch.setattr(population, "train_alone", watched)
  return calls


def make(folder, identity="job", number=0, least_seconds=0.0, **options):
  data = embedded.load("iris")
  kept = KeptChildren(folder, number, identity, least_seconds)
  return population.population_trainer(
    SPACE,
    get_task(data.task),
    population.device_data(data.train, data.valid),
    data.num_outputs,
    epochs=4,
    batch_size=16,
    kept=kept,
    **{"layout": "exact", **options},
  )


def same(left, right):
  for name in ("curve", "valid_loss", "epochs_run", "best_epoch", "stopped"):
    ours, theirs = getattr(left, name), getattr(right, name)
    assert np.array_equal(ours, theirs, equal_nan=True)
  assert left.layers == right.layers and left.seconds == right.seconds
  ours, theirs = ((c.weights, c.paused) for c in (left, right))
  assert jax.tree.structure(ours) == jax.tree.structure(theirs)
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs)):
    assert np.asarray(a).dtype == np.asarray(b).dtype and np.array_equal(a, b)


def test_only_what_is_not_there_is_trained(tmp_path, trained):
  first = make(tmp_path)(KEY, GENOTYPES, HYPER)
  assert sorted(trained) == [0, 1, 2, 3]
  files = sorted(tmp_path.rglob("*.npz"))
  assert len(files) == 4
  trained.clear()
  lines, done = [], []
  again = make(tmp_path, log=lines.append)
  found = again(KEY, GENOTYPES, HYPER, on_child=lambda i, child: done.append(i))
  assert not trained and sorted(done) == [0, 1, 2, 3]
  assert lines == ["4 of 4 children were done before, and kept"]
  for a, b in zip(first, found):
    same(a, b)
  # One is gone, one is torn: these two are trained, to the same.
  files[0].unlink()
  files[1].write_bytes(files[1].read_bytes()[:100])
  found = make(tmp_path)(KEY, GENOTYPES, HYPER)
  assert len(trained) == 2
  for a, b in zip(first, found):
    same(a._replace(seconds=b.seconds), b)


@pytest.mark.parametrize(
  "change", ["identity", "key", "hyper", "genotypes", "least_seconds"]
)
def test_what_is_another_is_not_found(tmp_path, trained, change):
  least = 1e6 if change == "least_seconds" else 0.0
  make(tmp_path, least_seconds=least)(KEY, GENOTYPES[:2], HYPER)
  trained.clear()
  make(tmp_path, "other" if change == "identity" else "job")(
    jax.random.key(4) if change == "key" else KEY,
    GENOTYPES[2:] if change == "genotypes" else GENOTYPES[:2],
    HYPER._replace(learning_rate=0.02) if change == "hyper" else HYPER,
  )
  assert len(trained) == 2


def test_of_older_rounds_one_is_kept(tmp_path):
  train = make(tmp_path)
  for seed in range(4):
    train(jax.random.key(seed), GENOTYPES[:1], HYPER)
  assert len(list(tmp_path.glob("0/*/*.npz"))) == len(list(tmp_path.glob("0/*"))) == 2
  KeptChildren(tmp_path).clear()
  assert not tmp_path.exists()


def test_a_child_goes_on_from_a_rung_that_was_kept(tmp_path, trained):
  def to_the_end(train):
    part = train(KEY, GENOTYPES, HYPER._replace(stop_after=2), keep=True)
    return part, train(KEY, GENOTYPES[2:], HYPER, before=part[2:])

  first = to_the_end(make(tmp_path))
  assert len(trained) == 6 and len(list(tmp_path.rglob("*.npz"))) == 6
  assert all(child.paused for child in first[0])
  trained.clear()
  second = to_the_end(make(tmp_path))
  assert not trained
  for before, after in zip(first, second):
    for a, b in zip(before, after):
      same(a, b)
  # Killed after the rung: what it left is gone on from.
  last_call = {path.name for path in tmp_path.rglob("*.npz")}
  make(tmp_path / "other")(KEY, GENOTYPES, HYPER._replace(stop_after=2), keep=True)
  for name in last_call - {path.name for path in (tmp_path / "other").rglob("*.npz")}:
    next(tmp_path.glob(f"0/*/{name}")).unlink()
  trained.clear()
  _, third = to_the_end(make(tmp_path))
  assert sorted(trained) == [0, 1]
  for a, b in zip(first[1], third):
    same(a._replace(seconds=b.seconds), b)


def test_a_child_that_diverged_is_kept_and_an_empty_file_is_not_read(tmp_path, trained):
  hyper = HYPER._replace(learning_rate=float("inf"))
  first = make(tmp_path)(KEY, GENOTYPES[:2], hyper)
  assert all(child.failure == "diverged in epoch 1" for child in first)
  assert all(child.weights is None for child in first)
  trained.clear()
  for a, b in zip(first, make(tmp_path)(KEY, GENOTYPES[:2], hyper)):
    same(a, b)
    assert a.failure == b.failure
  assert not trained
  next(tmp_path.rglob("*.npz")).write_bytes(b"")
  make(tmp_path)(KEY, GENOTYPES[:2], hyper)
  assert len(trained) == 1


def test_the_time_of_what_is_found_counts(tmp_path):
  first = KeptChildren(tmp_path)
  layers = [SPACE.layers(genotype) for genotype in GENOTYPES]
  programs = dict(enumerate("abcd"))
  shelf = first.shelf(KEY, GENOTYPES, layers, programs, HYPER, 0)
  assert first.seconds == shelf.seconds == 0.0
  (child,) = make(tmp_path / "other")(KEY, GENOTYPES[:1], HYPER)
  time.sleep(0.2)
  shelf.put([(0, child)])
  second = KeptChildren(tmp_path)
  shelf = second.shelf(KEY, GENOTYPES, layers, programs, HYPER, 0)
  assert shelf.has((0,)) and not shelf.has((0, 1)) and second.seconds > 0.2
  # And what the second adds is on top of it.
  shelf.put([(1, child)])
  third = KeptChildren(tmp_path)
  third.shelf(KEY, GENOTYPES, layers, programs, HYPER, 0)
  assert third.seconds > second.seconds
  assert not third.shelf(KEY, GENOTYPES, layers, {0: "b"}, HYPER, 0).has((0,))
  first.forget()
  assert not (tmp_path / "0").exists()


def test_a_vmapped_program_is_found_whole_or_trained_whole(tmp_path):
  options = dict(layout="padded")
  first = make(tmp_path, **options)(KEY, GENOTYPES, HYPER)
  found = make(tmp_path, **options)(KEY, GENOTYPES, HYPER)
  for a, b in zip(first, found):
    same(a, b)
  next(tmp_path.rglob("*.npz")).unlink()
  lines = []
  found = make(tmp_path, log=lines.append, **options)(KEY, GENOTYPES, HYPER)
  assert not lines
  for a, b in zip(first, found):
    same(a._replace(seconds=b.seconds), b)


def test_a_disk_that_takes_nothing_costs_nothing_but_what_was_kept(tmp_path, trained):
  blocked = tmp_path / "file"
  blocked.write_text("")
  children = make(blocked)(KEY, GENOTYPES[:1], HYPER)
  assert len(trained) == 1 and children[0].failure is None


def test_processes_keep_their_own_and_find_each_others(tmp_path, trained):
  for number in (0, 1):
    part = GENOTYPES[2 * number : 2 * number + 2]
    make(tmp_path, number=number)(KEY, part, HYPER)
  assert len(list(tmp_path.glob("0/*/*.npz"))) == 2
  assert len(list(tmp_path.glob("1/*/*.npz"))) == 2
  trained.clear()
  make(tmp_path, number=1)(KEY, GENOTYPES, HYPER)
  assert not trained
