"""Pictures of cells: every operation and every edge is in them."""

import numpy as np
import pytest

from nasjax.results import cell_plots, plots
from nasjax.spaces import recurrent_cell
from nasjax.spaces.conv_cell import CELLS, PRIMITIVES, ConvCell, edges

SPACE = ConvCell()


@pytest.mark.parametrize("kind", CELLS)
def test_a_cell_names_each_operation_once_an_edge(kind):
  cell = getattr(SPACE.decode(SPACE.parse("DARTS_V1")), kind)
  figure = cell_plots.cell_graph(cell, "a title")
  (axes,) = figure.axes
  written = [text.get_text() for text in axes.texts]
  ops = [edge.op.removesuffix("_connect").replace("_", " ") for n in cell for edge in n]
  assert sorted(w for w in written if w in set(ops)) == sorted(ops)
  assert {"0", "1", "2", "3", "$c_k$", "$c_{k-1}$", "$c_{k-2}$"} <= set(written)
  assert len(axes.patches) == 8 + 4  # an arrow an edge, and the nodes' to the output
  places = np.array([text.get_position() for text in axes.texts])
  low, high = axes.get_xlim(), axes.get_ylim()
  assert (places[:, 0] > low[0]).all() and (places[:, 0] < low[1]).all()
  assert (places[:, 1] > high[0]).all() and (places[:, 1] < high[1]).all()
  assert axes.get_title(loc="left") == "a title"


def test_labels_do_not_cover_each_other():
  for name in ("DARTS_V1", "DARTS_V2"):
    for cell in SPACE.decode(SPACE.parse(name)):
      (axes,) = cell_plots.cell_graph(cell, "").axes
      places = [t.get_position() for t in axes.texts if len(t.get_text()) > 1]
      for i, (x, y) in enumerate(places):
        for other_x, other_y in places[:i]:
          assert abs(x - other_x) > 0.5 or abs(y - other_y) > 0.2


@pytest.mark.parametrize("name", recurrent_cell.PUBLISHED)
def test_a_recurrent_cell_is_a_tree_that_runs_to_the_right(name):
  space = recurrent_cell.RecurrentCell()
  cell = space.decode(space.parse(name))
  (axes,) = cell_plots.tree_graph(cell, "a title").axes
  place = {text.get_text(): text.get_position() for text in axes.texts}
  assert set(map(str, range(9))) | {"$x_t$", "$h_{t-1}$", "$h_t$"} <= set(place)
  written = [text.get_text() for text in axes.texts]
  assert sorted(w for w in written if w.isalpha()) == sorted(edge.op for edge in cell)
  for node, edge in enumerate(cell):
    assert place[str(edge.source)][0] < place[str(node + 1)][0] < place["$h_t$"][0]
  spots = np.array([text.get_position() for text in axes.texts])
  apart = np.abs(spots[:, None] - spots[None])
  close = (apart[..., 0] < 0.5) & (apart[..., 1] < 0.4)
  assert close.sum() == len(spots)  # each with itself
  assert len(axes.patches) == 8 + 8 + 2  # edges, the nodes' to the output, the inputs'
  low, high = axes.get_ylim()
  assert low < spots[:, 1].min() and spots[:, 1].max() < high


def test_states_are_called_what_they_are_given():
  history = [{"recurrent": np.zeros((3, 5))}, {"recurrent": np.ones((3, 5))}]
  figure = cell_plots.alphas_over_time(
    history,
    "recurrent",
    recurrent_cell.PRIMITIVES,
    recurrent_cell.edges(2),
    ["0", "1", "2"],
  )
  titles = [axes.get_title() for axes in figure.axes if axes.images]
  assert titles == ["0 → 1", "0 → 2", "1 → 2"]


def test_perplexities_of_retrained_cells():
  curves = {"derived cell": [9.0, 5.0, 4.0], "random 1": [9.0], "random 2": [8.0, 6.0]}
  (axes,) = cell_plots.perplexities(curves, 3).axes
  drawn = [list(line.get_ydata()) for line in axes.lines]
  assert drawn[:3] == list(curves.values())
  assert list(axes.lines[3].get_xdata()) == [2.5, 2.5]  # averaged from epoch 3
  assert len(cell_plots.perplexities(curves, None).axes[0].lines) == 3


def test_alphas_and_curves_by_epoch():
  rng = np.random.default_rng(0)
  history = [{name: rng.normal(size=(14, 8)) for name in CELLS} for _ in range(3)]
  figure = cell_plots.alphas_over_time(history, "normal", PRIMITIVES, edges(4))
  drawn = [axes for axes in figure.axes if axes.images]
  assert len(drawn) == 14
  logits = history[2]["normal"][5]
  np.testing.assert_allclose(
    drawn[5].images[0].get_array()[:, 2], np.exp(logits) / np.exp(logits).sum()
  )
  rows = [
    {"epoch": i, "skips": i, **{f"{a}_{b}": v for a, b, v in made}}
    for i, made in enumerate(
      [
        [
          (a, b, None if i else 0.5)
          for a in ("train", "valid")
          for b in ("loss", "accuracy")
        ]
        for i in range(2)
      ]
    )
  ]
  assert "<svg" in plots.to_svg(cell_plots.search_curves(rows))
  rows[1]["skips"] = 5
  (axes,) = cell_plots.skip_count(rows, 8, 4).axes
  np.testing.assert_array_equal(axes.lines[0].get_ydata(), [0, 5])
  np.testing.assert_array_equal(axes.lines[1].get_ydata(), [5])  # the alarm
