import jax
import numpy as np
import pytest

from nasjax.core.types import InputError
from nasjax.data import embedded
from nasjax.networks import mlp
from nasjax.runtime import CompileCounter
from nasjax.spaces.mlp_chain import MLPChain
from nasjax.training.losses import TASKS, get_task
from nasjax.training.population import device_data, population_trainer
from nasjax.training.profile import DeviceProfile
from nasjax.training.programs import Programs
from nasjax.training.retrain import pooled, retrain
from nasjax.training.step import Hyper

SPACE = MLPChain(widths=(4, 8), max_layers=4)
ARCHS = ["8 relu", "4 tanh - dropout 0.2 - 8 elu", "8 relu - 4 sigmoid"]
GENOTYPES = np.stack([SPACE.parse(arch) for arch in ARCHS])
HYPER = Hyper(0.01, 2)


PROFILE = DeviceProfile(5e10, 5e10, 2e10, 1e-6, 0.4, 0.1)


def trainer(name="iris", layout="exact", epochs=4, **options):
  dataset = embedded.load(name)
  return population_trainer(
    SPACE,
    get_task(dataset.task),
    device_data(dataset.train, dataset.valid),
    dataset.num_outputs,
    epochs=epochs,
    batch_size=16,
    layout=layout,
    device_profile=PROFILE,
    **options,
  )


def same(a, b, tolerance=0.0):
  np.testing.assert_allclose(a.curve, b.curve, atol=tolerance)
  np.testing.assert_allclose(a.valid_loss, b.valid_loss, atol=max(tolerance, 1e-7))
  for left, right in zip(jax.tree.leaves(a.weights), jax.tree.leaves(b.weights)):
    np.testing.assert_allclose(left, right, atol=tolerance)


@pytest.mark.parametrize("name", ["iris", "breast_cancer", "diabetes"])
def test_layouts_agree_on_every_task(name):
  exact = trainer(name)(jax.random.key(0), GENOTYPES, HYPER)
  for layout in ("auto", "bucketed", "padded", "tiled"):
    other = trainer(name, layout)(jax.random.key(0), GENOTYPES, HYPER)
    for a, b in zip(exact, other, strict=True):
      assert a.epochs_run == b.epochs_run and a.layers == b.layers
      same(a, b, 2e-4)


@pytest.mark.parametrize("layout", ["exact", "bucketed", "padded", "tiled"])
def test_a_child_does_not_depend_on_its_neighbours(layout):
  train = trainer(layout=layout)
  children = train(jax.random.key(0), GENOTYPES, HYPER)
  turned = train(jax.random.key(0), GENOTYPES[::-1], HYPER)
  for a, b in zip(children, turned[::-1]):
    same(a, b, 1e-6 if layout == "padded" else 0.0)
  (alone,) = train(jax.random.key(0), GENOTYPES[1:2], HYPER)
  same(alone, children[1], 1e-5 if layout == "padded" else 0.0)
  other = train(jax.random.key(1), GENOTYPES, HYPER)
  assert np.abs(other[0].valid_loss - children[0].valid_loss).max() > 1e-4


@pytest.mark.parametrize("layout", ["exact", "bucketed", "padded", "tiled"])
def test_compiles_once(layout):
  train = trainer(layout=layout)
  train(jax.random.key(0), GENOTYPES, HYPER)
  with CompileCounter() as again:
    train(jax.random.key(1), GENOTYPES, Hyper(0.5, 1))
  assert again.count == 0


@pytest.mark.parametrize("layout", ["exact", "bucketed", "padded", "tiled"])
def test_training_on_is_the_same_as_not_having_stopped(layout):
  train = trainer(layout=layout)
  patient = Hyper(0.01, 9)
  whole = train(jax.random.key(0), GENOTYPES, patient)
  part = train(jax.random.key(0), GENOTYPES, patient._replace(stop_after=1), keep=True)
  assert [child.epochs_run for child in part] == [1] * 3
  # Two of them, in another order, and in programs of every kind.
  on, keys = [part[2], part[0]], GENOTYPES[[2, 0]]
  same_kind = train(jax.random.key(0), keys, patient, before=on)
  for then in ("exact", "bucketed", "padded", "tiled"):
    ended = trainer(layout=then)(jax.random.key(0), keys, patient, before=on)
    for child, ended_alike, expected in zip(ended, same_kind, (whole[2], whole[0])):
      assert child.epochs_run == 4 and child.best_epoch == expected.best_epoch
      assert child.paused is None
      same(child, expected, 2e-4)
      same(ended_alike, expected, 1e-6 if layout == "padded" else 0.0)
  # What was not kept is trained from the start, and the batches are those of then.
  forgotten = [child._replace(paused=None) for child in on]
  (first, _) = train(jax.random.key(0), keys, patient, before=forgotten)
  same(first, whole[2], 1e-6 if layout == "padded" else 0.0)
  other = train(jax.random.key(1), keys, patient, before=on)[0]
  assert np.abs(other.valid_loss[1:] - whole[2].valid_loss[1:]).max() > 1e-4


def test_who_has_stopped_by_itself_is_not_kept():
  fast = Hyper(0.3, 1, stop_after=11)
  children = trainer(epochs=12)(jax.random.key(0), GENOTYPES, fast, keep=True)
  stopped = [child.stopped for child in children]
  assert [child.paused is None for child in children] == stopped
  assert any(stopped)


def test_children_that_are_done_leave_a_population(monkeypatch):
  widths = []
  get = Programs.get

  def counted(self, program, width, *arguments):
    widths.append(width)
    return get(self, program, width, *arguments)._replace(seconds=0.0)

  monkeypatch.setattr(Programs, "get", counted)
  hyper = Hyper(0.3, 1)  # so fast that most are done after a few epochs
  children = trainer(layout="padded", epochs=12)(jax.random.key(0), GENOTYPES, hyper)
  assert widths[0] == 3 and widths[-1] < 3
  assert len({child.epochs_run for child in children}) > 1
  alone = trainer(layout="exact", epochs=12)(jax.random.key(0), GENOTYPES, hyper)
  for a, b in zip(children, alone, strict=True):
    assert a.epochs_run == b.epochs_run and a.best_epoch == b.best_epoch
    same(a, b, 2e-3)


def test_a_population_that_does_not_fit_is_trained_in_parts():
  lines = []
  whole = trainer(layout="padded")(jax.random.key(0), GENOTYPES, HYPER)
  split = trainer(layout="padded", memory_limit_gb=1e-6, log=lines.append)
  parts = split(jax.random.key(0), GENOTYPES, HYPER)
  assert "3 children would take" in lines[0] and "3 parts" in lines[0]
  assert len(lines) == 1
  for a, b in zip(whole, parts, strict=True):
    same(a, b, 1e-5)


def test_a_compiled_width_serves_a_smaller_population_but_never_a_part(monkeypatch):
  widths = []
  get = Programs.get

  def noted(self, program, width, *arguments):
    widths.append(width)
    return get(self, program, width, *arguments)

  monkeypatch.setattr(Programs, "get", noted)
  train = trainer(layout="padded")
  train(jax.random.key(0), GENOTYPES, HYPER)
  train(jax.random.key(0), GENOTYPES[:2], HYPER)
  assert widths == [3, 3]


def test_parts_have_one_width_and_what_is_far_too_large_is_not_compiled(monkeypatch):
  used, widths, lines = {}, [], []
  get = Programs.get

  def noted(self, program, width, *arguments):
    compiled = get(self, program, width, *arguments)
    used[width] = compiled.bytes
    widths.append(width)
    return compiled

  monkeypatch.setattr(Programs, "get", noted)
  trainer(layout="padded")(jax.random.key(0), GENOTYPES, HYPER)
  num_weights = mlp.num_params(
    SPACE.layers(SPACE.parse("8 relu - 8 relu - 8 relu")), 4, 3
  )
  best = 5 * 4 * 3 * num_weights  # what is kept beside the program on a CPU
  for limit, seen in (
    (used[3] + best - 1, [3, 2, 2]),
    (0.9 * 8 * 4 * 3 * num_weights, [2, 2]),
  ):
    widths.clear()
    train = trainer(layout="padded", memory_limit_gb=limit / 1e9, log=lines.append)
    train(jax.random.key(0), GENOTYPES, HYPER)
    assert "2 parts" in lines[-1] and widths == seen


def test_bfloat16_computes_what_float32_computes_but_coarser():
  # Random weights would do; learning makes sure that gradients arrive as well.
  exact = trainer(epochs=8)(jax.random.key(0), GENOTYPES, HYPER)
  for layout in ("exact", "padded"):
    coarse = trainer(layout=layout, epochs=8, compute_dtype="bfloat16")(
      jax.random.key(0), GENOTYPES, HYPER
    )
    for a, b in zip(exact, coarse, strict=True):
      assert a.weights[0]["kernel"].dtype == b.weights[0]["kernel"].dtype == np.float32
      np.testing.assert_allclose(a.valid_loss, b.valid_loss, atol=0.08)
      assert np.nanmax(np.abs(a.valid_loss - b.valid_loss)) > 0


def test_a_diverging_child_hurts_nobody():
  def broken(layers, fresh):
    if len(layers) == 1:
      fresh[0]["kernel"] = np.full_like(fresh[0]["kernel"], np.nan)
    return fresh

  for layout in ("exact", "padded"):
    train = trainer(layout=layout)
    whole = train(jax.random.key(0), GENOTYPES, HYPER)
    children = train(jax.random.key(0), GENOTYPES, HYPER, load=broken)
    assert children[0].failure == "diverged in epoch 1" and children[0].weights is None
    assert [child.failure for child in children[1:]] == [None, None]
    for a, b in zip(children[1:], whole[1:]):
      same(a, b, 1e-6)


def test_an_error_in_one_program_fails_that_child_alone(monkeypatch):
  train = trainer()
  real = mlp.apply

  def out_of_memory(weights, layers, x, key=None):
    if len(layers) == 1:
      raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory\nmore")
    return real(weights, layers, x, key)

  monkeypatch.setattr(mlp, "apply", out_of_memory)
  children = train(jax.random.key(0), GENOTYPES, HYPER)
  assert children[0].failure == "RESOURCE_EXHAUSTED: out of memory"
  assert np.isnan(children[0].curve).all() and children[1].failure is None


def test_every_child_and_the_plan_are_reported():
  seen, plans = {}, []
  children = trainer(layout="auto")(
    jax.random.key(0),
    GENOTYPES,
    HYPER,
    on_child=lambda i, child: seen.update({i: child}),
    on_plan=plans.append,
  )
  assert [seen[i] for i in range(3)] == children
  assert sorted(i for group in plans[0].groups for i in group.members) == [0, 1, 2]


def test_settings_that_cannot_be_are_refused():
  wrong = ({"epochs": 0}, {"layout": "sideways"}, {"compute_dtype": "int8"})
  for options in (*wrong, {"num_devices": 0}, {"num_devices": 99}):
    with pytest.raises(InputError):
      trainer(**options)
  with pytest.raises(InputError, match="float32"):
    trainer(layout="tiled", compute_dtype="bfloat16")


def test_retraining_learns_and_tests_on_the_test_split():
  dataset = embedded.load("iris")
  assert len(pooled(dataset).y) == len(dataset.train.y) + len(dataset.valid.y)
  final = retrain(
    jax.random.key(0),
    SPACE,
    dataset,
    SPACE.parse("8 relu"),
    epochs=60,
    batch_size=16,
    learning_rate=0.02,
  )
  assert final.failure is None and final.test_score > 0.85
  layers = SPACE.layers(SPACE.parse("8 relu"))
  outputs = mlp.apply(final.weights, layers, dataset.test.x)
  accuracy = float((outputs.argmax(1) == dataset.test.y).mean())
  assert accuracy == pytest.approx(final.test_score)
  loss = TASKS["multiclass"].loss(outputs, dataset.test.y).mean()
  assert float(loss) == pytest.approx(final.test_loss, rel=1e-5)
