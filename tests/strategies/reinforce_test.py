"""REINFORCE against numpy, and against random search on a planted optimum."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from nasjax.core.types import InputError
from nasjax.runtime import CompileCounter
from nasjax.spaces.mlp_chain import MLPChain
from nasjax.strategies.controller import lstm_controller
from nasjax.strategies.random_search import random_search
from nasjax.strategies.reinforce import policy_loss, rank_utility, reinforce

SMALL = MLPChain(widths=(8, 16), activations=("relu",), max_layers=4)


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


@functools.cache
def prior_of(genotype, position):
  return np.asarray(SMALL.log_prior(jnp.array(genotype), position), float)


def numpy_policy_loss(params, genotypes, advantages, discount, entropy, hidden):
  """Equation (1), written again: LSTM, mask, softmax, in float64."""
  p = jax.tree.map(lambda leaf: np.asarray(leaf, float), params)["params"]
  cell = p["cell"]
  total = mean_entropy = 0.0
  for genotype, advantage in zip(genotypes, advantages):
    h = c = np.zeros(hidden)
    previous = SMALL.num_tokens  # the start token
    log_p, entropies = [], []
    for position, token in enumerate(genotype):
      x = p["embedding"]["embedding"][previous]
      gate = {
        g: x @ cell[f"i{g}"]["kernel"]
        + h @ cell[f"h{g}"]["kernel"]
        + cell[f"h{g}"]["bias"]
        for g in "ifgo"
      }
      c = sigmoid(gate["f"]) * c + sigmoid(gate["i"]) * np.tanh(gate["g"])
      h = sigmoid(gate["o"]) * np.tanh(c)
      prior = prior_of(tuple(genotype.tolist()), position)
      logits = h @ p["logits"]["kernel"] + p["logits"]["bias"] + prior
      legal = np.isfinite(logits)
      weights = np.where(legal, np.exp(logits - logits[legal].max()), 0)
      probs = weights / weights.sum()
      if legal.sum() > 1:
        log_p.append(np.log(probs[token]))
        entropies.append(-(probs[legal] * np.log(probs[legal])).sum())
      previous = token
    length = len(log_p)
    weight = [discount ** (length - 1 - t) for t in range(length)]
    total -= advantage * np.dot(weight, log_p)
    mean_entropy += sum(entropies) / len(genotypes)
  return total / len(genotypes) - entropy * mean_entropy


@pytest.mark.parametrize(("discount", "entropy"), [(1.0, 0.0), (0.9, 0.05)])
def test_the_gradient_equals_numpys(discount, entropy):
  hidden = 3
  controller = lstm_controller(SMALL, hidden=hidden)
  params = controller.init(jax.random.key(0))
  keys = iter(jax.random.split(jax.random.key(1), 99))
  params = jax.tree.map(
    lambda leaf: leaf + 0.5 * jax.random.normal(next(keys), leaf.shape), params
  )
  archs = ["8 relu", "16 relu - dropout 0.2 - 8 relu", "16 relu - 8 relu"]
  genotypes = np.stack([SMALL.parse(arch) for arch in archs])
  advantages = np.array([0.7, -0.4, 0.1], np.float32)

  def loss(params):
    return policy_loss(
      controller, params, genotypes, advantages, discount=discount, entropy=entropy
    )[0]

  def reference(params):
    return numpy_policy_loss(params, genotypes, advantages, discount, entropy, hidden)

  value, gradient = jax.value_and_grad(loss)(params)
  np.testing.assert_allclose(value, reference(params), rtol=1e-5)
  # Central differences of the float64 reference, a few entries of every array.
  leaves, tree = jax.tree.flatten(jax.tree.map(lambda v: np.asarray(v, float), params))
  rng = np.random.default_rng(0)
  checked = 0
  for i, (leaf, slope) in enumerate(zip(leaves, jax.tree.leaves(gradient))):
    for flat in rng.choice(leaf.size, min(4, leaf.size), replace=False):
      index = np.unravel_index(flat, leaf.shape)
      sides = []
      for sign in (1, -1):
        moved = [v.copy() for v in leaves]
        moved[i][index] += sign * 1e-5
        sides.append(reference(jax.tree.unflatten(tree, moved)))
      expected = (sides[0] - sides[1]) / 2e-5
      np.testing.assert_allclose(slope[index], expected, atol=2e-6, rtol=1e-3)
      checked += abs(expected) > 1e-4
  assert checked > 20


@functools.cache
def compiled(**options):
  """The strategy with its functions compiled, once for all tests of these options."""
  options = {"population": 4, "max_evaluations": 8, "hidden": 4, **options}
  strategy = reinforce(SMALL, **options)
  return strategy._replace(ask=jax.jit(strategy.ask), tell=jax.jit(strategy.tell))


def one_tell(scores, **options):
  strategy = compiled(**{"utility": "score", **options})
  state = strategy.init(jax.random.key(0))
  genotypes, state = strategy.ask(jax.random.key(1), state)
  new, info = strategy.tell(jax.random.key(2), state, genotypes, jnp.asarray(scores))
  return state, new, info


def test_the_baseline_moves_as_equation_2_says():
  strategy = compiled(utility="score")
  state = strategy.init(jax.random.key(0))
  genotypes, state = strategy.ask(jax.random.key(1), state)
  state, info = strategy.tell(
    jax.random.key(2), state, genotypes, jnp.array([0.2, 0.4] * 2)
  )
  assert float(info["baseline"]) == pytest.approx(0.3)  # the first round's mean
  state, info = strategy.tell(jax.random.key(2), state, genotypes, jnp.full(4, 0.8))
  assert float(info["baseline"]) == pytest.approx(0.3)
  assert float(state.baseline) == pytest.approx(0.9 * 0.3 + 0.1 * 0.8)
  _, _, fixed = one_tell([0.1] * 4, fixed_baseline=0.5)
  assert float(fixed["baseline"]) == 0.5


def test_the_corrected_baseline_is_equation_2_prime():
  strategy = compiled(
    policy="independent", utility="score", corrected=True, predictor=0.0
  )
  state = strategy.init(jax.random.key(0))
  genotypes, state = strategy.ask(jax.random.key(1), state)
  expected, t = 0.0, 0
  for mean in (0.4, None, 0.8, None, None, 0.1):  # None: all children failed
    scores = jnp.full(4, jnp.nan) if mean is None else mean + jnp.array([0.1, -0.1] * 2)
    state, info = strategy.tell(jax.random.key(2), state, genotypes, scores)
    if mean is not None:
      t += 1
      # An average with weights 0.9^(t - s), which sum up to 1.
      expected += 0.1 / (1 - 0.9**t) * (mean - expected)
      assert float(info["baseline"]) == pytest.approx(expected, rel=1e-5)
    assert float(state.baseline) == pytest.approx(expected, rel=1e-5)
  weights = 0.9 ** np.array([2, 1, 0])
  by_hand = np.dot(weights, [0.4, 0.8, 0.1]) / weights.sum()
  assert float(state.baseline) == pytest.approx(by_hand, rel=1e-5)
  assert int(state.num_rounds) == 3


def test_without_distinct_the_policys_draws_are_asked_as_they_come():
  options = dict(policy="independent", predictor=0.0)
  strategy = compiled(**options, population=16, distinct=False)
  state = strategy.init(jax.random.key(0))
  # A policy that is sure of every decision.
  only = SMALL.parse("16 relu - 8 relu")
  sure = state.params["logits"].at[jnp.arange(SMALL.length), only].add(50.0)
  state = state._replace(params={**state.params, "logits": sure})
  genotypes, _ = strategy.ask(jax.random.key(1), state)
  np.testing.assert_array_equal(genotypes, np.tile(only, (16, 1)))
  other = compiled(**options, population=16)
  genotypes, _ = other.ask(jax.random.key(1), state)
  assert len({g.tobytes() for g in np.asarray(genotypes)}) == 16


@pytest.mark.parametrize(
  ("options", "what"),
  [
    ({"utility": "ranks"}, "unknown utility 'ranks'; there are score, rank"),
    ({"policy": "gru"}, "unknown policy 'gru'; there are lstm, independent"),
    ({"population": 0}, "must be positive, got 0, "),
    ({"max_evaluations": 0}, "must be positive"),
    ({"hidden": 0}, "must be positive"),
    ({"updates": 0}, "must be positive"),
  ],
)
def test_what_cannot_be_is_refused(options, what):
  with pytest.raises(InputError, match=what):
    reinforce(SMALL, **options)


def test_a_failed_child_enters_nothing_but_the_history():
  _, with_failure, info = one_tell([0.2, jnp.nan, 0.4, 0.3])
  assert float(info["baseline"]) == pytest.approx(0.3)
  assert all(
    bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(with_failure.params)
  )
  assert int(with_failure.history.num_added) == 4
  # its value does not matter, only that it failed
  _, other, _ = one_tell([0.2, jnp.inf, 0.4, 0.3])
  for a, b in zip(jax.tree.leaves(with_failure.params), jax.tree.leaves(other.params)):
    np.testing.assert_array_equal(a, b)
  before, after, info = one_tell([jnp.nan] * 4)
  assert np.isnan(after.baseline) and float(info["loss"]) == 0.0


def test_equal_rewards_teach_the_policy_nothing():
  before, after, _ = one_tell([0.5] * 4, predictor=0.0, utility="rank")
  for a, b in zip(jax.tree.leaves(before.params), jax.tree.leaves(after.params)):
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_ranks_teach_the_same_from_any_monotone_score():
  scores = np.array([0.2, 0.9, 0.4, 0.3])
  results = [
    one_tell(values, utility="rank", predictor=0.0)[1].params
    for values in (scores, 0.98 + scores / 1000, scores**3)
  ]
  for other in results[1:]:
    for a, b in zip(jax.tree.leaves(results[0]), jax.tree.leaves(other)):
      np.testing.assert_array_equal(a, b)
  history = jnp.array([0.1, 0.3, 0.3, jnp.nan, 0.9])
  beaten = rank_utility(jnp.array([0.3, 1.0, 0.05]), history)
  np.testing.assert_allclose(beaten, [(1 + 0.5 * 2) / 4, 1.0, 0.0])


def test_adams_state_and_its_decay_live_on():
  strategy = compiled(updates=5)
  state = strategy.init(jax.random.key(0))
  rates = []
  for i in range(2):
    genotypes, state = strategy.ask(jax.random.key(1 + i), state)
    state, info = strategy.tell(
      jax.random.key(9), state, genotypes, jnp.array([0.1, 0.2, 0.3, 0.4])
    )
    rates.append(float(info["learning_rate"]))
  np.testing.assert_allclose(rates, [0.01 / 1.5, 0.01 / 2.0], rtol=1e-6)


def test_the_predictor_learns_the_measured_scores():
  strategy = compiled(population=8, max_evaluations=40, hidden=16, updates=40)
  state = strategy.init(jax.random.key(0))
  losses = []
  for i in range(5):
    genotypes, state = strategy.ask(jax.random.key(10 + i), state)
    scores = 0.9 - 0.2 * (genotypes == SMALL.end).argmax(1)  # shallower is better
    state, info = strategy.tell(jax.random.key(1), state, genotypes, scores)
    losses.append(float(info["predictor_loss"]))
  assert info["predicted"].shape == (8,)
  assert losses[-1] < 0.25 * np.var([0.7, 0.5, 0.3])


def test_the_adversarial_part_rewards_what_is_misjudged():
  plain = one_tell([0.2, 0.4, 0.6, 0.8])[2]
  added = one_tell([0.2, 0.4, 0.6, 0.8], adversarial=0.5)[2]
  misjudged = np.abs(np.asarray(plain["predicted"]) - [0.2, 0.4, 0.6, 0.8])
  expected = float(plain["baseline"]) + 0.5 * misjudged.mean()  # (3) in (2)'s start
  assert float(added["baseline"]) == pytest.approx(expected, rel=1e-5)
  with pytest.raises(InputError, match="predictor"):
    reinforce(SMALL, adversarial=0.5, predictor=0.0)


def planted_score(space, genotype):
  """Highest, 1, for three layers of 128 relu units; every deviation costs."""
  width = jnp.asarray(space.token_widths())[genotype]
  activation = jnp.asarray(space.token_activations())[genotype]
  dense = width > 0
  depth = dense.sum()
  off = 0.05 * jnp.abs(jnp.log2(jnp.maximum(width, 1)) - 7) + 0.2 * (activation != 2)
  dropouts = (genotype == space.dropout).sum()
  return (
    1.0
    - 0.05 * jnp.abs(depth - 3)
    - 0.03 * dropouts
    - jnp.where(dense, off, 0.0).sum() / depth
  )


def best_found(space, strategy, rounds, seeds):
  """Best planted score of each of `seeds` searches, all in one program."""

  def search(key):
    init, ask, tell = (jax.random.fold_in(key, i) for i in range(3))

    def one_round(state, index):
      genotypes, state = strategy.ask(jax.random.fold_in(ask, index), state)
      scores = jax.vmap(lambda g: planted_score(space, g))(genotypes)
      state, _ = strategy.tell(
        jax.random.fold_in(tell, index), state, genotypes, scores
      )
      return state, scores.max()

    return jax.lax.scan(one_round, strategy.init(init), jnp.arange(rounds))[1].max()

  keys = jax.random.split(jax.random.key(0), seeds)
  return np.asarray(jax.jit(jax.vmap(search))(keys))


def test_reinforce_beats_random_search_at_equal_budget():
  space, seeds = MLPChain(), 24
  optimum = space.parse("128 relu - 128 relu - 128 relu")
  assert float(planted_score(space, optimum)) == 1.0
  options = dict(population=10, max_evaluations=100)
  ours = best_found(space, reinforce(space, hidden=32, **options), 10, seeds)
  control = best_found(space, random_search(space, **options), 10, seeds)
  assert ours.max() <= 1.0
  p = scipy.stats.mannwhitneyu(ours, control, alternative="greater").pvalue
  assert p < 0.01, (ours.mean(), control.mean(), p)


def test_other_hyper_parameters_compile_nothing_and_are_obeyed():
  first = compiled(utility="score")
  changed = dict(
    learning_rate=0.1, clip_norm=0.3, entropy=0.2, discount=0.9, baseline_decay=0.5
  )
  state = first.init(jax.random.key(0))
  scores = jnp.linspace(0.0, 1.0, 4)
  genotypes, _ = first.ask(jax.random.key(1), state)
  first.tell(jax.random.key(2), state, genotypes, scores)
  other = compiled(utility="score", **changed)
  state = other.init(jax.random.key(0))
  with CompileCounter() as again:
    asked, _ = first.ask(jax.random.key(1), state)
    new, info = first.tell(jax.random.key(2), state, asked, scores)
  assert again.count == 0
  own, own_info = other.tell(jax.random.key(2), state, asked, scores)
  jax.tree.map(np.testing.assert_array_equal, (new, info), (own, own_info))
  assert float(info["learning_rate"]) == pytest.approx(0.1 / (1 + 0.1 * 10))
