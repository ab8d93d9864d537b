"""An estimator whose plans are made for a TPU, and carried out here as there."""

import dataclasses

import jax
import numpy as np

from nasjax.data import embedded
from nasjax.estimators.trained import trained
from nasjax.spaces import base
from nasjax.spaces.mlp_chain import MLPChain
from nasjax.training import profile
from nasjax.training.programs import Programs

SPACE = MLPChain(widths=(4, 16), max_layers=5)
DATA = embedded.load("diabetes")  # its score changes with every weight
SETTINGS = {"epochs": 2, "batch_size": 32, "learning_rate": 0.01, "score": "last"}


def draw(count, seed):
  keys = jax.random.split(jax.random.key(seed), count)
  return np.asarray(jax.vmap(lambda key: base.sample(SPACE, key))(keys))


def scores_of(genotypes, **options):
  estimator = trained(SPACE, DATA, **SETTINGS, **options)
  state = estimator.init(jax.random.key(0))
  return estimator.estimate(jax.random.key(1), state, genotypes)[1].score


def test_plans_for_a_tpu_score_children_as_exact_programs_do(monkeypatch):
  genotypes = draw(30, seed=0)
  depths = {len(SPACE.layers(genotype)) for genotype in genotypes}
  assert depths == {1, 2, 3, 4}
  exact = scores_of(genotypes[::10], layout="exact")
  assert np.isfinite(exact).all() and np.ptp(exact) > 0.01

  # Where children do not take turns, a group is one vmapped population.
  monkeypatch.setattr(Programs, "on_one_cpu", property(lambda programs: False))
  # As it is, compiling decides on so small a table; were it next to nothing, traffic.
  quick = dataclasses.replace(
    profile.GIVEN["tpu-v6e"], launch=1e-12, compile_base=3e-6, compile_layer=3e-6
  )
  monkeypatch.setitem(profile.GIVEN, "tpu-v6e", quick)
  widths: list[int] = []
  get = Programs.get

  def noted(self, program, width, *arguments):
    widths.append(width)
    return get(self, program, width, *arguments)

  monkeypatch.setattr(Programs, "get", noted)
  found = {}
  for device in profile.GIVEN:
    plans = []
    widths.clear()
    found[device] = scores_of(
      genotypes, device=device, on_plan=lambda *args, plans=plans: plans.append(args)
    )
    ((plan, rung),) = plans
    groups = plan.groups
    assert rung == 0
    assert len(groups) == {"tpu-v5e": 1, "tpu-v6e": 3}[device]
    assert sorted(widths) == sorted(len(group.members) for group in groups)
    np.testing.assert_allclose(found[device][::10], exact, atol=2e-4)
  np.testing.assert_allclose(found["tpu-v5e"], found["tpu-v6e"], atol=2e-4)
