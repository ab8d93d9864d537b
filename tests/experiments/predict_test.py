import csv
import json
import runpy
import sys

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
from saved_model import raw_rows, save_model, write_csv

import run as command_line
from nasjax.data import preprocessing, tabular_files

CLASSES = ["cat", "cow", "dog"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  folder = tmp_path_factory.mktemp("saved")
  save_model(folder, "multiclass")
  return folder / "best"


@pytest.fixture
def predict(saved, tmp_path, monkeypatch, capsys):
  """Runs the experiment in a folder that holds `new.csv`: (status, out, err)."""
  monkeypatch.chdir(tmp_path)
  write_csv(tmp_path / "new.csv", raw_rows(40, seed=2))

  def run(*flags, model=saved, path="new.csv"):
    flags = [f"--config.model={model}", f"--config.data.path={path}", *flags]
    status = command_line.main(["--experiment=predict", *flags])
    return status, *capsys.readouterr()

  return run


def table_of(path):
  with open(path, newline="") as file:
    header, *rows = csv.reader(file)
  return header, rows


def test_it_writes_one_row_a_row_and_no_run_directory(predict, saved, tmp_path):
  status, out, err = predict()
  assert (status, err) == (0, "") and "predictions for 40 rows" in out
  assert {p.name for p in tmp_path.iterdir()} == {"new.csv", "predictions.csv"}
  header, rows = table_of("predictions.csv")
  assert header == ["prediction", *(f"probability_{name}" for name in CLASSES)]
  ours = np.array([row[1:] for row in rows], float)
  assert [row[0] for row in rows] == [CLASSES[i] for i in ours.argmax(1)]
  # The script that leaves with the model gives the same file, but for the last digits.
  sys.argv = ["predict.py", "new.csv", "alone.csv"]
  runpy.run_path(str(saved / "predict.py"), run_name="__main__")
  theirs = np.array([row[1:] for row in table_of("alone.csv")[1]], float)
  np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_working_folder_that_takes_no_run_is_no_matter(predict, tmp_path):
  (tmp_path / "runs").write_text("a file, where other experiments have folders")
  assert predict()[0] == 0


def test_parquet_equals_csv(predict, tmp_path):
  nulls = pyarrow.csv.ConvertOptions(null_values=[""], strings_can_be_null=True)
  table = pyarrow.csv.read_csv(tmp_path / "new.csv", convert_options=nulls)
  colors = table["color"].dictionary_encode()
  table = table.set_column(table.column_names.index("color"), "color", colors)
  pyarrow.parquet.write_table(table, tmp_path / "new.parquet")
  assert predict("--config.output=a.csv")[0] == 0
  assert predict("--config.output=b.csv", path="new.parquet")[0] == 0
  assert (tmp_path / "a.csv").read_text() == (tmp_path / "b.csv").read_text()


def test_an_output_that_is_there_is_replaced_only_on_request(predict, tmp_path):
  (tmp_path / "predictions.csv").write_text("kept")
  status, _, err = predict()
  assert status == 2 and err.count("\n") == 1 and "--overwrite" in err
  assert (tmp_path / "predictions.csv").read_text() == "kept"
  assert predict("--overwrite")[0] == 0
  assert table_of("predictions.csv")[1]


def test_a_file_without_rows_gives_a_warning_and_a_header(
  predict, saved, tmp_path, capsys
):
  header = (tmp_path / "new.csv").read_text().splitlines()[0]
  (tmp_path / "new.csv").write_text(header + "\n")
  status, _, err = predict()
  assert status == 0 and err == "warning: new.csv has no rows\n"
  sys.argv = ["predict.py", "new.csv", "alone.csv"]
  runpy.run_path(str(saved / "predict.py"), run_name="__main__")
  assert capsys.readouterr().err == "warning: new.csv has no rows\n"
  assert (tmp_path / "predictions.csv").read_text().count("\n") == 1
  assert (tmp_path / "alone.csv").read_text() == (
    tmp_path / "predictions.csv"
  ).read_text()


def test_unseen_categories(predict, tmp_path):
  write_csv(tmp_path / "new.csv", raw_rows(40, seed=2, unseen=True))
  status, out, err = predict()
  assert status == 0 and "warning: column 'color': training has" in err
  (tmp_path / "predictions.csv").unlink()
  status, out, err = predict("--config.unseen=refuse")
  assert status == 2 and err.count("\n") == 1 and "'never seen'" in err
  assert {p.name for p in tmp_path.iterdir()} == {"new.csv"}


def changed(name, value):
  """The rows with another third value in a column, or without it."""
  columns = raw_rows(40, seed=2)
  if value is None:
    return {key: c for key, c in columns.items() if key != name}
  columns[name] = np.array([*columns[name][:2], value, *columns[name][3:]])
  return columns


@pytest.mark.parametrize(
  "columns, message",
  [
    (changed("color", None), "new.csv lacks column color; it has size, offset"),
    (changed("size", "big"), "column 'size' must be a number; row 3 has 'big'"),
    (changed("ok", "maybe"), "column 'ok' must be true or false; row 3 has 'maybe'"),
    (changed("day", "12/31/2024"), "'day' must be a date with the day first; row 3"),
  ],
)
def test_columns_that_do_not_fit_are_refused_by_name(
  predict, tmp_path, columns, message
):
  write_csv(tmp_path / "new.csv", columns)
  status, out, err = predict()
  assert status == 2 and err.count("\n") == 1 and message in err
  assert {p.name for p in tmp_path.iterdir()} == {"new.csv"}


def test_a_typed_column_of_another_kind_is_refused_by_name(predict, tmp_path):
  columns = raw_rows(40, seed=2) | {"color": np.arange(40.0)}
  table = pyarrow.table({name: list(values) for name, values in columns.items()})
  pyarrow.parquet.write_table(table, tmp_path / "new.parquet")
  status, _, err = predict(path="new.parquet")
  assert status == 2 and "column 'size' holds category values" in err
  table = table.select(["offset", "color", "ok", "day"])
  pyarrow.parquet.write_table(table, tmp_path / "new.parquet")
  status, _, err = predict(path="new.parquet")
  assert status == 2 and "has no column 'size'" in err


def test_what_is_missing_is_said_in_one_line(predict, saved, tmp_path):
  for flags, message in (
    (dict(model=""), "--config.model=runs/NAME/best"),
    (dict(model="nowhere"), "no model in nowhere: nowhere/genotype.json is missing"),
    (dict(path=""), "--config.data.path"),
    (dict(path="old.csv"), "there is no file old.csv"),
  ):
    status, _, err = predict(**flags)
    assert status == 2 and err.count("\n") == 1 and message in err
  cells = tmp_path / "cells"
  cells.mkdir()
  for path in saved.iterdir():
    (cells / path.name).write_bytes(path.read_bytes())
  description = json.loads((cells / "genotype.json").read_text())
  description["space"] = {"kind": "conv_cell"}
  (cells / "genotype.json").write_text(json.dumps(description))
  status, _, err = predict(model=cells)
  assert status == 2 and "is not a chain of dense layers" in err


def test_the_rows_of_training_get_the_features_of_training(saved):
  """What predict reads is what `load` had read, for every row of the same file."""
  path = saved.parent / "train.csv"
  data = tabular_files.load(path, "target")
  fitted = data.preprocessing["features"]
  x = preprocessing.apply(fitted, tabular_files.read_columns(path, fitted))
  every = np.concatenate([data.train.x, data.valid.x, data.test.x])
  np.testing.assert_array_equal(np.unique(x, axis=0), np.unique(every, axis=0))
