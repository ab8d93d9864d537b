"""What every search space keeps, run over the table of all of them."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nasjax.spaces import base
from nasjax.spaces.categorical import Categorical
from nasjax.spaces.conv_cell import ConvCell
from nasjax.spaces.mlp_chain import MLPChain
from nasjax.spaces.nasbench201 import NASBench201
from nasjax.spaces.recurrent_cell import RecurrentCell

S = 32  # genotypes of a compiled call
MEMBERS = {
  "mlp_chain": MLPChain(),
  "mlp_chain_small": MLPChain(widths=(8, 16), max_layers=4),
  "mlp_chain_by_token": MLPChain(widths=(8, 4), max_layers=4, prior="token"),
  "mlp_chain_of_one": MLPChain((8,), ("relu",), dropout_rate=0.0, max_layers=2),
  "categorical": Categorical((2, 4, 1, 3)),
  "nasbench201": NASBench201(),
  "conv_cell": ConvCell(),
  "conv_cell_of_one": ConvCell(1),
  "recurrent_cell": RecurrentCell(),
  "recurrent_cell_of_four": RecurrentCell(4),
}
ENUMERABLE = [name for name, space in MEMBERS.items() if space.size < 1000]


def judge(space, genotype):
  """What a space says of one genotype `[D]`: `[D, K]` priors, and whether it is in."""
  positions = jnp.arange(space.length)
  return {
    "log_prior": jax.vmap(space.log_prior, (None, 0))(genotype, positions),
    "legal": space.is_legal(genotype),
  }


@functools.cache
def compiled_judge(name):
  return jax.jit(jax.vmap(functools.partial(judge, MEMBERS[name])))


def judged(name, genotypes):
  """`judge` of many genotypes `[N, D]`, S at a time: one program a member."""
  rows = -(-len(genotypes) // S) * S
  filled = np.resize(genotypes, (rows, genotypes.shape[1]))
  parts = [compiled_judge(name)(part) for part in np.split(filled, rows // S)]
  return jax.tree.map(lambda *p: np.concatenate(p)[: len(genotypes)], *parts)


def keys():
  return jax.random.split(jax.random.key(0), S)


@functools.cache
def samples(name):
  """S genotypes of the prior, and what their space says of them."""
  one = functools.partial(base.sample, MEMBERS[name])
  genotypes = np.asarray(jax.jit(jax.vmap(one))(keys()))
  return genotypes, judged(name, genotypes)


def same(a, b):
  for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert left.shape == right.shape and left.dtype == right.dtype
    np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module", params=MEMBERS)
def name(request):
  return request.param


def test_samples_are_legal_int32(name):
  genotypes, found = samples(name)
  assert genotypes.shape == (S, MEMBERS[name].length) and genotypes.dtype == np.int32
  assert found["legal"].dtype == bool and found["legal"].all()
  chosen = np.take_along_axis(found["log_prior"], genotypes[..., None], -1)
  assert np.isfinite(chosen).all()


def test_the_prior_is_a_distribution_at_every_position(name):
  space, log_p_SDK = MEMBERS[name], samples(name)[1]["log_prior"]
  assert log_p_SDK.shape == (S, space.length, space.num_tokens)
  assert log_p_SDK.dtype == np.float32 and not np.isnan(log_p_SDK).any()
  np.testing.assert_allclose(np.exp(log_p_SDK).sum(-1), 1.0, rtol=1e-5)


def test_the_prior_reads_only_the_decisions_made(name):
  space, (genotypes, found) = MEMBERS[name], samples(name)
  for position in range(space.length):
    changed = genotypes.copy()
    changed[:, position:] = (changed[:, position:] + 1) % space.num_tokens
    log_p_SDK = judged(name, changed)["log_prior"]
    np.testing.assert_array_equal(
      log_p_SDK[:, position], found["log_prior"][:, position]
    )


def test_what_the_prior_forbids_is_illegal(name):
  genotypes, found = samples(name)
  rows, positions, tokens = np.nonzero(np.isneginf(found["log_prior"][:4]))
  changed = genotypes[rows]
  changed[np.arange(len(rows)), positions] = tokens
  if not len(rows):  # nothing is forbidden: then everything is in the space
    assert MEMBERS[name].size == MEMBERS[name].num_tokens ** MEMBERS[name].length
  else:
    assert not judged(name, changed)["legal"].any()


@pytest.mark.parametrize("name", ENUMERABLE)
def test_size_counts_what_the_prior_allows(name):
  space = MEMBERS[name]
  level = np.zeros((1, space.length), np.int32)
  for position in range(space.length):
    allowed = np.isfinite(judged(name, level)["log_prior"][:, position])
    rows, tokens = np.nonzero(allowed)
    level = level[rows]
    level[:, position] = tokens
  assert len(level) == len(np.unique(level, axis=0)) == space.size
  assert judged(name, level)["legal"].all()


def test_parse_inverts_describe(name):
  space = MEMBERS[name]
  for genotype in samples(name)[0]:
    text = space.describe(genotype)
    again = space.parse(text)
    assert text and "\n" not in text and again.dtype == np.int32
    np.testing.assert_array_equal(again, genotype)


@functools.cache
def around(name):
  """The neighbors of S genotypes of the prior."""
  found = jax.jit(jax.vmap(MEMBERS[name].neighbors))(samples(name)[0])
  return jax.tree.map(np.asarray, found)


def test_neighbors_are_others_of_the_space_without_repeats(name):
  genotypes, (near_SMD, weights_SM) = samples(name)[0], around(name)
  assert near_SMD.dtype == np.int32
  total = 0.0 if MEMBERS[name].size == 1 else 1.0
  np.testing.assert_allclose(weights_SM.sum(-1), total, rtol=1e-5)
  for genotype, near, weights in zip(genotypes, near_SMD, weights_SM):
    mine = near[weights > 0]
    assert len(np.unique(mine, axis=0)) == len(mine)
    assert not (mine == genotype).all(-1).any()
    assert (near[weights == 0] == genotype).all()
    assert not len(mine) or judged(name, mine)["legal"].all()


@pytest.mark.parametrize("name", ENUMERABLE)
def test_neighbors_are_mutual(name):
  space = MEMBERS[name]
  every = np.asarray(jax.vmap(space.at)(jnp.arange(space.size)))
  near_NMD, weights_NM = jax.jit(jax.vmap(space.neighbors))(every)
  number_NM = np.asarray(jax.vmap(jax.vmap(space.index))(near_NMD))
  linked = np.zeros((space.size, space.size), bool)
  rows, places = np.nonzero(np.asarray(weights_NM) > 0)
  linked[rows, number_NM[rows, places]] = True
  assert (linked == linked.T).all()


def test_a_mutation_is_a_neighbor(name):
  one = jax.jit(jax.vmap(functools.partial(base.mutate, MEMBERS[name])))
  genotypes = samples(name)[0]
  for genotype, changed, near in zip(
    genotypes, np.asarray(one(keys(), genotypes)), around(name).genotypes
  ):
    assert (changed == near).all(-1).any()
    assert MEMBERS[name].size == 1 or (changed != genotype).any()


@pytest.mark.parametrize("name", [*ENUMERABLE, "nasbench201"])
def test_numbers_and_genotypes_are_one_to_one(name):
  space = MEMBERS[name]
  numbers = np.arange(space.size)
  genotypes = np.asarray(jax.jit(jax.vmap(space.at))(numbers))
  assert genotypes.dtype == np.int32
  assert len(np.unique(genotypes, axis=0)) == space.size
  assert np.asarray(jax.vmap(space.is_legal)(genotypes)).all()
  found = np.asarray(jax.jit(jax.vmap(space.index))(genotypes))
  np.testing.assert_array_equal(found, numbers)


def test_vmap_equals_loop(name):
  draw = jax.jit(functools.partial(base.sample, MEMBERS[name]))
  one = jax.jit(functools.partial(judge, MEMBERS[name]))
  genotypes, found = samples(name)
  same(genotypes, np.stack([draw(key) for key in keys()]))
  loop = [one(genotype) for genotype in genotypes]
  same(found, jax.tree.map(lambda *leaves: np.stack(leaves), *loop))


def test_jit_equals_no_jit(name):
  genotypes, found = samples(name)
  eager = judge(MEMBERS[name], jnp.asarray(genotypes[0]))
  same(eager, jax.tree.map(lambda leaf: leaf[0], found))


def test_to_dict_is_json(name):
  described = MEMBERS[name].to_dict()
  stored = json.loads(json.dumps(described, allow_nan=False))
  as_lists = {k: list(v) if isinstance(v, tuple) else v for k, v in described.items()}
  assert stored == as_lists and stored["kind"]
  assert sum(other.to_dict() == described for other in MEMBERS.values()) == 1
