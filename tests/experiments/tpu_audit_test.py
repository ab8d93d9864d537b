"""The audit of accelerators, whose part is played by this CPU."""

import functools
import types

import jax
import pytest

from benchmarks import tpu_audit
from nasjax.spaces.mlp_chain import MLPChain


@pytest.fixture
def audit(monkeypatch):
  here = types.SimpleNamespace(devices=jax.devices())
  monkeypatch.setattr(
    tpu_audit.topologies, "get_topology_desc", lambda name, platform: here
  )
  small = functools.partial(MLPChain, widths=(4, 64), max_layers=3)
  monkeypatch.setattr(tpu_audit, "MLPChain", small)
  for name, value in (("FEATURES", 8), ("TRAIN", 64), ("VALID", 16)):
    monkeypatch.setattr(tpu_audit, name, value)
  return tpu_audit.Audit("v5e", 1)


def test_a_population_that_does_not_fit_is_followed_by_its_part(audit, monkeypatch):
  (fits,) = audit.padded(6)
  assert fits.children == 6 and fits.parts == 1 and not fits.failure
  assert fits.flops > 0 and fits.peak_gb > 0 and fits.collectives == 0
  # Weights of a child: 8 x 64 + 64, 64 x 64 + 64, 64 x 10 + 10.
  best = tpu_audit.BEST_BYTES * 6 * 5386 / 1e9
  limit = 0.9 * (fits.peak_gb + best)
  monkeypatch.setitem(tpu_audit.MEMORY_GB, "v5e", limit / tpu_audit.SHARE)
  whole, part = audit.padded(6)
  assert "trained in 2 parts" in whole.failure and whole.flops == 0
  assert part.children == 3 and part.parts == 2 and part.peak_gb < fits.peak_gb
  assert part.flops == pytest.approx(fits.flops / 2, rel=0.1)
  cells = whole.line().split("|")
  assert len(cells) == len(part.line().split("|")) and cells[2].strip() == "6"


def test_what_is_far_too_large_is_not_compiled(audit, monkeypatch):
  monkeypatch.setitem(tpu_audit.MEMORY_GB, "v5e", 0.4)
  compiled = []
  enter = tpu_audit._enter_memory
  monkeypatch.setattr(
    tpu_audit,
    "_enter_memory",
    lambda row, *rest: (compiled.append(row.children), enter(row, *rest)),
  )
  whole, *parts = audit.padded(6000)
  assert whole.failure.startswith("would take 0.8 GB of 0.4")
  assert compiled == [part.children for part in parts]
  assert not parts[-1].failure and parts[-1].parts * parts[-1].children >= 6000


@pytest.mark.usefixtures("quick_compile")
def test_the_search_step_is_listed(audit, monkeypatch):
  monkeypatch.setattr(tpu_audit, "SUPERNET", ((4, 4, 1), 2, 2, 3, 1))
  monkeypatch.setattr(tpu_audit, "SEARCH_BATCH", 2)
  row = audit.search_step("float32")
  assert row.name == "DARTS step, float32" and row.collectives == 0
  # The arithmetic of products and convolutions is a part of all that there is.
  assert row.peak_gb > 0 and 0 < row.least * audit.profile.flops < row.flops
  monkeypatch.setattr(audit, "retraining", lambda: "retraining")
  monkeypatch.setattr(audit, "search_step", lambda dtype: dtype)
  listed = list(tpu_audit._rows(audit, [], list(tpu_audit.PROGRAMS), ""))
  assert listed == ["retraining", "float32", "bfloat16"]
  assert list(tpu_audit._rows(audit, [], ["darts"], "")) == listed[1:]


def test_collectives_are_found_in_what_xla_prints():
  text = """
  %start = (f32[8]{0:T(8)}, f32[8]{0:T(8)}) all-reduce-start(f32[8]{0} %x), channel_id=1
  %done = f32[8]{0} all-reduce-done((f32[8]{0}, f32[8]{0}) %start)
  %gathered = f32[32]{0} all-gather(f32[8]{0} %x), dimensions={0}
  ROOT %sum = f32[8]{0} add(f32[8]{0} %done, f32[8]{0} %all-gather.clone)
  """
  assert len(tpu_audit.COLLECTIVES.findall(text)) == 2
