import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nasjax.core.types import InputError
from nasjax.data.benchmarks import Benchmark, Measured
from nasjax.estimators.tabular import rows_of, space_of, tabular
from nasjax.spaces.categorical import Categorical
from nasjax.spaces.mlp_chain import MLPChain
from nasjax.spaces.nasbench201 import EDGES, PRIMITIVES, NASBench201

SPACE = Categorical((2, 3))
# In an order that is not the space's: a look-up by number alone would be wrong.
GENOTYPES = np.array([[1, 0], [0, 0], [0, 2], [1, 1], [0, 1], [1, 2]], np.int32)
EPOCHS = (2, 4, 10)


def figure(genotype, epochs):
  """A score that tells whose it is, and after how many epochs."""
  return (10 * genotype[0] + genotype[-1]) / 100 + epochs / 1000


def table(genotypes=GENOTYPES, space=None, op_names=(), edges=()):
  valid = np.array([[figure(g, k) for g in genotypes] for k in EPOCHS], np.float32)
  iris = Measured(
    epochs=np.array(EPOCHS),
    valid=valid,
    test=valid[-1],
    seconds=100 * valid,
    per_seed=None,
    fewer_rows={},
    figures={},
  )
  return Benchmark(
    name="made.npz",
    space=space or {"kind": "categorical", "num_choices": [2, 3]},
    op_names=op_names,
    genotypes=np.asarray(genotypes, np.int32),
    measured={"iris": iris, "wine": iris},
    latency={},
    edges=edges,
  )


@functools.cache
def estimated(epochs=None, jit=False):
  estimator = tabular(SPACE, table(), "iris", epochs=epochs)
  state = estimator.init(jax.random.key(0))
  run = jax.jit(estimator.estimate) if jit else estimator.estimate
  after, evaluation = run(jax.random.key(1), state, GENOTYPES[::-1])
  jax.tree.map(np.testing.assert_array_equal, after, state)
  return jax.tree.map(np.asarray, evaluation)


def scores_after(epochs):
  return [figure(g, epochs) for g in GENOTYPES[::-1]]


@pytest.mark.parametrize("order", [range(6), [4, 2, 0, 5, 1, 3]])
def test_scores_are_found_by_genotype_whatever_the_order_of_rows(order):
  shuffled = GENOTYPES[list(order)]
  estimator = tabular(SPACE, table(shuffled), "iris")
  state = estimator.init(jax.random.key(0))
  _, found = estimator.estimate(jax.random.key(1), state, GENOTYPES)
  np.testing.assert_allclose(found.score, [figure(g, 10) for g in GENOTYPES], rtol=1e-6)
  rows = rows_of(SPACE, table(shuffled))
  every = np.asarray(jax.vmap(SPACE.at)(jnp.arange(SPACE.size)))
  np.testing.assert_array_equal(shuffled[rows], every)


@pytest.mark.parametrize("epochs", [None, 2, 4, 10])
def test_a_fidelity_has_its_score_its_cost_and_the_curve_up_to_it(epochs):
  found, last = estimated(epochs), epochs or 10
  np.testing.assert_allclose(found.score, scores_after(last), rtol=1e-6)
  np.testing.assert_allclose(found.cost, 100 * np.array(scores_after(last)), rtol=1e-6)
  run = [k for k in EPOCHS if k <= last]
  curve = np.stack([scores_after(k) for k in run], 1)
  np.testing.assert_allclose(found.curve, curve, rtol=1e-6)


def test_a_fidelity_of_one_call_comes_before_the_estimators_own():
  estimator = tabular(SPACE, table(), "iris", epochs=10)
  state = estimator.init(jax.random.key(0))
  _, found = estimator.estimate(jax.random.key(1), state, GENOTYPES[::-1], 4)
  jax.tree.map(np.testing.assert_array_equal, found, estimated(4))
  with pytest.raises(InputError, match="made.npz has no scores after 3 epochs"):
    estimator.estimate(jax.random.key(1), state, GENOTYPES, 3)


def test_jit_equals_no_jit():
  jax.tree.map(np.testing.assert_array_equal, estimated(4, True), estimated(4))


@pytest.mark.parametrize(
  ("genotypes", "dataset", "epochs", "named"),
  [
    (GENOTYPES, "beer", None, ("made.npz", "'beer'", "iris, wine")),
    (GENOTYPES, "iris", 5, ("made.npz", "after 5 epochs", "2, 4, 10")),
    (GENOTYPES[:5], "iris", None, ("1 of 6 arch", "the first is 1 2")),
    (GENOTYPES[[0, 1, 3, 5]], "iris", None, ("2 of 6 arch", "the first is 0 1")),
    (GENOTYPES[:, :1], "iris", None, ("has 2 decisions, the table's have 1",)),
    (
      np.where(GENOTYPES == 2, 3, GENOTYPES),
      "iris",
      None,
      ("made.npz, row 2: [0, 3] is no genotype of the space categorical",),
    ),
    (GENOTYPES - 1, "iris", None, ("row 0: [0, -1]",)),
  ],
)
def test_a_refusal_says_what_is_missing(genotypes, dataset, epochs, named):
  with pytest.raises(InputError) as caught:
    tabular(SPACE, table(genotypes), dataset, epochs=epochs)
  assert "\n" not in str(caught.value)
  for part in named:
    assert part in str(caught.value)


def test_a_table_of_a_few_rows_of_a_huge_space_is_refused_at_once():
  space = Categorical((1000, 1000, 1000))
  rows = table([[0, 0, 1], [0, 0, 0], [9, 9, 9]])
  with pytest.raises(InputError, match="999,999,997 of 1,000,000,000.* is 0 0 2"):
    rows_of(space, rows)


def test_the_space_is_the_one_that_the_table_names():
  assert space_of(table()) == SPACE
  fields = {"widths": [8, 4], "activations": ["relu"], "max_layers": 3}
  chain = MLPChain(widths=(8, 4), activations=("relu",), max_layers=3)
  assert space_of(table(space={"kind": "mlp_chain", **fields})) == chain
  for space in (chain, SPACE, NASBench201()):
    assert space_of(table(space=space.to_dict())) == space
  cells = {"kind": "nasbench201"}
  assert space_of(table(space=cells, op_names=PRIMITIVES)) == NASBench201()


@pytest.mark.parametrize(
  ("space", "op_names", "named"),
  [
    ({"kind": "darts"}, (), ("unknown space 'darts'", "categorical, mlp_chain")),
    ({"kind": "categorical"}, (), ("space categorical:", "num_choices")),
    ({"kind": "categorical", "num_choices": [2, 0]}, (), ("must be positive", "2, 0")),
    ({"kind": "categorical", "num_choices": [2.5]}, (), ("positive integers", "2.5")),
    ({"kind": "categorical", "num_choices": 5}, (), ("space categorical:",)),
    ({"kind": "mlp_chain", "widths": ["a"]}, (), ("space mlp_chain:",)),
    ({"kind": "nasbench201", "nodes": 4}, (), ("space nasbench201:", "nodes")),
    ({"kind": "nasbench201"}, PRIMITIVES[::-1], ("op_names must be none, skip",)),
  ],
)
def test_a_space_that_does_not_fit_is_refused(space, op_names, named):
  with pytest.raises(InputError) as caught:
    space_of(table(space=space, op_names=op_names))
  for part in ("made.npz", *named):
    assert part in str(caught.value)


def test_cells_with_other_edges_are_refused():
  cells = {"kind": "nasbench201"}
  assert space_of(table(space=cells, edges=EDGES)) == NASBench201()
  # By source instead of by target: edges 2 and 3 change places.
  other = tuple(sorted(EDGES))
  with pytest.raises(InputError, match="made.npz: edge 2 must be 1 to 2, got 0 to 3"):
    space_of(table(space=cells, edges=other))
  assert space_of(table(edges=((0, 1), (1, 2)))) == SPACE  # which has no edges
