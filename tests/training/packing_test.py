import dataclasses

import numpy as np
import pytest

from nasjax.core.types import InputError
from nasjax.networks.mlp import dense_widths, place
from nasjax.spaces.mlp_chain import Dense, Dropout
from nasjax.training import packing, profile
from nasjax.training.packing import TILED, CostModel, Program, make_plan

PROFILE = profile.DeviceProfile(
  flops=5e10,
  bandwidth=5e10,
  memory_bandwidth=2e10,
  launch=1e-6,
  compile_base=0.4,
  compile_layer=0.1,
)
WHOLE = (512,) * 5


def cost(steps=700, **changed):
  values = dict(num_features=64, num_outputs=10, batch_size=32, valid_rows=5000)
  return CostModel(PROFILE, train_steps=steps, **{**values, **changed})


def chain(*widths, activation="relu"):
  return tuple(Dense(width, activation) for width in widths)


def random_chains(count, seed=0):
  random = np.random.default_rng(seed)
  return [
    chain(*(2 ** random.integers(3, 10, random.integers(1, 5))), activation=name)
    for name in random.choice(["relu", "tanh"], count)
  ]


def kind(program):
  return "tiled" if program == TILED else "framed" if program.frame else "exact"


def check(plan, chains):
  """Every child is in one group whose program can train it."""
  assert sorted(i for g in plan.groups for i in g.members) == list(range(len(chains)))
  for group in plan.groups:
    for i in group.members:
      if group.program.frame:
        assert place(dense_widths(chains[i]), group.program.frame) is not None
      elif group.program != TILED:
        assert group.program.layers == chains[i]


@pytest.mark.parametrize("layout", packing.LAYOUTS)
def test_plans_are_partitions_that_fit(layout):
  chains = random_chains(40)
  plan = make_plan(chains, (), cost(), layout, WHOLE)
  check(plan, chains)
  kinds = {kind(group.program) for group in plan.groups}
  every = {"exact", "framed", "tiled"}
  framed = {"bucketed": {"framed"}, "padded": {"framed"}}
  assert kinds <= {**framed, "exact": {"exact"}, "tiled": {"tiled"}}.get(layout, every)
  assert plan.num_new == len(plan.groups)
  assert f"{len(chains)} children" in plan.describe()


def test_compiling_decides_on_a_small_table_and_arithmetic_on_a_large_one():
  chains = random_chains(20)
  small = make_plan(chains, (), cost(steps=300), "auto", WHOLE)
  large = make_plan(chains, (), cost(steps=300_000), "auto", WHOLE)
  assert len(small.groups) < len(large.groups) == len(set(chains))
  assert all(group.program.layers for group in large.groups)


def test_different_chains_on_a_small_table_share_the_tiled_program():
  chains = random_chains(20)
  small = make_plan(chains, (), cost(steps=100, tiled=True), "auto", WHOLE)
  tiled = next(group for group in small.groups if group.program == TILED)
  assert (
    len(tiled.members) > 10 and f"{len(tiled.members)} in tiles" in small.describe()
  )
  # It is compiled once: in the next round it costs nothing but its time.
  later = make_plan(
    random_chains(5, seed=1), {TILED}, cost(100, tiled=True), "auto", WHOLE
  )
  assert TILED in {group.program for group in later.groups} and later.num_new == 0
  large = make_plan(chains, (), cost(steps=300_000, tiled=True), "auto", WHOLE)
  assert all(group.program.layers for group in large.groups)
  without = make_plan(chains, (), cost(steps=100), "auto", WHOLE)
  assert TILED not in {group.program for group in without.groups}


def test_auto_is_never_dearer_than_one_kind_alone():
  for seed in range(5):
    chains = random_chains(15, seed)
    total = {
      layout: plan.compile_seconds + plan.run_seconds
      for layout in packing.LAYOUTS
      for plan in [make_plan(chains, (), cost(tiled=True), layout, WHOLE)]
    }
    # A frame's compile time counts half in the decision: it serves later rounds too.
    assert total["auto"] <= 1.25 * min(total.values())


def test_what_is_compiled_already_is_used():
  chains = [chain(100, 100), chain(60)]
  ready = Program(None, (128, 128))
  plan = make_plan(chains, {ready}, cost(), "auto", WHOLE)
  assert [group.program for group in plan.groups] == [ready]
  assert plan.num_new == 0 and plan.compile_seconds == 0
  own = Program(chains[0], None)
  assert make_plan(chains[:1], {own}, cost(), "auto", WHOLE).groups[0].program == own


def test_children_of_one_shape_share_a_program():
  names = ("relu", "tanh", "elu", "sigmoid")
  chains = [chain(256, 128, activation=name) for name in names]
  chains += [(*chain(256, 128), Dropout(0.2))]
  (group,) = make_plan(chains, (), cost(), "auto", WHOLE).groups
  assert group.program.frame == (256, 128)


def test_slots_are_rounded_up_in_coarse_steps():
  assert packing.round_up((8, 64, 65, 256, 300), 512) == (64, 64, 256, 256, 512)
  assert packing.round_up((5,), 8) == (8,)


def test_run_time_grows_with_the_work():
  model = cost()
  seconds = [model.child_seconds(Program(None, (w, w))) for w in (64, 128, 256, 512)]
  assert all(b > 1.5 * a for a, b in zip(seconds[1:], seconds[2:]))
  twice = dataclasses.replace(model, train_steps=1400, valid_rows=10000)
  assert twice.child_seconds(Program(None, (64,))) == pytest.approx(
    2 * model.child_seconds(Program(None, (64,)))
  )
  assert model.compile_seconds(Program(chain(8, 8), None)) == pytest.approx(0.7)


def test_a_vmapped_group_pays_its_launches_once():
  slow_launch = dataclasses.replace(PROFILE, launch=0.1)
  alone = CostModel(slow_launch, 64, 10, 32, train_steps=700, valid_rows=5000)
  vmapped = dataclasses.replace(alone, vmapped=True)
  program = Program(None, (64, 64))
  assert alone.shared_seconds(program) == 0
  total = vmapped.shared_seconds(program) + vmapped.child_seconds(program)
  assert total >= alone.child_seconds(program) > vmapped.child_seconds(program)
  # Where launches are dear, all children go into one population, although the frame
  # that holds most of them looks best at first.
  chains = random_chains(20)
  assert len(make_plan(chains, (), vmapped, "auto", WHOLE).groups) == 1
  for layout in ("auto", "bucketed"):
    plan = make_plan(chains, (), vmapped, layout, WHOLE)
    check(plan, chains)
    expected = sum(vmapped.shared_seconds(g.program) for g in plan.groups)
    expected += sum(
      len(g.members) * vmapped.child_seconds(g.program) for g in plan.groups
    )
    assert plan.run_seconds == pytest.approx(expected)


def test_a_profile_is_measured_once_and_kept(tmp_path, monkeypatch):
  monkeypatch.setattr(profile, "measure", lambda: PROFILE)
  assert profile.load_or_measure(tmp_path) == PROFILE

  def again():
    raise AssertionError("measured twice")

  monkeypatch.setattr(profile, "measure", again)
  assert profile.load_or_measure(tmp_path) == PROFILE
  (tmp_path / "profile.json").write_text('{"broken": ')
  with pytest.raises(AssertionError, match="twice"):
    profile.load_or_measure(tmp_path)
  with pytest.raises(InputError, match="positive flops"):
    dataclasses.replace(PROFILE, flops=0.0)


def test_measuring_gives_rates():
  measured = profile.measure()
  assert 1e8 < measured.flops < 1e15
  assert 1e8 < measured.bandwidth < 1e14 and 1e8 < measured.memory_bandwidth < 1e13
  assert 0 < measured.launch < 1e-2 and measured.compile_layer > 0


def mixed_chains(count, seed=0):
  """Of one to nine layers, as the survey's space has them."""
  random = np.random.default_rng(seed)
  return [
    chain(*map(int, 2 ** random.integers(3, 10, 1 + i % 9)), activation=name)
    for i, name in enumerate(random.choice(["relu", "tanh", "elu"], count))
  ]


@pytest.mark.parametrize("steps", [300, 15_000])
def test_plans_for_a_tpu_are_few_wide_populations(steps):
  chains, whole = mixed_chains(30), (512,) * 9
  here = cost(steps, num_features=784, valid_rows=20 * steps)
  plans = [make_plan(chains, (), here, "auto", whole)]
  for given in (profile.GIVEN["tpu-v5e"], profile.GIVEN["tpu-v6e"]):
    there = dataclasses.replace(here, profile=given, vmapped=True)
    plan = make_plan(chains, (), there, "auto", whole)
    plans.append(plan)
    check(plan, chains)
    assert plan == make_plan(chains, (), there, "auto", whole)
    turned = make_plan(chains[::-1], (), there, "auto", whole)
    assert {
      (g.program, frozenset(29 - i for i in g.members)) for g in turned.groups
    } == {(g.program, frozenset(g.members)) for g in plan.groups}
    assert plan.num_framed == 30
    assert f"30 children: 30 in {len(plan.groups)} framed programs; " in plan.describe()
    # What is compiled serves the next round, whatever its chains are.
    known = [group.program for group in plan.groups]
    later = make_plan(mixed_chains(30, seed=1), known, there, "auto", whole)
    assert later.num_new <= 1 and "30 children: 30 in " in later.describe()
  # A core runs nearly every child in a program of its own, where training is long. The
  # faster a device is, the less another program saves, and its compilation is dear.
  cpu, v5e, v6e = (len(plan.groups) for plan in plans)
  assert cpu > 12 and 1 <= v6e <= v5e <= 6
  assert plans[0].run_seconds > plans[1].run_seconds > plans[2].run_seconds
  if steps == 300:  # on a small table nothing is worth a second compilation
    assert v5e == v6e == 1
  else:  # shallow chains are not worth nine layers' launches and traffic
    assert cpu > 25 and v5e > v6e > 1
