"""A population over several processes: what one finds, whoever trains which child.

The processes are threads here, and messages pass through the bytes that they would be;
`tests/experiments/processes_test.py` has real ones.
"""

import contextlib
import queue
import threading

import flax.serialization
import jax
import numpy as np
import pytest

from nasjax.core.types import InputError
from nasjax.data import embedded
from nasjax.spaces.mlp_chain import MLPChain
from nasjax.training.kept_children import KeptChildren
from nasjax.training.losses import get_task
from nasjax.training.packing import TILED, Group, Plan, Program
from nasjax.training.population import device_data, population_trainer
from nasjax.training.step import Hyper
from nasjax.training.team_trainer import serve, share_out, team_trainer

SPACE = MLPChain(widths=(4, 8), max_layers=4)
ARCHS = ["8 relu", "4 tanh - dropout 0.2 - 8 elu", "8 relu - 4 sigmoid", "4 elu"]
ARCHS += ["4 elu - 4 elu", "8 tanh"]
GENOTYPES = np.stack([SPACE.parse(arch) for arch in ARCHS])
KEY, HYPER = jax.random.key(3), Hyper(0.01, 9)


class Wires:
  """What the teams of all processes have in common."""

  def __init__(self, count):
    self.boxes = {(a, b): queue.Queue() for a in range(count) for b in range(count)}
    self.taken, self.lock = {}, threading.Lock()


class FakeTeam:
  def __init__(self, wires, number, count):
    self.wires, self.number, self.count = wires, number, count

  def send(self, to, message):
    data = flax.serialization.msgpack_serialize(message)
    self.wires.boxes[self.number, to].put(data)

  def receive(self, sender):
    data = self.wires.boxes[sender, self.number].get(timeout=120)
    return flax.serialization.msgpack_restore(data) if data else None

  def take(self, name):
    with self.wires.lock:
      return self.wires.taken.setdefault(name, self.number) == self.number


def made(maker, *first, data=None, **options):
  dataset = data or embedded.load("iris")
  rows = device_data(dataset.train, dataset.valid)
  task = get_task(dataset.task)
  options = {"epochs": 4, "batch_size": 16, "layout": "tiled"} | options
  return maker(*first, SPACE, task, rows, dataset.num_outputs, **options)


@contextlib.contextmanager
def leading(count, **options):
  """The trainer of the leader of so many processes, and what they have taken."""
  wires = Wires(count)
  teams = [FakeTeam(wires, number, count) for number in range(count)]
  others = [
    threading.Thread(target=made, args=(serve, team), kwargs=options)
    for team in teams[1:]
  ]
  for other in others:
    other.start()
  try:
    yield made(team_trainer, teams[0], **options), wires.taken
  finally:
    for number in range(1, count):
      wires.boxes[0, number].put(None)
    for other in others:
      other.join(120)
      assert not other.is_alive()


def same(a, b, exact=True):
  """Vmapped over another width a sum may be rounded otherwise."""
  for field in ("layers", "epochs_run", "best_epoch", "failure", "stopped"):
    assert getattr(a, field) == getattr(b, field)
  mine = a.weights, a.curve, a.valid_loss
  yours = b.weights, b.curve, b.valid_loss
  rtol = 0 if exact else 1e-4
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol, rtol / 100), mine, yours
  )


@pytest.mark.parametrize("layout", ["tiled", "exact", "padded"])
def test_children_are_those_of_one_process_bit_for_bit(layout):
  here = made(population_trainer, layout=layout)(KEY, GENOTYPES, HYPER)
  seen, plans = [], []
  with leading(3, layout=layout) as (train, taken):
    for _ in range(2):
      there = train(
        KEY,
        GENOTYPES,
        HYPER,
        on_child=lambda i, child: seen.append((i, child)),
        on_plan=plans.append,
      )
  for a, b in zip(here, there, strict=True):
    same(a, b, layout != "padded")
  assert sorted(i for i, _ in seen[:6]) == list(range(6)) and len(seen) == 12
  assert len(plans) == 2 and "6 children" in plans[0].describe()
  # Vmapped ones are shared out before; the others are there for whoever comes first.
  names = {f"{number}/{i}" for number in range(2) for i in range(6)}
  assert set(taken) == (set() if layout == "padded" else names)


@pytest.mark.parametrize("layout", ["tiled", "padded"])
def test_training_on_where_it_was_paused(layout):
  def halved(layers, fresh):
    return jax.tree.map(lambda leaf: 0.5 * leaf, fresh)

  ends = []
  short, options = HYPER._replace(stop_after=2), {"keep": True}
  with leading(2, layout=layout) as (team, _):
    for train in (made(population_trainer, layout=layout), team):
      for load in (None, halved):
        part = train(KEY, GENOTYPES, short, load=load, **options)
        assert [child.epochs_run for child in part] == [2] * 6
        assert all(child.paused for child in part)
        # Not all go on, and one process may have none of them.
        left = [0, 2, 3]
        before = [part[i] for i in left]
        ends.append(train(KEY, GENOTYPES[left], HYPER, load=load, before=before))
  for mine, yours in zip(ends[:2], ends[2:]):
    for a, b in zip(mine, yours, strict=True):
      assert a.epochs_run == 4
      same(a, b, layout != "padded")
  assert (ends[0][0].curve != ends[1][0].curve).any()


@pytest.mark.parametrize("layout", ["exact", "padded"])
def test_a_job_that_goes_on_trains_what_nobody_has(tmp_path, layout):
  kept, lines = KeptChildren(tmp_path, least_seconds=0), []
  options = dict(layout=layout, kept=kept)
  with leading(2, **options) as (train, _):
    first = train(KEY, GENOTYPES, HYPER)
  files = sorted(tmp_path.rglob("*.npz"))
  assert len(files) == 6
  files[0].unlink()
  with leading(2, log=lines.append, **options) as (train, _):
    found = train(KEY, GENOTYPES, HYPER)
  assert sorted(tmp_path.rglob("*.npz")) == files and lines
  again = 0
  for a, b in zip(first, found, strict=True):
    same(a, b)
    again += a.seconds != b.seconds
  # A vmapped part is found whole; the others one by one.
  assert again == 1 if layout == "exact" else 1 <= again < 6


def test_weights_stay_where_nobody_wants_them():
  wires = Wires(2)
  teams = [FakeTeam(wires, number, 2) for number in range(2)]
  other = threading.Thread(target=made, args=(serve, teams[1]))
  other.start()
  train = made(team_trainer, teams[0], wants_weights=False)
  wires.taken["0/0"] = 1  # the other one has this
  children = train(KEY, GENOTYPES, HYPER)
  wires.boxes[0, 1].put(None)
  other.join(120)
  assert children[0].weights is None and children[0].failure is None
  assert any(child.weights is not None for child in children) == (
    0 in wires.taken.values()
  )


def test_other_rows_or_another_job_are_refused():
  dataset = embedded.load("iris")
  spoiled = dataset.train._replace(x=dataset.train.x + 1)
  for options, line in (
    ({"data": type(dataset)(**{**vars(dataset), "train": spoiled})}, "other rows"),
    ({"identity": "another"}, "other flags, versions or devices"),
  ):
    wires = Wires(2)
    made(team_trainer, FakeTeam(wires, 0, 2))
    with pytest.raises(InputError, match=line):
      made(serve, FakeTeam(wires, 1, 2), **options)


def test_the_longest_are_shared_out_first_and_one_architecture_stays_together():
  chains = [SPACE.layers(genotype) for genotype in GENOTYPES] + [
    SPACE.layers(GENOTYPES[5])
  ]
  plan = Plan((Group(TILED, tuple(range(7))),), 0, 0.0, 0.0)
  shares = share_out(plan, chains, 10, 3)
  assert sorted(i for share in shares for i in share) == list(range(7))
  # 8 tanh twice, 8 relu - 4 sigmoid (112 products), then the small ones.
  widths = [[c.width for c in chain if hasattr(c, "width")] for chain in chains]
  work = [sum(i * o for i, o in zip([10, *w], w)) for w in widths]
  busy = [sum(work[i] for i in share) for share in shares]
  assert max(busy) - min(busy) <= min(work)
  exact = Program(chains[5], None)
  plan = Plan((Group(exact, (5, 6)), Group(TILED, (0, 1, 2, 3, 4))), 0, 0.0, 0.0)
  shares = share_out(plan, chains, 10, 2)
  assert [5, 6] in [[i for i in share if i > 4] for share in shares]
  assert plan.only([6, 1]).groups == (Group(exact, (6,)), Group(TILED, (1,)))
  assert share_out(plan, chains, 10, 9)[7:] == [[], []]
