import pytest

from nasjax.results import tables


def test_a_column_that_says_nothing_is_left_out():
  columns = [("a", False), ("b", True), ("c", True)]
  made = tables.table(columns, [["x", "–", "1"], ["y", "", "–"]], marked=0)
  assert made == tables.Table([("a", False), ("c", True)], [["x", "1"], ["y", "–"]], 0)
  assert tables.table(columns, []) is None
  assert tables.table(columns, [["", "–", ""]]) is None


def test_pairs_leave_out_what_is_not_known_but_keep_zero_and_no():
  made = tables.pairs([("a", None), ("b", 0), ("c", False), ("d", [1, "x"])])
  assert made.rows == [("b", "0"), ("c", "no"), ("d", "1, x")]
  assert tables.pairs([("a", None)]) is None


def test_settings_are_flattened_and_not_rounded():
  settings = {"a": {"b": {"c": 0.00123456}, "d": None}, "e": [1, 2], "seed": 12345}
  assert tables.flatten(settings) == [
    ("a.b.c", "0.00123456"),
    ("a.d", "none"),
    ("e", "1, 2"),
    ("seed", "12345"),
  ]


@pytest.mark.parametrize(
  "value, expected",
  [(None, "–"), (float("nan"), "–"), (0.5, "0.5000"), (12345, "12,345"), ("x", "x")],
)
def test_numbers_as_people_read_them(value, expected):
  assert tables.number(value) == expected


@pytest.mark.parametrize(
  "value, expected", [(0.123456, "0.123"), (1234.5, "1,234"), (7, "7"), (None, "–")]
)
def test_measured_figures_have_three_digits(value, expected):
  assert tables.figure(value) == expected


def test_markdown_escapes_each_mark_once_and_stays_on_one_line():
  escaped = tables.markdown("a|b\n<i> & `c` \\|")
  assert escaped == r"a\|b &lt;i&gt; &amp; \`c\` \\\|"
  assert tables.markdown(tables.verbatim("a | <b>\nc")) == "a | <b> c"
