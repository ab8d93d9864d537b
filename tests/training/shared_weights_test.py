import numpy as np

from nasjax.spaces.mlp_chain import MLPChain
from nasjax.training import shared_weights

SPACE = MLPChain(widths=(2, 3), activations=("relu", "tanh"), max_layers=6)


def layers(text):
  return SPACE.layers(SPACE.parse(text))


def constant(value, count):
  return [{"kernel": np.full((1, 1), value), "bias": np.full(1, value)}] * count


def test_bigrams_see_through_dropout_and_name_input_and_output():
  assert shared_weights.bigrams(layers("2 relu - dropout 0.2 - 3 tanh")) == [
    "input>2 relu",
    "2 relu>3 tanh",
    "3 tanh>output",
  ]


def test_what_is_stored_is_loaded_and_the_rest_stays_fresh():
  table = shared_weights.store(
    shared_weights.empty(),
    [(layers("2 relu - 3 tanh"), constant(1.0, 3), 0.5)],
    "last",
  )
  fresh = constant(0.0, 3)
  loaded = shared_weights.load(table, layers("2 relu - 2 tanh"), fresh)
  assert shared_weights.num_shared(table, layers("2 relu - 2 tanh")) == 1
  assert [float(layer["kernel"][0, 0]) for layer in loaded] == [1.0, 0.0, 0.0]
  assert not shared_weights.empty().weights


def test_last_writer_against_keep_best():
  chain = layers("2 relu")
  children = [(chain, constant(v, 2), s) for v, s in ((1.0, 0.9), (2.0, 0.4))]
  bad = (chain, constant(3.0, 2), float("nan"))
  for rule, expected in (("last", 2.0), ("best", 1.0)):
    table = shared_weights.store(shared_weights.empty(), [*children, bad], rule)
    assert float(table.weights["input>2 relu"]["kernel"][0, 0]) == expected
    # a later round: the rule is against what the table holds
    later = shared_weights.store(table, [(chain, constant(4.0, 2), 0.6)], rule)
    kept = float(later.weights["2 relu>output"]["bias"][0])
    assert kept == (4.0 if rule == "last" else 1.0)


def test_a_table_copies_what_it_stores():
  weights = [{"kernel": np.ones((1, 2)), "bias": np.ones(2)} for _ in range(2)]
  table = shared_weights.store(
    shared_weights.empty(), [(layers("2 relu"), weights, 0.1)], "last"
  )
  weights[0]["kernel"][:] = 7.0
  assert table.weights["input>2 relu"]["kernel"].max() == 1.0
