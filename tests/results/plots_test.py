import xml.etree.ElementTree

import numpy as np
import pytest

from nasjax.results import analysis, plots

SPARSE = [
  {"score": None, "curve": []},
  {"score": 0.5, "curve": [None, 0.5], "arch": "16 relu - $x_", "num_params": 3},
  {},
]
PLOTS = {
  "incumbent": lambda r: plots.incumbent(r, r[:2], "accuracy"),
  "round_means": lambda r: plots.round_means(r, []),
  "learning_curves": lambda r: plots.learning_curves(r, "r2"),
  "predicted_against_measured": plots.predicted_against_measured,
  "score_against_params": lambda r: plots.score_against_params(r, "r2"),
  "token_usage": plots.token_usage,
}


@pytest.mark.parametrize("children", [[], SPARSE], ids=["none", "sparse"])
@pytest.mark.parametrize("name", PLOTS)
@pytest.mark.filterwarnings("error")
def test_a_plot_of_few_or_unfinished_records_is_drawn(name, children):
  plots.to_svg(PLOTS[name](children))


def test_incumbent_draws_the_best_so_far_of_both_searches(
  search_records, control_records
):
  axes = plots.incumbent(search_records, control_records, "accuracy").axes[0]
  lines = {line.get_label(): line for line in axes.lines}
  for name, part in (
    ("controller", search_records),
    ("random search", control_records),
  ):
    expected = analysis.incumbent_curve([r["score"] for r in part])
    np.testing.assert_array_equal(lines[name].get_ydata(), expected)


def test_incumbent_shows_the_best_even_beside_a_diverged_child():
  axes = plots.incumbent(
    [{"score": s} for s in (-1e6, 0.5, 0.6, 0.7, 0.8, 0.9)], [], "r2"
  ).axes[0]
  low, high = axes.get_ylim()
  assert low > -10
  assert high > 0.9


def test_top_children_are_coloured_and_the_others_grey(search_records):
  axes = plots.learning_curves(search_records, "accuracy", top=3).axes[0]
  coloured = [line for line in axes.lines if line.get_color() != plots.GREY]
  best = analysis.leaderboard(search_records, 3)
  assert [line.get_ydata().tolist() for line in coloured] == [r["curve"] for r in best]
  assert len(axes.lines) == 38


def test_pareto_front_by_hand():
  sizes_and_scores = [(10, 0.5), (20, 0.4), (30, 0.7), (30, 0.6), (40, 0.7), (50, 0.8)]
  children = [{"num_params": n, "score": s} for n, s in sizes_and_scores]
  axes = plots.score_against_params(children, "accuracy").axes[0]
  (front,) = (line for line in axes.lines if line.get_label() == "Pareto front")
  assert front.get_xydata().tolist() == [[10, 0.5], [30, 0.7], [50, 0.8]]


def test_the_title_of_the_predictor_plot_says_tau(search_records):
  title = plots.predicted_against_measured(search_records).axes[0].get_title()
  tau = analysis.kendall_tau(
    [r["predicted_score"] for r in search_records],
    analysis.finite_scores(search_records),
  )
  assert f"{tau:.2f}" in title


def test_bars_carry_their_values_and_negative_r2_is_in_view():
  bars = [("best child", -0.25), ("random search's best", 0.5), ("mean", 0.0)]
  axes = plots.bars_final(bars, "r2").axes[0]
  shown = [text.get_text().strip() for text in axes.texts]
  assert shown == ["-0.2500", "0.5000", "0.0000"]
  assert axes.get_xlim()[0] <= -0.25
  assert axes.get_xlabel() == "test R²"


def test_token_usage_counts_layers_per_child_early_and_late():
  children = [{"arch": a} for a in ("8 relu - 8 relu", "16 elu", "16 elu - 8 relu")]
  axes = plots.token_usage(children).axes[0]
  early, late = ([bar.get_width() for bar in c] for c in axes.containers)
  names = [label.get_text() for label in axes.get_yticklabels()]
  assert dict(zip(names, early)) == {"8 relu": 2, "16 elu": 0}
  assert dict(zip(names, late)) == {"8 relu": 1, "16 elu": 1}


def test_svg_is_one_element_escaped_and_the_same_each_time(search_records):
  hostile = [search_records[0] | {"arch": "<script>$alert$</script> & - x"}]
  first, second = (
    plots.to_svg(plots.learning_curves(hostile, "accuracy")) for _ in range(2)
  )
  assert first == second
  assert "<script>" not in first
  assert xml.etree.ElementTree.fromstring(first).tag.endswith("svg")


def test_png_has_the_size_that_dpi_asks_for(search_records):
  figure = plots.round_means(search_records, [])
  data = plots.to_png(figure, dpi=50)
  assert data[:8] == b"\x89PNG\r\n\x1a\n"
  assert int.from_bytes(data[16:20], "big") == 300


GRID = np.array([1.0, 10.0, 100.0])
BANDS = {
  "evolution": (
    GRID,
    GRID * [np.nan, 0.08, 0.009],
    *[GRID * [np.nan, np.nan, 0.01]] * 2,
  ),
  "random_search": (GRID, *[np.array([0.5, 0.6, 0.7])] * 3),
  "reinforce": (GRID, *[np.array([0.5, 0.6, 0.95])] * 3),
}


@pytest.mark.parametrize("bands", [{}, {"a": (GRID, *[GRID * np.nan] * 3)}, BANDS])
@pytest.mark.parametrize("log_x", [False, True])
@pytest.mark.filterwarnings("error")
def test_anytime_curves_are_drawn_of_few_or_no_values(bands, log_x):
  plots.to_svg(plots.anytime_curves(bands, "cost", "accuracy", "$x_", log_x=log_x))


@pytest.mark.parametrize(
  ("lower_is_better", "expected"),
  [
    (False, ["reinforce", "evolution", "random_search", "optimum"]),
    (True, ["random_search", "evolution", "reinforce", "optimum"]),
  ],
)
def test_anytime_curves_are_listed_best_first(lower_is_better, expected):
  figure = plots.anytime_curves(
    BANDS,
    "cost",
    "value",
    "Best so far",
    log_x=True,
    reference=(1.0, "optimum"),
    lower_is_better=lower_is_better,
  )
  axes, legend = figure.axes[0], figure.legends[0]
  assert [text.get_text() for text in legend.get_texts()] == expected
  lines = {line.get_label(): line for line in axes.lines}
  for name, (_, mean, _, _) in BANDS.items():
    np.testing.assert_array_equal(lines[name].get_ydata(), mean)
  assert lines["random_search"].get_color() == plots.ORANGE
  assert len({line.get_color() for line in axes.lines}) == 4
  assert len({lines[name].get_linestyle() for name in BANDS}) == 3
  assert len(axes.collections) == 3
  assert axes.get_xscale() == "log"
  assert axes.get_ylim()[1] > 1.0


def test_a_wide_interval_leaves_the_means_in_view():
  mean = np.array([0.90, 0.91, 0.92])
  half = np.array([50.0, 0.001, 0.001])
  bands = {"a": (GRID, mean, mean - half, mean + half)}
  low, high = plots.anytime_curves(bands, "", "", "").axes[0].get_ylim()
  assert 0.88 < low < 0.90 and 0.92 < high < 0.94
