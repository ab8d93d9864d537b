import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nasjax.core.types import InputError
from nasjax.spaces import base
from nasjax.spaces.mlp_chain import Dense, Dropout, MLPChain

SMALL = MLPChain(widths=(8, 16), activations=("tanh", "relu"), max_layers=4)
SPACES = [
  MLPChain(),
  SMALL,
  MLPChain(widths=(8,), activations=("relu",), dropout_rate=0.0, max_layers=2),
  MLPChain(widths=(4, 2), prior="token", max_layers=3),
]


def enumerate_space(space):
  """Every legal genotype, by brute force over all vectors."""
  everything = itertools.product(range(space.num_tokens), repeat=space.length)
  vectors = np.array(list(everything), np.int32)
  return vectors[np.asarray(jax.vmap(space.is_legal)(vectors))]


def test_the_surveys_vocabulary():
  space = MLPChain()
  # ids are 4 * width + activation + 1, then dropout, then the end; 31 classes in all
  assert (space.num_dense, space.dropout, space.end, space.num_tokens) == (
    28,
    29,
    30,
    31,
  )
  widths, activations = space.token_widths(), space.token_activations()
  assert (widths[1], widths[4], widths[5], widths[28]) == (8, 8, 16, 512)
  assert activations[1:6].tolist() == [0, 1, 2, 3, 0]
  assert space.length == 10
  assert space.size == 28 * sum(29**n for n in range(9))


def test_brute_force_finds_exactly_what_the_masks_allow():
  genotypes = enumerate_space(SMALL)
  assert len(genotypes) == SMALL.size == 4 + 4 * 5 + 4 * 25
  for genotype in genotypes:
    tokens = genotype.tolist()
    end = tokens.index(SMALL.end)
    assert end > 0 and tokens[0] <= SMALL.num_dense
    assert 0 not in tokens[:end] and not any(tokens[end + 1 :])


@pytest.mark.parametrize("prior", ["depth", "token"])
def test_the_prior_sums_to_one_over_the_space(prior):
  space = MLPChain(widths=(8, 16), activations=("relu",), max_layers=4, prior=prior)
  genotypes = enumerate_space(space)
  log_p = jax.vmap(lambda g: base.log_prob(space, g))(genotypes)
  np.testing.assert_allclose(np.exp(log_p).sum(), 1.0, rtol=1e-5)
  hidden = (genotypes == space.end).argmax(1)
  by_depth = [np.exp(log_p)[hidden == d].sum() for d in (1, 2, 3)]
  if prior == "depth":
    np.testing.assert_allclose(by_depth, 1 / 3, rtol=1e-5)
  else:  # two dense tokens and dropout, so the end has a chance of 1 in 4
    np.testing.assert_allclose(by_depth, [1 / 4, 3 / 16, 9 / 16], rtol=1e-5)


@pytest.mark.parametrize("space", SPACES)
def test_samples_are_legal_and_follow_the_prior(space):
  keys = jax.random.split(jax.random.key(0), 4000)
  genotypes = np.asarray(jax.jit(jax.vmap(lambda k: base.sample(space, k)))(keys))
  assert genotypes.dtype == np.int32
  assert bool(jax.vmap(space.is_legal)(genotypes).all())
  # the end's position, whose distribution is known in closed form
  depth = np.bincount((genotypes == space.end).argmax(1), minlength=space.length)[1:]
  if space.prior == "depth":
    expected = np.full(space.length - 1, len(genotypes) / (space.length - 1))
    assert ((depth - expected) ** 2 / expected).sum() < 30  # chi2, 8 degrees: p < 3e-4


def test_illegal_genotypes_are_refused():
  for tokens in ([5, 1, 6, 0], [1, 6, 0, 1], [1, 2, 3, 4], [6, 0, 0, 0], [1, 9, 6, 0]):
    assert not bool(SMALL.is_legal(jnp.array(tokens)))
    with pytest.raises(InputError, match="not a genotype"):
      SMALL.layers(np.array(tokens))


def test_words_and_genotypes_are_inverse():
  for genotype in enumerate_space(SMALL):
    assert (SMALL.parse(SMALL.describe(genotype)) == genotype).all()
  text = "256 relu - dropout 0.2 - 64 tanh"
  layers = MLPChain().layers(MLPChain().parse(text))
  assert layers == (Dense(256, "relu"), Dropout(0.2), Dense(64, "tanh"))
  for wrong in (
    "7 relu",
    "dropout 0.2 - 8 relu",
    "8 gelu",
    "",
    " - ".join(["8 relu"] * 10),
  ):
    with pytest.raises(InputError):
      MLPChain().parse(wrong)


@pytest.mark.parametrize(
  "options",
  [
    {"widths": ()},
    {"widths": (0,)},
    {"widths": (8, 8)},
    {"activations": ("gelu",)},
    {"activations": ()},
    {"dropout_rate": 1.0},
    {"max_layers": 1},
    {"prior": "uniform"},
  ],
)
def test_impossible_spaces_are_refused_by_name(options):
  with pytest.raises(InputError, match=f"space.{next(iter(options))}"):
    MLPChain(**options)


def test_neighbors_are_the_chains_one_layer_away():
  space = MLPChain(widths=(8, 16), activations=("relu",), max_layers=4)
  every = np.asarray(jax.vmap(space.at)(jnp.arange(space.size)))
  words = [space.describe(genotype).split(" - ") for genotype in every]

  def one_layer_away(a, b):
    short, long = sorted((a, b), key=len)
    if len(a) == len(b):
      return sum(x != y for x, y in zip(a, b)) == 1
    return any(long[:i] + long[i + 1 :] == short for i in range(len(long)))

  near = jax.jit(jax.vmap(space.neighbors))(every)
  for i, (genotypes, weights) in enumerate(zip(*map(np.asarray, near))):
    found = {g.tobytes() for g in genotypes[weights > 0]}
    wanted = [
      every[j] for j, other in enumerate(words) if one_layer_away(words[i], other)
    ]
    assert found == {g.tobytes() for g in wanted}


def test_a_mutation_picks_its_kind_first():
  space = MLPChain(widths=(8, 16), activations=("relu",), max_layers=4)
  near = space.neighbors(jnp.asarray(space.parse("8 relu - 16 relu")))
  lengths = np.asarray(jax.vmap(space.num_layers)(near.genotypes))
  weights = np.asarray(near.weights)
  for length in (1, 2, 3):  # deleted, replaced, inserted
    assert weights[lengths == length].sum() == pytest.approx(1 / 3)


def test_numbers_go_by_length_and_have_an_end():
  space = MLPChain(dropout_rate=0.0, max_layers=4)
  assert space.size == 28 + 784 + 21952
  assert space.describe(np.asarray(space.at(0))) == "8 sigmoid"
  assert space.describe(np.asarray(space.at(28))) == "8 sigmoid - 8 sigmoid"
  with pytest.raises(InputError, match="too many to number"):
    MLPChain().index(jnp.asarray(MLPChain().parse("8 relu")))
