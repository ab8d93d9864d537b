import datetime
import gzip
import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from nasjax.core.types import InputError
from nasjax.data import preprocessing, tabular_files

_KEY = np.random.default_rng(0)
_ROWS = 120

# Without a time of writing: the tests of all workers have one name.
_CUT_GZIP = gzip.compress(b"a,b\n1,2\n" * 99, mtime=0)[:-12]


def _columns():
  """Numbers, words with a gap, dates, booleans; no one of them gives the label."""
  a, b = np.random.default_rng(0).normal(size=(2, _ROWS)).round(4)
  return {
    "a": a,
    "b": b,
    "color": [["red", "blue", ""][i % 3] for i in range(_ROWS)],
    "day": [f"2024-0{i % 9 + 1}-1{i % 7}" for i in range(_ROWS)],
    "ok": [["true", "false"][i // 3 % 2] for i in range(_ROWS)],
    "label": np.where(a + b > 0, "yes", "no"),
  }


def _text(columns, delimiter=","):
  lines = [delimiter.join(columns)]
  lines += [delimiter.join(map(str, row)) for row in zip(*columns.values())]
  return "\n".join(lines) + "\n"


@pytest.fixture
def write(tmp_path):
  def write(content, name="data.csv"):
    path = tmp_path / name
    if isinstance(content, dict):
      content = _text(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path

  return write


@pytest.mark.parametrize("delimiter", list(",;\t|"))
def test_columns_of_every_kind_become_features(write, delimiter):
  data = tabular_files.load(write(_text(_columns(), delimiter)), "label")
  assert data.task == "binary" and data.class_names == ("no", "yes")
  assert data.feature_names == (
    "a",
    "b",
    "color=(missing)",
    "color=blue",
    "color=red",
    *(f"day:{p}" for p in ("days", "sin_year", "cos_year", "sin_week", "cos_week")),
    "ok",
  )
  assert data.warnings == ()
  assert len(data.test.y) == 24 and len(data.valid.y) == 20


def test_a_delimiter_within_a_quoted_name_does_not_count(write):
  text = _text(_columns(), ";").replace("a;b", '"a, in m, or so, or, so,";b', 1)
  data = tabular_files.load(write(text), "label")
  assert data.feature_names[0] == "a, in m, or so, or, so,"


def test_gzip_tsv_and_capital_suffixes(write):
  text = _text(_columns())
  plain = tabular_files.load(write(text), "label")
  for content, name in (
    (gzip.compress(text.encode()), "data.csv.gz"),
    (_text(_columns(), "\t"), "data.tsv"),
    (text, "DATA.CSV"),
    ("\ufeff" + text, "bom.csv"),
  ):
    data = tabular_files.load(write(content, name), "label")
    assert data.feature_names == plain.feature_names


def test_parquet_equals_csv(write, tmp_path):
  path = write(_columns())
  table = tabular_files.read_table(path)
  pa.parquet.write_table(
    table.set_column(2, "color", table["color"].dictionary_encode()),
    tmp_path / "data.parquet",
  )
  from_csv = tabular_files.load(path, "label", seed=5)
  from_parquet = tabular_files.load(tmp_path / "data.parquet", "label", seed=5)
  np.testing.assert_array_equal(from_csv.train.x, from_parquet.train.x)
  np.testing.assert_array_equal(from_csv.test.y, from_parquet.test.y)


def test_new_rows_go_through_the_same_preprocessing(write):
  path = write(_columns())
  data = tabular_files.load(path, "label")
  raw = tabular_files.read_columns(path, data.preprocessing["features"])
  x = preprocessing.apply(data.preprocessing["features"], raw)
  every = np.concatenate([data.train.x, data.valid.x, data.test.x])
  np.testing.assert_array_equal(np.unique(x, axis=0), np.unique(every, axis=0))


def _days(style):
  """`_ROWS` different days from April 2023 on."""
  first = np.datetime64("2023-04-01").item()
  return [(first + datetime.timedelta(i)).strftime(style) for i in range(_ROWS)]


@pytest.mark.parametrize(
  "style", ["%m/%d/%Y", "%d/%m/%Y", "%d.%m.%Y", "%Y/%m/%d", "%d-%m-%Y"]
)
def test_common_dates_equal_iso_dates(write, style):
  iso = tabular_files.load(write(_with("day", _days("%Y-%m-%d"))), "label")
  data = tabular_files.load(write(_with("day", _days(style))), "label")
  assert data.warnings == () and data.feature_names == iso.feature_names
  np.testing.assert_array_equal(data.train.x, iso.train.x)
  assert json.loads(json.dumps(data.preprocessing)) == data.preprocessing
  gap = tabular_files.read_columns(
    write(_with("day", ["", *_days(style)[1:]])), data.preprocessing["features"]
  )
  expected = np.array(["NaT", *_days("%Y-%m-%d")[1:]], "datetime64[s]")
  np.testing.assert_array_equal(gap["day"], expected)


def test_dates_of_two_readings_are_month_first_with_a_warning(write):
  days = [f"0{i % 9 + 1}/0{i % 4 + 1}/2024" for i in range(_ROWS)]
  data = tabular_files.load(write(_with("day", days)), "label")
  assert len(data.warnings) == 1
  assert "month first or day first (05/01/2024), read as month" in data.warnings[0]
  assert "day:days" in data.feature_names


def test_new_rows_read_dates_in_the_order_of_training(write):
  trained = tabular_files.load(write(_with("day", _days("%d/%m/%Y"))), "label")
  fitted = [s for s in trained.preprocessing["features"] if s["name"] == "day"]
  new = write("day\n03/04/2024\n", "new.csv")
  as_trained = tabular_files.read_columns(new, fitted)["day"]
  assert as_trained == np.datetime64("2024-04-03")
  with pytest.raises(
    InputError, match="'day' must be a date with the day first; row 1"
  ):
    tabular_files.read_columns(write("day\n12/31/2024\n", "new.csv"), fitted)


def test_dates_as_text_in_parquet(write, tmp_path):
  days = pa.array(_days("%d.%m.%Y")).dictionary_encode()
  table = tabular_files.read_table(write(_columns())).set_column(3, "day", days)
  pa.parquet.write_table(table, tmp_path / "data.parquet")
  data = tabular_files.load(tmp_path / "data.parquet", "label")
  assert "day:days" in data.feature_names and data.warnings == ()


def test_words_and_numbers_like_dates_are_not_changed(write):
  columns = _columns() | {
    "version": [f"1.{i % 3}.2" for i in range(_ROWS)],
    "number": [f"{i % 12 + 1}.2024" for i in range(_ROWS)],
  }
  data = tabular_files.load(write(columns), "label")
  assert "version=1.0.2" in data.feature_names and "number" in data.feature_names


@pytest.mark.parametrize("style", ["%m/%d/%y", "%d %b %Y", "%b %d, %Y"])
def test_dates_that_are_not_read_say_which_are(write, style):
  columns = {k: list(map(str, v)) for k, v in _with("day", _days(style)).items()}
  data = tabular_files.load(write(_text(columns, ";")), "label")
  assert len(data.warnings) == 1
  assert "left out; dates are read if all are alike, as 2024-12-31" in data.warnings[0]


@pytest.mark.parametrize("null", ["", "NA", "NaN", "null", "?"])
def test_missing_numbers_are_imputed(write, null):
  columns = _columns()
  columns["a"] = [null if i % 5 == 0 else v for i, v in enumerate(columns["a"])]
  data = tabular_files.load(write(columns), "label")
  assert data.feature_names[:2] == ("a", "a_missing")
  assert np.isfinite(data.train.x).all()


@pytest.mark.parametrize(
  "name, values, message",
  [
    ("n", np.arange(_ROWS), "column 'n' looks like an identifier"),
    ("", np.arange(_ROWS)[::-1], "column 'unnamed' looks like an identifier"),
    ("e", [""] * _ROWS, "column 'e' is empty; left out"),
    ("c", [4] * _ROWS, "column 'c' is 4 in every row; left out"),
    ("t", [f"word{i}" for i in range(_ROWS)], "column 't' is text with 120 different"),
    ("i", ["inf", *range(_ROWS - 1)], "column 'i' has 1 infinite values"),
    ("h", [f"0{i % 9}:30:00" for i in range(_ROWS)], "column 'h' holds time32"),
  ],
)
def test_columns_that_deserve_a_warning(write, name, values, message):
  data = tabular_files.load(write({name: values, **_columns()}), "label")
  assert any(w.startswith(message) for w in data.warnings), data.warnings
  assert all("\n" not in w for w in data.warnings)
  left_out = "left out" in message or name in ("t", "h")
  shown = name or "unnamed"
  assert any(f.split("=")[0] == shown for f in data.feature_names) == (not left_out)


@pytest.mark.parametrize(
  "leak",
  [
    lambda label: np.where(label == "yes", 7, 3),
    lambda label: np.where(label == "yes", "ja", "nein"),
    # A number that a threshold sorts, though every value is another one.
    lambda label: np.where(label == "yes", 5, -5) + _KEY.random(_ROWS),
  ],
)
def test_a_column_that_gives_the_label_away_is_named(write, leak):
  columns = _columns()
  data = tabular_files.load(write({"leak": leak(columns["label"]), **columns}), "label")
  assert len(data.warnings) == 1
  assert "'leak'" in data.warnings[0] and "--config.data.drop=leak" in data.warnings[0]
  dropped = tabular_files.load(write(columns), "label", drop=())
  assert dropped.warnings == ()


@pytest.mark.parametrize("drop", ["", "unnamed"])
def test_the_unnamed_column_can_be_dropped(write, drop):
  path = write({"": np.arange(_ROWS), **_columns()})
  data = tabular_files.load(path, "label", drop=(drop,))
  assert data.warnings == () and "unnamed" not in data.feature_names


def test_a_line_in_the_target_is_named_for_regression(write):
  columns = _columns() | {"y": 3 * _KEY.random(_ROWS)}
  data = tabular_files.load(write({"twice": columns["y"] * 2 - 1, **columns}), "y")
  assert data.task == "regression"
  assert ["'twice'" in w for w in data.warnings] == [True]


def test_the_surveys_wine_file_leaks_and_both_columns_are_named(shared_data):
  path = shared_data / "wine_quality" / "wine_3class.csv"
  data = tabular_files.load(path, "quality_label")
  assert len(data.warnings) == 2
  assert "'unnamed'" in data.warnings[0] and "'quality'" in data.warnings[1]
  assert data.num_features == 13
  for unnamed in ("", "unnamed"):
    clean = tabular_files.load(path, "quality_label", drop=(unnamed, "quality"))
    assert clean.warnings == () and clean.num_features == 11


def _with(name, values):
  return _columns() | {name: values}


@pytest.mark.parametrize(
  "content, name, target, options, message",
  [
    ("", "data.csv", "y", {}, "is empty"),
    ("\n", "data.csv", "y", {}, "cannot be read: its first line"),
    ("a,label\n", "data.csv", "label", {}, "0 rows of data; at least 10"),
    ("a,label\n" + "1,x\n" * 9, "data.csv", "label", {}, "9 rows of data"),
    ("a,b\n1\n", "data.csv", "b", {}, "cannot be read.*Expected 2 columns"),
    ("a,b\n1,caf\xe9\n".encode("latin-1"), "d.csv", "a", {}, "'b' is not UTF-8 text"),
    ("a\xe9,b\n1,1\n".encode("latin-1"), "d.csv", "b", {}, "cannot be read.*utf-8"),
    ("a,a\n1,1\n", "data.csv", "a", {}, "more than one column 'a'"),
    ("x", "data.xlsx", "y", {}, "not one of .csv, .tsv, .txt, .csv.gz, .parquet, .npz"),
    (b"not gzip", "data.csv.gz", "y", {}, "cannot be read"),
    (_CUT_GZIP, "d.csv.gz", "a", {}, "cannot be read"),
    (b"PAR1 broken", "data.parquet", "y", {}, "cannot be read"),
    (_columns(), "data.csv", None, {}, "--config.data.target=NAME; it has a, b, color"),
    (_columns(), "data.csv", "lable", {}, "no column 'lable' .did you mean 'label'"),
    (_columns(), "data.csv", "label", dict(drop=["x"]), "no column 'x'; it has a, b"),
    (_columns(), "data.csv", "label", dict(drop=list(_columns())[:5]), "to learn from"),
    (_with("label", ["", *"ab" * 59, "a"]), "d.csv", "label", {}, "1 missing.*row 1"),
    (_with("label", ["", *range(119)]), "d.csv", "label", {}, "1 NaN.*row 1"),
    (_with("label", ["inf", *range(119)]), "d.csv", "label", {}, "1 NaN or inf"),
    (_with("label", ["x"] * _ROWS), "d.csv", "label", {}, "d.csv: .*one class only"),
    (_with("label", [" ", *"ab" * 59, "a"]), "d.csv", "label", {}, "1 missing.*row 1"),
    (_with("label", [" ", *range(119)]), "d.csv", "label", {}, "1 missing.*row 1"),
    (_with("label", ["r", *"ab" * 59, "a"]), "d.csv", "label", {}, "'r' has 1 rows"),
  ],
)
def test_mistakes_are_one_line(write, content, name, target, options, message):
  with pytest.raises(InputError, match=message) as error:
    tabular_files.load(write(content, name), target, **options)
  assert "\n" not in str(error.value)
  assert str(error.value).count(name) == 1


def test_paths_that_are_no_file(tmp_path):
  for path, message in (
    (tmp_path / "nope.csv", "there is no file .*nope.csv"),
    (tmp_path, "is a folder"),
    (None, "--config.data.path"),
  ):
    with pytest.raises(InputError, match=message):
      tabular_files.load(path, "y")


def test_at_most_twenty_columns_are_listed(write):
  path = write(",".join(f"c{i}" for i in range(23)) + "\n")
  with pytest.raises(InputError, match="c18, c19 and 3 more$"):
    tabular_files.load(path, "zzz")


@pytest.fixture
def save(tmp_path):
  def save(**arrays):
    np.savez(tmp_path / "data.npz", **arrays)
    return tmp_path / "data.npz"

  return save


_X = _KEY.normal(size=(40, 3))
_Y = np.arange(40) % 2


def test_npz_with_its_own_test_rows(save):
  plain = tabular_files.load(save(x=_X, y=_Y), None)
  assert len(plain.test.y) == 8
  given = tabular_files.load(save(x=_X, k=_Y, x_test=_X[:5], k_test=_Y[:5]), "k")
  assert len(given.test.y) == 5 and len(given.train.y) == 32
  mask = np.arange(40) < 6
  masked = tabular_files.load(save(x=_X, y=_Y, is_test=mask), "y")
  assert len(masked.test.y) == 6 and len(masked.train.y) + len(masked.valid.y) == 34
  images = tabular_files.load(save(x=np.full((40, 2, 2), 9, np.uint8), y=_Y), "y")
  assert images.train.x.shape == (25, 4) and images.train.x.max() == 1


@pytest.mark.parametrize(
  "arrays, target, message",
  [
    (dict(x=_X), "y", "no array 'y'; it has x"),
    (dict(x=_X, label=_Y), "labels", "did you mean 'label'"),
    (dict(x=_X.astype(str), y=_Y), "y", "data.npz: x must be numbers"),
    (dict(x=_X, y=_Y[:9]), "y", "data.npz: x has 40 rows and y has 9"),
    (dict(x=_X, y=_Y, is_test=np.ones(3)), "y", "one row each"),
    (dict(x=1.0, y=1, is_test=True), "y", "one row each"),
    (dict(x=_X, y=_Y, x_test=_X), "y", "go together"),
    (dict(x=_X, y=_Y > 2), "y", "one class only"),
    (dict(x=_X, y=1), "y", "y is a single value"),
    (dict(x=1.0, y=_Y), "y", "x is a single value"),
    (dict(x=_X, y=_Y, x_test=1.0, y_test=_Y), "y", "x_test is a single value"),
    (dict(x=_X, y=_Y, x_test=_X, y_test=1), "y", "y_test is a single value"),
    (dict(x=_X[:3], y=_Y[:3]), "y", "data.npz has 3 rows"),
  ],
)
def test_npz_mistakes(save, arrays, target, message):
  with pytest.raises(InputError, match=message) as error:
    tabular_files.load(save(**arrays), target)
  assert str(error.value).count("data.npz") == 1


def test_npz_columns_that_deserve_a_warning_are_named(save):
  x = np.concatenate([_X, np.arange(40)[:, None], _Y[:, None] * 4 - 1], axis=1)
  given = dict(x=x[:30], y=_Y[:30], x_test=x[30:], y_test=_Y[30:])
  for arrays in (dict(x=x, y=_Y), given, dict(x=x, y=_Y, is_test=np.arange(40) > 29)):
    data = tabular_files.load(save(**arrays), "y")
    assert [w.split(";")[0] for w in data.warnings] == [
      "column 'x[3]' looks like an identifier (another value in every row)",
      "column 'x[4]' determines the target by itself and may be the label in another "
      "form",
    ]
    assert not any("--config.data.drop" in w for w in data.warnings)
  assert data.feature_names[3:] == ("x[3]", "x[4]")
  assert tabular_files.load(save(x=_X, y=_Y), "y").warnings == ()
  assert tabular_files.load(save(x=x[:, None], y=_Y), "y").warnings == ()


def test_options_are_not_blamed_on_the_file(write, save):
  for path in (write(_columns()), save(x=_X, y=_Y)):
    for options in (dict(task="ranking"), dict(valid_fraction=2.0)):
      with pytest.raises(InputError, match="^(unknown task|valid_fraction must)"):
        tabular_files.load(path, None, **options)


def test_an_npz_is_never_unpickled(save, write):
  path = save(x=_X, y=np.array([{"a": 1}] * 40, object))
  with pytest.raises(InputError, match="holds pickled objects"):
    tabular_files.load(path, "y")
  path = write(pickle.dumps({"x": 1}), "other.npz")
  with pytest.raises(InputError, match="not an npz archive"):
    tabular_files.load(path, "y")
