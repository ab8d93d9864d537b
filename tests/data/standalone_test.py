import gzip
import json
import re
import runpy
import shutil
import sys

import numpy as np
import pytest

from nasjax.data import preprocessing, standalone

DAYS = np.array(["2024-01-01", "2024-05-02", "NaT"], "datetime64[s]")
RAW = {
  "size": np.array([1.0, 2.0, np.nan]),
  "zip": np.array(["0123", "4567", None], object),
  "ok": np.array([1.0, 0.0, np.nan], np.float32),
  "day": DAYS,
}
KINDS = {"size": "numeric", "zip": "category", "ok": "boolean", "day": "date"}
GOOD = "size,zip,ok,day\n1,0123,true,2024-01-01\n2,4567,FALSE,2024-05-02\n,NA,?,\n"


@pytest.fixture
def fitted():
  return json.loads(json.dumps(preprocessing.fit(RAW, KINDS)))


@pytest.fixture
def best(tmp_path, fitted):
  """A regression model with one hidden layer, with the script beside it."""
  folder = tmp_path / "best"
  folder.mkdir()
  width = len(standalone.feature_names(fitted))
  rng = np.random.default_rng(0)
  np.savez(
    folder / "weights.npz",
    **{
      "layer_0/kernel": rng.normal(size=(width, 8)).astype(np.float32),
      "layer_0/bias": np.ones(8, np.float32),
      "layer_1/kernel": rng.normal(size=(8, 1)).astype(np.float32),
      "layer_1/bias": np.zeros(1, np.float32),
    },
  )
  description = {"arch": "8 relu - dropout 0.2", "space": {"kind": "mlp_chain"}}
  target = {"task": "regression", "classes": [], "mean": 5.0, "scale": 2.0}
  (folder / "genotype.json").write_text(json.dumps(description))
  (folder / "preprocessing.json").write_text(
    json.dumps({"features": fitted, "target": target})
  )
  shutil.copy(standalone.__file__, folder / "predict.py")
  (tmp_path / "new.csv").write_text(GOOD)
  return folder


@pytest.fixture
def command(best, tmp_path, monkeypatch, capsys):
  """Runs the script that stands in the model's folder: (status, out, err)."""
  monkeypatch.chdir(tmp_path)

  def run(*arguments):
    monkeypatch.setattr(sys, "argv", ["predict.py", *arguments])
    status = 0
    try:
      runpy.run_path(str(best / "predict.py"), run_name="__main__")
    except SystemExit as end:
      status = end.code
    return status, *capsys.readouterr()

  return run


EXTRA = "more,size,zip,ok,day\nx,1,0123,1,2024-01-01\ny,2,4567,0,2024-05-02\n,,NA,?,\n"


@pytest.mark.parametrize(
  "name, content",
  [
    ("a.csv", GOOD),
    ("a.tsv", GOOD.replace(",", "\t")),
    ("a.txt", GOOD.replace(",", ";")),
    ("A.CSV", "\ufeff" + GOOD.replace("\n", "\r\n")),
    ("a.csv", GOOD.replace("size,", '" size",').replace("\n", "\n\n")),
    ("a.csv", EXTRA),
  ],
)
def test_texts_are_read_as_what_they_were_in_training(tmp_path, fitted, name, content):
  (tmp_path / name).write_text(content, newline="")
  read = standalone.read(tmp_path / name, fitted)
  assert list(read) == list(RAW)
  for column, values in read.items():
    np.testing.assert_array_equal(values, RAW[column])


def test_gzip_and_digits_alone_stay_a_category(tmp_path, fitted):
  path = tmp_path / "a.csv.gz"
  path.write_bytes(gzip.compress(GOOD.encode()))
  assert standalone.read(path, fitted)["zip"].tolist() == ["0123", "4567", None]


def test_times_and_zones(fitted):
  spec = fitted[-1]
  texts = ["2024-01-01 18:30", "2024-01-01T18:30:59.5", "2024-01-01T00:30:00+01:00"]
  expected = ["2024-01-01T18:30", "2024-01-01T18:30:59", "2023-12-31T23:30"]
  np.testing.assert_array_equal(
    standalone.parse(texts, "day", spec), np.array(expected, "datetime64[s]")
  )


def test_a_matrix_is_read_from_its_columns_or_from_an_array(tmp_path):
  x = np.arange(6.0).reshape(2, 3)
  fitted = preprocessing.fit({"x": x}, {"x": "numeric"})
  (tmp_path / "a.csv").write_text("x[2],x[0],x[1]\n2,0,1\n5,3,4\n")
  np.testing.assert_array_equal(standalone.read(tmp_path / "a.csv", fitted)["x"], x)
  np.savez(tmp_path / "a.npz", x=x, y=np.zeros(2))
  np.testing.assert_array_equal(standalone.read(tmp_path / "a.npz", fitted)["x"], x)
  fitted[0]["names"] = ["a", "b", "c"]
  (tmp_path / "b.csv").write_text("b,c,a\n1,2,0\n4,5,3\n")
  np.testing.assert_array_equal(standalone.read(tmp_path / "b.csv", fitted)["x"], x)


def test_infinite_numbers_are_missing(tmp_path, fitted):
  (tmp_path / "a.csv").write_text(GOOD.replace("\n2,", "\ninf,"))
  x = standalone.features(fitted, standalone.read(tmp_path / "a.csv", fitted))
  assert np.isfinite(x).all()
  np.testing.assert_array_equal(x[1, :2], x[2, :2])


def test_no_rows_have_no_answers(best, tmp_path):
  model = standalone.load(best)
  (tmp_path / "none.csv").write_text("size,zip,ok,day\n")
  columns = standalone.read(tmp_path / "none.csv", model.features)
  assert standalone.predict(model, columns).shape == (0,)


@pytest.mark.parametrize(
  "content, message",
  [
    ("size,zip,ok\n1,2,1\n", "new.csv lacks column day; it has size, zip, ok"),
    ("size\n1\n", "lacks columns zip, ok, day"),
    (GOOD.replace("\n2,", "\ntwo,"), "'size' must be a number; row 2 has 'two'"),
    (GOOD.replace("\n2,", "\n1_0,"), "'size' must be a number; row 2 has '1_0'"),
    (GOOD.replace("FALSE", "maybe"), "'ok' must be true or false; row 2 has 'maybe'"),
    (GOOD.replace("2024-05-02", "5/2/2024"), "'day' must be an ISO date.*row 2 has"),
    (GOOD.replace("4567,", "4567,x,"), "5 values in row 2, its header has 4"),
    (GOOD.replace("zip", "size"), "lacks column zip"),
    ("size," + GOOD.replace("\n", "\n1,", 2).replace("\n,", "\n1,,"), "more than one"),
    ("", "header, is empty"),
    (b"\xff\xfe", "cannot be read"),
  ],
)
def test_rows_that_cannot_be_read_are_refused_by_name(
  command, tmp_path, content, message
):
  data = content if isinstance(content, bytes) else content.encode()
  (tmp_path / "new.csv").write_bytes(data)
  status, out, err = command("new.csv")
  assert (
    status == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1
  )
  assert re.search(message, err), err


def test_the_output_is_written_whole_and_replaced_only_on_request(command, tmp_path):
  status, printed, err = command("new.csv")
  assert (status, err) == (0, "") and printed.startswith("prediction\n")
  assert len(printed.splitlines()) == 4
  assert command("new.csv", "out.csv") == (0, "", "")
  assert (tmp_path / "out.csv").read_text() == printed
  (tmp_path / "out.csv").write_text("kept")
  status, _, err = command("new.csv", "out.csv")
  assert status == 2 and "--overwrite" in err
  assert (tmp_path / "out.csv").read_text() == "kept"
  assert command("new.csv", "out.csv", "--overwrite")[0] == 0
  assert (tmp_path / "out.csv").read_text() == printed
  assert {p.name for p in tmp_path.iterdir()} == {"best", "new.csv", "out.csv"}
  for output, message in (
    ("new.csv", "file of the rows"),
    ("best", "is a folder"),
    ("nowhere/out.csv", "no writable folder"),
  ):
    status, _, err = command("new.csv", output, "--overwrite")
    assert status == 2 and message in err
  assert (tmp_path / "new.csv").read_text() == GOOD


def test_unseen_categories_are_zeros_with_a_warning_or_refused(command, tmp_path):
  (tmp_path / "new.csv").write_text(GOOD.replace("4567", "9999"))
  status, out, err = command("new.csv")
  assert status == 0 and len(out.splitlines()) == 4
  assert "'zip': training has not seen 1 of" in err and "row 2: '9999'" in err
  status, out, err = command("new.csv", "--unseen=refuse")
  assert status == 2 and out == "" and "row 2: '9999'" in err


@pytest.mark.parametrize("name", ["genotype.json", "weights.npz", "preprocessing.json"])
@pytest.mark.parametrize("damage", ["missing", "nonsense"])
def test_a_damaged_model_is_one_line(command, best, name, damage):
  (best / name).unlink()
  if damage == "nonsense":
    (best / name).write_bytes(b"nonsense\n{")
  status, out, err = command("new.csv")
  assert status == 2 and out == "" and err.count("\n") == 1 and "Traceback" not in err


def test_files_that_do_not_belong_together(best):
  description = {"arch": "8 relu - 8 tanh", "space": {"kind": "mlp_chain"}}
  (best / "genotype.json").write_text(json.dumps(description))
  with pytest.raises(ValueError, match="layer 2 of weights.npz does not fit"):
    standalone.load(best)
  (best / "genotype.json").write_text(
    json.dumps({"arch": "dropout 0.2", "space": {"kind": "mlp_chain"}})
  )
  with pytest.raises(ValueError, match="layer 1 of weights.npz is not in genotype"):
    standalone.load(best)
  (best / "genotype.json").write_text(json.dumps({"space": {"kind": "conv_cell"}}))
  with pytest.raises(ValueError, match="not a chain of dense layers"):
    standalone.load(best)
