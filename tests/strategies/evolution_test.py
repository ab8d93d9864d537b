import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nasjax.core import keys
from nasjax.core.types import InputError
from nasjax.spaces import base as spaces
from nasjax.spaces.categorical import Categorical
from nasjax.strategies.evolution import evolution

SPACE = Categorical((4,) * 6)
N = 5  # members
ALWAYS_THE_BEST = 1000  # draws of a tournament in which every member takes part


@functools.cache
def compiled(children=1, sample=ALWAYS_THE_BEST, population=N):
  strategy = evolution(SPACE, population=population, sample=sample, children=children)
  return strategy._replace(ask=jax.jit(strategy.ask), tell=jax.jit(strategy.tell))


def search(strategy, score, num_rounds, seed=0):
  """Yields asked genotypes, their scores, the state they were asked in, and info."""
  state = strategy.init(jax.random.key(seed))
  for number in range(num_rounds):
    ask, tell = jax.random.split(jax.random.key(1000 * seed + number))
    before = state
    genotypes, state = strategy.ask(ask, state)
    genotypes = np.asarray(genotypes)
    scores = np.float32([score(g) for g in genotypes])
    state, info = strategy.tell(tell, state, genotypes, jnp.asarray(scores))
    yield genotypes, scores, before, info


def noisy(genotype):
  """A score without ties, in no relation to what is near."""
  return np.random.default_rng(genotype.tolist()).random()


@pytest.mark.parametrize("children", [1, 3])
def test_the_best_of_the_living_has_the_child_and_the_oldest_die(children):
  alive = collections.deque(maxlen=N)  # the reference: the oldest falls out
  died_best, changed = False, []
  for genotypes, scores, _, info in search(compiled(children), noisy, 40):
    if len(alive) == N:
      best = max(alive, key=lambda member: member[1])
      for child in genotypes:
        changed.append((child != best[0]).sum())
      died_best |= any(member is best for member in list(alive)[:children])
    alive.extend(zip(genotypes, scores))
    values = [score for _, score in alive]
    assert info["population_best"] == max(values)
    np.testing.assert_allclose(info["population_mean"], np.mean(values), rtol=1e-5)
  assert len(changed) > 90 * children // 3 and set(changed) == {1}
  assert died_best  # age alone decides


def test_a_tournament_is_the_best_of_the_members_drawn():
  strategy = compiled(children=2, sample=2)
  ask_key = functools.partial(jax.random.key, 7)
  told = list(search(strategy, noisy, 8))
  state = told[-1][2]
  genotypes, _ = strategy.ask(ask_key(), state)
  for child, key in zip(genotypes, jax.random.split(ask_key(), 2)):
    born, _ = keys.named(key, "child", "prior")
    first, change = keys.named(born, "first", "change")
    drawn = np.asarray(jax.random.randint(first, (2,), 0, N)).tolist()
    parent = max(drawn, key=lambda member: float(state.scores[member]))
    expected = spaces.mutate(SPACE, change, state.genotypes[parent])
    np.testing.assert_array_equal(child, expected)


def test_the_first_children_are_draws_from_the_prior():
  born = np.concatenate(
    [next(search(compiled(children=N), noisy, 1, seed))[0] for seed in range(40)]
  )
  share = np.stack([(born == k).mean(0) for k in range(4)])
  assert (abs(share - 1 / 4) < 0.12).all()  # 4 deviations of 200 draws


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_failed_child_never_has_a_child(bad):
  def failing(genotype):
    return bad if genotype[0] % 2 else noisy(genotype)

  alive = collections.deque(maxlen=N)
  num_failed = 0
  for genotypes, scores, _, info in search(compiled(), failing, 60):
    healthy = [member for member in alive if np.isfinite(member[1])]
    if len(alive) == N and healthy:
      best = max(healthy, key=lambda member: member[1])
      assert (genotypes[0] != best[0]).sum() == 1
    alive.extend(zip(genotypes, scores))
    num_failed += not np.isfinite(scores[0])
    values = [score for _, score in alive if np.isfinite(score)]
    assert info["population_mean"] == pytest.approx(np.mean(values or [0]), rel=1e-5)
  assert num_failed > 5


def test_a_population_that_failed_goes_on():
  for genotypes, _, _, info in search(compiled(), lambda g: np.nan, 10):
    assert bool(SPACE.is_legal(genotypes[0]))
    assert float(info["population_best"]) == float(info["population_mean"]) == 0


def born_of(space, parents, crossover, num_rounds=30):
  """Children of two parents that are drawn alike, one a round, always of these."""
  strategy = evolution(space, population=2, sample=1, children=2, crossover=crossover)
  state = strategy.init(jax.random.key(0))
  state, _ = strategy.tell(jax.random.key(1), state, parents, jnp.array([0.1, 0.2]))
  ask = jax.jit(strategy.ask)
  return np.concatenate([ask(jax.random.key(i), state)[0] for i in range(num_rounds)])


PARENTS = np.int32([[0] * 6, [1] * 6])


def test_each_decision_of_a_child_is_one_of_its_parents():
  children = born_of(SPACE, jnp.asarray(PARENTS), crossover=1.0)
  # One decision is the mutation's.
  assert ((children > 1).sum(-1) <= 1).all()
  zeros, ones = (children == 0).sum(-1), (children == 1).sum(-1)
  assert (np.minimum(zeros, ones) >= 2).sum() >= 5  # so many are mixtures
  alone = born_of(SPACE, jnp.asarray(PARENTS), crossover=0.0)
  assert set((alone[:, None] != PARENTS).sum(-1).min(-1)) == {1}


@dataclasses.dataclass(frozen=True)
class Uniform(Categorical):
  """Only genotypes whose decisions are all the same are legal."""

  def is_legal(self, genotype):
    return (genotype == genotype[0]).all()


def test_a_mixture_outside_the_space_is_given_up():
  space = Uniform((4,) * 6)
  children = born_of(space, jnp.asarray(PARENTS), crossover=1.0)
  assert set((children[:, None] != PARENTS).sum(-1).min(-1)) == {1}


def test_it_beats_random_search(planted, beats_random_search):
  strategy = evolution(planted, population=12, sample=4, children=2)
  beats_random_search(strategy, population=2, num_rounds=60)


@pytest.mark.parametrize(
  ("options", "named"),
  [
    ({"population": 0}, "positive, got 0, 25 and 1"),
    ({"sample": 0}, "positive, got 100, 0 and 1"),
    ({"children": 0}, "positive, got 100, 25 and 0"),
    ({"population": 3, "children": 4}, "4 children at once need"),
    ({"crossover": 1.5}, "probability, got 1.5"),
    ({"crossover": float("nan")}, "probability, got nan"),
  ],
)
def test_what_it_refuses(options, named):
  with pytest.raises(InputError, match=named):
    evolution(SPACE, **options)
