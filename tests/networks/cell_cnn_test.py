"""Networks of cells: sizes, running statistics, the supernet one edge at a time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nasjax.core.types import InputError
from nasjax.networks import cell_cnn, ops, supernet_cnn
from nasjax.networks.ops import Norms
from nasjax.spaces.conv_cell import CELLS, PRIMITIVES, ConvCell, edges
from nasjax.strategies import darts
from nasjax.training import cells
from nasjax.training.losses import get_task

pytestmark = pytest.mark.usefixtures("quick_compile")
RNG = np.random.default_rng(0)


def images(count=4, side=8, channels=1):
  return jnp.asarray(RNG.normal(size=(count, side, side, channels)), jnp.float32)


def test_the_authors_weight_counts():
  """The search network, and the published cell's network without auxiliary head."""
  plan, seed = cell_cnn.make_plan((32, 32, 3), 10), np.uint32(0)
  assert cell_cnn.num_params(supernet_cnn.init(seed, plan)) == 1_930_618
  plan = cell_cnn.make_plan((32, 32, 3), 10, channels=36, layers=20)
  space = ConvCell()
  cells = space.decode(space.parse("DARTS_V2"))
  network = cell_cnn.derived_init(seed, plan, cells)
  assert cell_cnn.num_params(network) == 3_349_342
  head = cell_cnn.auxiliary_init(seed, plan)
  inputs = 4 * 4 * 36
  assert cell_cnn.num_params(head) == (
    inputs * 128 + 2 * 128 + 4 * 128 * 768 + 2 * 768 + 768 * 10 + 10
  )
  assert plan.reductions == (6, 13)


def test_alphas_start_almost_equal():
  alphas = supernet_cnn.init_alphas(jax.random.key(0))
  assert {name: table.shape for name, table in alphas.items()} == dict.fromkeys(
    CELLS, (14, 8)
  )
  assert 5e-4 < np.std(alphas["normal"]) < 2e-3
  assert np.abs(alphas["normal"] - alphas["reduce"]).max() > 1e-4


@functools.cache
def small():
  """A supernet of three cells of two nodes, its plan, weights and alphas."""
  plan = cell_cnn.make_plan((7, 8, 1), 3, channels=2, layers=3, nodes=2)
  weights = jax.device_put(supernet_cnn.init(np.uint32(1), plan))
  alphas = jax.tree.map(
    lambda table: 500 * table, supernet_cnn.init_alphas(jax.random.key(2), 2)
  )
  x = jnp.asarray(RNG.normal(size=(5, 7, 8, 1)), jnp.float32)
  return plan, weights, alphas, x


@pytest.mark.parametrize("way", ["cell_edges", "stacked_edges"])
@pytest.mark.parametrize("reduction", [True, False])
def test_edges_together_are_edges_one_at_a_time(reduction, way):
  """A cell as the paper writes it, every edge by itself, and its gradients."""
  number = 1 if reduction else 0
  nodes = 2 if reduction else 1
  plan = cell_cnn.make_plan((8, 8, 1), 3, channels=2, layers=3, nodes=nodes)
  cell = plan.cells[number]
  weights = supernet_cnn.init(np.uint32(1), plan)["cells"][number]["edges"]
  mix_EK = jnp.asarray(RNG.dirichlet(np.ones(8), len(edges(nodes))), jnp.float32)
  inputs = jnp.asarray(RNG.normal(size=(2, cell.channels, 5, 4, 3)), jnp.float32)

  def ours(weights, mix_EK, inputs):
    run = getattr(supernet_cnn, way)
    return run(weights, mix_EK, cell, nodes, *inputs, Norms())

  def reference(weights, mix_EK, inputs):
    states = [*inputs, *[0.0] * nodes]
    places = {"halving": 0, "same": 0}
    for edge, (source, target) in enumerate(edges(nodes)):
      loop = "halving" if reduction and source < 2 else "same"
      own = jax.tree.map(lambda part, i=places[loop]: part[i], weights[loop])
      places[loop] += 1
      stride = 2 if loop == "halving" else 1
      states[target] += ops.mixed(own, mix_EK[edge], states[source], stride, Norms())
    return jnp.concatenate(states[2:])

  def run(cell):
    def loss(*arguments):
      out = cell(*arguments)
      return jnp.sum(jnp.sin(out)), out

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))

  found, wanted = (run(f)(weights, mix_EK, inputs) for f in (ours, reference))
  half = (3, 2) if reduction else (5, 4)
  assert found[0][1].shape == (nodes * cell.channels, *half, 3)
  for left, right in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
    np.testing.assert_allclose(left, right, rtol=2e-3, atol=2e-4)


def tiny():
  """A supernet of three cells of one node, its plan, weights, alphas and a batch."""
  plan = cell_cnn.make_plan((6, 5, 1), 3, channels=2, layers=3, nodes=1)
  weights = jax.device_put(supernet_cnn.init(np.uint32(1), plan))
  alphas = supernet_cnn.init_alphas(jax.random.key(2), 1)
  return plan, weights, alphas, cells.Batch(images(5, 6)[:, :, :5], jnp.arange(5) % 3)


def test_the_forms_of_a_supernet_agree():
  """Logits, statistics in their order, and logits with given statistics."""
  plan, weights, alphas, batch = tiny()

  def everything(form):
    @jax.jit
    def run():
      output = supernet_cnn.apply(weights, alphas, plan, batch.x, None, form)
      other = jax.tree.map(lambda part: part + 0.1, output.statistics)
      return output, supernet_cnn.apply(weights, alphas, plan, batch.x, other, form)

    return run()

  found = everything(supernet_cnn.Form(stacked=True))
  wanted = everything(supernet_cnn.Form())
  assert jax.tree.structure(found) == jax.tree.structure(wanted)
  for left, right in zip(jax.tree.leaves(found), jax.tree.leaves(wanted)):
    np.testing.assert_allclose(left, right, rtol=2e-3, atol=2e-4)


def test_bfloat16_is_for_activations_alone():
  plan, weights, alphas, batch = tiny()
  form = supernet_cnn.Form(stacked=True, dtype="bfloat16")
  losses = [
    cells.supernet_loss(plan, get_task("multiclass"), each)
    for each in (form, supernet_cnn.Form())
  ]
  gradient = jax.eval_shape(jax.grad(losses[0], has_aux=True), weights, alphas, batch)
  assert all(part.dtype == jnp.float32 for part in jax.tree.leaves(gradient))
  found, wanted = (jax.jit(loss)(weights, alphas, batch)[0] for loss in losses)
  assert found.dtype == jnp.float32 and 0 < abs(found - wanted) < 0.1
  traced = jax.jit(losses[0]).trace(weights, alphas, batch)
  text = traced.lower(lowering_platforms=("tpu",)).as_text()
  convolutions = [line for line in text.splitlines() if "stablehlo.convolution" in line]
  assert convolutions and all("xbf16>" in line for line in convolutions)


def test_statistics_of_the_batch_give_the_batchs_outputs():
  plan, weights, alphas, x = small()
  run = jax.jit(lambda s: supernet_cnn.apply(weights, alphas, plan, x, s))
  trained = run(None)
  tested = run(trained.statistics)
  np.testing.assert_allclose(tested.logits, trained.logits, rtol=1e-4, atol=1e-5)
  assert not jax.tree.leaves(tested.statistics)
  other = jax.tree.map(lambda part: part + 0.5, trained.statistics)
  assert np.abs(run(other).logits - trained.logits).max() > 1e-2


def test_a_row_is_tested_alone():
  """With given statistics no row sees another."""
  plan, weights, alphas, x = small()

  @jax.jit
  def run(x, statistics):
    return supernet_cnn.apply(weights, alphas, plan, x, statistics)

  statistics = run(x, None).statistics
  other = x.at[1:].multiply(3.0)
  found = run(x, statistics).logits, run(other, statistics).logits
  np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-3, atol=1e-4)
  assert np.abs(found[0][1:] - found[1][1:]).max() > 1e-2


def by_hand_norm(x):
  mean, variance = x.mean((1, 2, 3), keepdims=True), x.var((1, 2, 3), keepdims=True)
  return (x - mean) / np.sqrt(variance + 1e-5)


def test_operations_by_hand():
  """Pools, skips and factorised reduction; convolutions have their own tests."""
  x = np.asarray(RNG.normal(size=(2, 6, 5, 3)), np.float32)
  skip = ops.OPS["skip_connect"]
  np.testing.assert_array_equal(skip.apply({}, x, 1, Norms()), x)
  weights = skip.init(np.uint32(0), 2, 2, True)
  halved = skip.apply(weights, jnp.asarray(x), 2, Norms())
  positive = np.maximum(x, 0)
  wide = np.pad(positive, ((0, 0), (0, 0), (0, 1), (0, 0)))
  parts = [
    np.einsum("oi,ihwn->ohwn", weights["even"], positive[:, ::2, ::2]),
    np.einsum("oi,ihwn->ohwn", weights["odd"], wide[:, 1::2, 1::2]),
  ]
  np.testing.assert_allclose(
    halved, by_hand_norm(np.concatenate(parts)), rtol=1e-3, atol=1e-4
  )
  mix = jnp.zeros(8).at[PRIMITIVES.index("avg_pool_3x3")].set(2.0)
  made = ops.mixed(ops.mixed_init(np.uint32(0), 2, 1), mix, x, 1, Norms())
  pooled = np.asarray(ops.OPS["avg_pool_3x3"].apply({}, x, 1, Norms()))
  np.testing.assert_allclose(made, 2 * by_hand_norm(pooled), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", PRIMITIVES[1:])
@pytest.mark.parametrize("stride", [1, 2])
def test_every_operation_keeps_channels_and_halves_the_image(name, stride):
  op = ops.OPS[name]

  weights = op.init(np.uint32(0), 4, stride, True)

  def run(x):
    return op.apply(weights, x, stride, Norms())

  x = jax.ShapeDtypeStruct((4, 7, 6, 2), jnp.float32)
  out = jax.eval_shape(run, x)
  assert out.shape == (4, -(-7 // stride), 6 // stride, 2)


def derived(drop_path=None, **options):
  plan = cell_cnn.make_plan((8, 8, 1), 3, channels=2, layers=3, nodes=2)
  space = ConvCell(2)
  cells = space.decode(
    space.parse(
      "Genotype(normal=[('skip_connect', 0), ('max_pool_3x3', 1), ('sep_conv_3x3', 2), "
      "('skip_connect', 0)], normal_concat=range(2, 4), reduce=[('skip_connect', 0), "
      "('dil_conv_3x3', 1), ('avg_pool_3x3', 2), ('skip_connect', 1)], "
      "reduce_concat=range(2, 4))"
    )
  )
  weights = jax.device_put(cell_cnn.derived_init(np.uint32(3), plan, cells))

  def run(weights, x):
    return cell_cnn.derived(weights, plan, cells, x, drop_path=drop_path, **options)

  return weights, run


def test_a_derived_network_with_and_without_remat():
  x, outputs = images(), []
  for remat in (False, True):
    weights, run = derived(remat=remat)

    def loss(weights, run=run):
      output = run(weights, x)
      return jnp.sum(output.logits**2), output

    outputs.append(jax.jit(jax.value_and_grad(loss, has_aux=True))(weights))
  assert outputs[0][0][1].logits.shape == (4, 3)
  for left, right in zip(*map(jax.tree.leaves, outputs), strict=True):
    np.testing.assert_allclose(left, right, rtol=1e-3, atol=1e-4)


def test_a_derived_network_in_bfloat16():
  x = images()
  weights, exact = derived()
  _, run = derived(dtype="bfloat16")
  found, wanted = jax.jit(run)(weights, x), jax.jit(exact)(weights, x)
  assert found.logits.dtype == jnp.float32 and found.auxiliary.dtype == jnp.bfloat16
  np.testing.assert_allclose(found.logits, wanted.logits, atol=0.1)
  assert np.abs(found.logits - wanted.logits).max() > 0
  for left, right in zip(
    jax.tree.leaves(found.statistics), jax.tree.leaves(wanted.statistics)
  ):
    assert left.dtype == jnp.float32
    np.testing.assert_allclose(left, right, rtol=0.1, atol=0.1)


def test_dropped_paths():
  """Half of the examples nothing, the others twice: the mean stays."""
  x = jnp.ones((2, 3, 3, 4000))
  drop = cell_cnn.DropPath(jax.random.key(0), jnp.float32(0.5))
  made = np.asarray(drop(x, 3))
  assert set(np.unique(made)) == {0.0, 2.0}
  assert (made == made[:1, :1, :1]).all()  # an example as a whole
  assert 0.95 < made.mean() < 1.05
  assert (np.asarray(drop(x, 4)) != made).any()
  np.testing.assert_array_equal(drop._replace(rate=jnp.float32(0.0))(x, 3), x)


@pytest.mark.parametrize(
  "options, match",
  [
    (dict(image=(3, 8, 1), classes=2), "3 x 8 pixels are too small"),
    (dict(image=(8, 8, 1), classes=2, layers=2), "2 cells are too few"),
    (dict(image=(8, 8, 1), classes=2, channels=0), "must be positive"),
  ],
)
def test_a_network_that_cannot_be_is_refused(options, match):
  with pytest.raises(InputError, match=match):
    cell_cnn.make_plan(**options)


def test_the_auxiliary_head_needs_room():
  plan = cell_cnn.make_plan((16, 16, 3), 10)
  with pytest.raises(InputError, match="the auxiliary head needs 8 x 8"):
    cell_cnn.auxiliary_init(np.uint32(0), plan)
  plan = cell_cnn.make_plan((32, 32, 3), 10, channels=2)
  head = cell_cnn.auxiliary_init(np.uint32(0), plan)
  x = jnp.asarray(RNG.normal(size=(4 * 8, 8, 8, 3)), jnp.float32)
  assert cell_cnn.auxiliary_logits(head, x).shape == (3, 10)


@pytest.mark.parametrize(
  "form",
  [
    supernet_cnn.Form(),
    supernet_cnn.Form(stacked=True),
    supernet_cnn.Form(stacked=True, remat=True, dtype="bfloat16"),
  ],
  ids=["loops", "stacked", "bfloat16"],
)
def test_the_exact_step_lowers_for_accelerators(form):
  plan = cell_cnn.make_plan((10, 10, 1), 3, channels=2, layers=3, nodes=1)
  loss = cells.supernet_loss(plan, get_task("multiclass"), form)
  strategy = darts.darts(
    lambda key: supernet_cnn.init(np.uint32(0), plan),
    lambda key: supernet_cnn.init_alphas(key, 1),
    loss,
    loss,
    ConvCell(1).derive,
    num_steps=2,
  )
  state = strategy.init(jax.random.key(0))
  batch = cells.Batch(images(4, 10), jnp.zeros(4, jnp.int32))
  traced = jax.jit(strategy.step).trace(state, batch, batch)
  text = traced.lower(lowering_platforms=("tpu", "cuda")).as_text()
  assert "stablehlo.convolution" in text
  assert ("stablehlo.while" in text) == (not form.stacked)
  # The two edges of the last cell have eight channels each.
  assert ("feature_group_count = 16" in text) == form.stacked
  assert ("bf16" in text) == (form.dtype is not None)
