"""What every strategy keeps, run over the table of all of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nasjax.runtime import CompileCounter
from nasjax.spaces.mlp_chain import MLPChain
from nasjax.strategies.bananas import bananas
from nasjax.strategies.base import History
from nasjax.strategies.bayesian import bayesian
from nasjax.strategies.evolution import evolution
from nasjax.strategies.local_search import local_search
from nasjax.strategies.random_search import random_search
from nasjax.strategies.reinforce import reinforce

pytestmark = pytest.mark.usefixtures("quick_compile")
SPACE = MLPChain(widths=(8, 16), max_layers=4)
P = 5
MEMBERS = {
  "random_search": lambda: random_search(SPACE, population=P, max_evaluations=40),
  "random_search_independent": lambda: random_search(
    SPACE, population=P, distinct=False
  ),
  "reinforce": lambda: reinforce(SPACE, population=P, max_evaluations=40, hidden=8),
  "reinforce_adversarial": lambda: reinforce(
    SPACE, population=P, max_evaluations=40, hidden=8, adversarial=0.5, entropy=0.01
  ),
  "reinforce_independent": lambda: reinforce(
    SPACE, population=P, max_evaluations=40, policy="independent"
  ),
  "evolution": lambda: evolution(SPACE, population=8, sample=3, children=P),
  "evolution_crossover": lambda: evolution(
    SPACE, population=P, sample=2, children=P, crossover=0.5
  ),
  "local_search": lambda: local_search(SPACE, children=P),
  "local_search_steepest": lambda: local_search(SPACE, rule="steepest", children=P),
  "bayesian": lambda: bayesian(SPACE, population=P, max_evaluations=40, initial=P),
  "bananas": lambda: bananas(
    SPACE, population=P, max_evaluations=40, initial=P, hidden=8, steps=10
  ),
}
# What a member does not promise: never to ask a genotype twice (the search loop has its
# score), or to make nothing of the order of a population: members of one age die one
# after the other; a Gaussian process keeps a triangular matrix, whose rows depend on
# those above (what it predicts does not); a bootstrap is drawn by place.
MAY_REPEAT = {"random_search_independent"} | {
  name for name in MEMBERS if name.startswith(("evolution", "local"))
}
ORDERED = {"evolution", "evolution_crossover", "bayesian", "bananas"}


# These programs run a few times: XLA had better not spend long on making them fast.
quick_jit = functools.partial(
  jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)


@functools.cache
def compiled(name):
  """A member whose functions are compiled once for all tests."""
  strategy = MEMBERS[name]()
  return strategy._replace(ask=quick_jit(strategy.ask), tell=quick_jit(strategy.tell))


@pytest.fixture(params=MEMBERS)
def name(request):
  return request.param


@pytest.fixture
def strategy(name):
  return compiled(name)


def one_round(strategy, state, seed, scores=None):
  ask, tell = jax.random.split(jax.random.key(seed))
  genotypes, state = strategy.ask(ask, state)
  if scores is None:
    scores = jnp.linspace(0.1, 0.9, P)
  state, info = strategy.tell(tell, state, genotypes, scores)
  return genotypes, state, info


def test_asks_for_legal_new_genotypes(name, strategy):
  state = strategy.init(jax.random.key(0))
  seen = set()
  for seed in range(4):
    genotypes, state, _ = one_round(strategy, state, seed)
    assert genotypes.shape == (P, SPACE.length) and genotypes.dtype == jnp.int32
    assert bool(jax.vmap(SPACE.is_legal)(genotypes).all())
    names = {g.tobytes() for g in np.asarray(genotypes)}
    assert name in MAY_REPEAT or (len(names) == P and not names & seen)
    seen |= names
  assert len(seen) > P


# Op by op is slow: of one factory, the member that uses the most of it.
@pytest.mark.parametrize(
  "name",
  [
    "random_search",
    "reinforce_adversarial",
    "evolution_crossover",
    "local_search",
    "bayesian",
    "bananas",
  ],
)
def test_jit_equals_no_jit(name):
  results = []
  for member in (MEMBERS[name](), compiled(name)):
    genotypes, state, _ = one_round(member, member.init(jax.random.key(0)), 1)
    results.append((genotypes, state))
  for a, b in zip(jax.tree.leaves(results[0]), jax.tree.leaves(results[1])):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_vmap_equals_loop(name, strategy):
  # Ask and tell by themselves, so that ask is compiled once for both of its calls.
  plain = MEMBERS[name]()
  ask, tell = quick_jit(jax.vmap(plain.ask)), quick_jit(jax.vmap(plain.tell))

  def keys(use):
    return jax.random.split(jax.random.key(use), 3)

  def key_of(seed, use):
    return keys(use)[seed]

  def search(seed):
    genotypes, state = strategy.ask(key_of(seed, 1), strategy.init(key_of(seed, 0)))
    state, _ = strategy.tell(key_of(seed, 2), state, genotypes, scores)
    return strategy.ask(key_of(seed, 3), state)[0]

  scores = jnp.linspace(0.0, 1.0, P)
  genotypes, state = ask(keys(1), jax.vmap(strategy.init)(keys(0)))
  state, _ = tell(keys(2), state, genotypes, jnp.tile(scores, (3, 1)))
  together = ask(keys(3), state)[0]
  loop = jnp.stack([search(seed) for seed in range(3)])
  assert (
    np.asarray(together) == np.asarray(loop)
  ).mean() > 0.95  # rounding may flip one


def test_compiles_once(strategy):
  _, state, _ = one_round(strategy, strategy.init(jax.random.key(0)), 1)
  one_round(strategy, state, 2)
  with CompileCounter() as again:
    for seed in range(3, 6):
      _, state, _ = one_round(strategy, state, seed)
  assert again.count == 0


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_failed_children_do_not_spread(strategy, bad):
  state = strategy.init(jax.random.key(0))
  for seed in range(2):
    scores = jnp.full(P, bad) if seed else jnp.linspace(0, 1, P).at[2].set(bad)
    _, state, info = one_round(strategy, state, seed, scores)
  genotypes, _ = strategy.ask(jax.random.key(9), state)
  assert bool(jax.vmap(SPACE.is_legal)(genotypes).all())
  assert all(bool(jnp.isfinite(v).all()) for k, v in info.items() if k != "baseline")


def test_the_same_key_gives_the_same_search(strategy):
  runs = []
  for _ in range(2):
    state = strategy.init(jax.random.key(4))
    for seed in range(3):
      genotypes, state, _ = one_round(strategy, state, seed)
    runs.append(np.asarray(genotypes))
  assert (runs[0] == runs[1]).all()


def without_order(state):
  """The state with the rows of every history sorted: they stand as they were told."""

  def one(node):
    if not isinstance(node, History):
      return node
    rows = np.lexsort(np.asarray(node.genotypes).T)
    return node._replace(genotypes=node.genotypes[rows], scores=node.scores[rows])

  return jax.tree.map(one, state, is_leaf=lambda node: isinstance(node, History))


@pytest.mark.parametrize("name", sorted(MEMBERS.keys() - ORDERED))
def test_permuting_the_population_changes_nothing(name, strategy):
  _, state, _ = one_round(strategy, strategy.init(jax.random.key(0)), 1)
  genotypes, state = strategy.ask(jax.random.key(2), state)
  scores = jnp.linspace(0.1, 0.9, P).at[1].set(jnp.nan)
  told = []
  for order in (np.arange(P), np.array([3, 1, 4, 0, 2])):
    after, info = strategy.tell(
      jax.random.key(3), state, genotypes[order], scores[order]
    )
    # what is reported of each child follows its child
    back = np.argsort(order)
    info = {k: v[back] if jnp.ndim(v) else v for k, v in info.items()}
    told.append((without_order(after), info, strategy.ask(jax.random.key(4), after)[0]))
  for a, b in zip(*map(jax.tree.leaves, told), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)
