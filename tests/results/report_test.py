import html.parser
import re
import shutil

import pytest
from synthetic_run import SCRIPT, make_records, make_run, make_summary

from nasjax.core.types import InputError
from nasjax.results import plots, report

RECORD_KEYS = sorted(make_records(0, improving=True)[0])
VOID = {"meta", "br", "link", "img"}


class Page(html.parser.HTMLParser):
  """The text, tags and unclosed elements of a page."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.open, self.words, self.attributes = [], [], [], []
    self.feed(text)
    self.text = " ".join(" ".join(self.words).split())

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += attrs
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += attrs

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open and self.open[-1] != "style":
      self.words.append(data)


@pytest.fixture(scope="module")
def both(finished_run):
  """The HTML page and the Markdown text of the finished run."""
  path = report.write(finished_run)
  assert path == finished_run / "report.html"
  return Page(path.read_text()), (finished_run / "report.md").read_text()


@pytest.fixture
def without_plots(monkeypatch):
  """Reports in milliseconds, for what is not about plots."""
  monkeypatch.setattr(plots, "to_svg", lambda _: "<svg></svg>")


def write(folder, **files):
  """The headline's page and the Markdown text of a run with these files."""
  path = report.write(make_run(folder, **files))
  return Page(path.read_text()).text, path.with_suffix(".md").read_text()


def test_the_page_is_well_formed_and_needs_nothing_else(both):
  page, _ = both
  assert page.open == []
  assert "script" not in page.tags
  assert not {"link", "img", "iframe", "object"} & set(page.tags)
  links = [v for k, v in page.attributes if k.removeprefix("xlink:") in ("href", "src")]
  assert links
  assert all(link.startswith(("#", "data:image/png;base64,")) for link in links)
  assert page.tags.count("svg") == 7


def test_sections_come_in_the_promised_order(both):
  page, text = both
  titles = ["Result", "Leaderboard", "Failed children", "Data", "How far to trust"]
  titles += ["The survey's figures", "Costs", "Configuration", "Environment"]
  places = [text.index(f"## {title}") for title in [*titles, "Run it again"]]
  assert places == sorted(places)
  places = [page.text.rindex(t) for t in ("Result", "Leaderboard", "Environment")]
  assert places == sorted(places)


def test_a_class_or_column_named_as_a_script_does_nothing(both, finished_run):
  page, text = both
  assert SCRIPT in page.text  # as text that is read, in no tag
  assert "<script" not in (finished_run / "report.html").read_text()
  assert "<script" not in text
  assert "&lt;script&gt;" in text


def test_markdown_tables_keep_their_shape_with_a_pipe_in_a_cell(both):
  _, text = both
  assert r"a\|b" in text
  blocks = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
  assert len(blocks) >= 8
  for block in blocks:
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
    assert len(widths) == 1, block


def test_the_headline_says_what_is_not_beaten(both):
  page, text = both
  expected = (
    "256 elu - 64 tanh reaches a test accuracy of 0.9000 (validation score 0.9100). "
    "That is above random search's best, retrained (0.8800) and majority class "
    "(0.4000), but not better than scikit-learn MLPClassifier (0.9500)."
  )
  assert expected in page.text
  assert expected in text


def test_settings_are_shown_unrounded_and_warnings_once(both):
  page, _ = both
  assert "0.00123456" in page.text
  assert page.text.count("only 40 children") == 1
  assert page.text.count("is constant") == 1


@pytest.mark.parametrize(
  "changes, expected",
  [
    (
      {"sklearn_test_score": 0.9},  # level with ours is not above it
      "above random search's best, retrained (0.8800) and majority class (0.4000), "
      "but not better than scikit-learn MLPClassifier (0.9000).",
    ),
    ({"sklearn_test_score": 0.8}, "scikit-learn MLPClassifier (0.8000) and majority"),
    ({"test_score": 0.1, "test_accuracy": 0.1}, "That is not better than random"),
    ({"test_score": None, "test_accuracy": None}, "0.9100; it was not tested"),
    ({"status": "interrupted"}, "Interrupted after 40 of 40 children. 256 elu"),
  ],
)
def test_headlines(tmp_path, without_plots, search_records, changes, expected):
  page, text = write(
    tmp_path / "run", summary=make_summary(**changes), search=search_records
  )
  assert expected in page
  assert expected in text


def test_regression_speaks_of_r2_and_its_own_baselines(tmp_path, without_plots):
  children = make_records(2, improving=True, metric="r2")
  names = ("test", "sklearn_test", "random_search_test", "majority")
  accuracies = {f"{name}_accuracy": None for name in names}
  summary = make_summary(metric="r2", majority_score=-0.1, **accuracies)
  page, _ = write(tmp_path / "run", summary=summary, search=children)
  assert "test R² of 0.9000" in page
  assert "mean of the training rows (-0.1000)" in page
  assert "scikit-learn MLPRegressor (0.9500)" in page
  assert "accuracy" not in page.split("How far to trust")[0]


@pytest.mark.parametrize("done", [0, 1, 9])
def test_a_run_cut_short_without_a_summary(tmp_path, search_records, done):
  page, text = write(tmp_path / "run", search=search_records[:done])
  assert f"Interrupted after {done} of 40 children" in page
  assert f"Interrupted after {done} of 40 children" in text
  assert "0.9500" not in text
  assert ("not tested" if done else "No child has a score") in page


def test_an_empty_folder_and_one_where_all_children_failed(tmp_path):
  page, _ = write(tmp_path / "empty", config=False)
  assert "Interrupted after 0 children. No child has a score." in page
  failed = [{"score": None, "arch": "8 relu", "failure": "out of memory"}] * 30
  page, text = write(tmp_path / "failed", search=failed)
  assert text.count("| out of memory |") == 20
  assert "10 more are in records.jsonl" in page


@pytest.mark.parametrize("key", sorted(make_summary()))
def test_a_summary_may_lack_any_key_or_hold_null(
  tmp_path, without_plots, search_records, key
):
  full = make_summary()
  for value in ({}, {key: None}):
    summary = {k: v for k, v in full.items() if k != key} | value
    write(tmp_path / "run", summary=summary, search=search_records[:6])


@pytest.mark.parametrize("key", RECORD_KEYS)
def test_all_records_may_lack_a_key(tmp_path, without_plots, search_records, key):
  children = [{k: v for k, v in r.items() if k != key} for r in search_records[:6]]
  write(tmp_path / "run", summary=make_summary(), search=children)


def test_each_record_may_lack_another_key(tmp_path, search_records):
  children = [
    {k: v for k, v in record.items() if k != key}
    for key, record in zip(RECORD_KEYS, search_records)
  ]
  assert len(children) == len(RECORD_KEYS)
  write(tmp_path / "run", summary=make_summary(), search=children)


def test_unknown_keys_are_left_out(tmp_path, without_plots, search_records):
  summary = make_summary() | {"colour": "heliotrope", "data": {"name": "w", "x": 1}}
  page, _ = write(tmp_path / "run", summary=summary, search=search_records)
  assert "heliotrope" not in page


def test_random_searchs_parameters_come_from_its_records(
  tmp_path, without_plots, search_records, control_records
):
  control = [control_records[0] | {"arch": "16 relu", "num_params": 123_456}]
  _, text = write(
    tmp_path / "run", summary=make_summary(), search=search_records, control=control
  )
  rows = [line for line in text.splitlines() if line.startswith("| random search's")]
  assert "123,456" in rows[0]


def test_the_same_files_give_the_same_report(tmp_path, both, finished_run):
  copy = shutil.copytree(finished_run, tmp_path / "copy")
  report.write(copy)
  for name in ("report.html", "report.md"):
    assert (copy / name).read_bytes() == (finished_run / name).read_bytes()


def test_what_cannot_be_a_run_is_an_error_of_one_line(tmp_path):
  with pytest.raises(InputError, match="no such folder"):
    report.write(tmp_path / "absent")
  (tmp_path / "summary.json").write_text("{\ntorn")
  with pytest.raises(InputError, match="summary.json is damaged") as error:
    report.write(tmp_path)
  assert "\n" not in str(error.value)
