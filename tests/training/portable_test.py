import importlib.util
import json
import pathlib

import jax
import jax.export
import numpy as np
import onnxruntime
import pytest
from alone import alone, table_of
from saved_model import raw_rows, save_model, write_csv

from nasjax.data import standalone, tabular_files
from nasjax.results import export
from nasjax.training import portable
from nasjax.training.retrain import test_outputs as outputs_of

TASKS = ("multiclass", "binary", "regression")


@pytest.mark.parametrize("task", TASKS)
def test_a_thousand_rows_are_predicted_alike_everywhere(tmp_path, task):
  data, layers, weights = save_model(tmp_path, task)
  rows = write_csv(tmp_path / "new.csv", raw_rows(1000, seed=1, unseen=True))
  fitted = data.preprocessing["features"]
  x = np.asarray(standalone.features(fitted, tabular_files.read_columns(rows, fitted)))
  target = data.preprocessing["target"]
  in_process = standalone.answers(target, np.asarray(outputs_of(weights, layers, x)))
  spread = np.ptp(in_process, axis=0).min()
  assert len(x) == 1000 and spread > (1.0 if task == "regression" else 0.01)

  done = alone(tmp_path, "new.csv", "predictions.csv")
  assert done.returncode == 0, done.stderr
  assert (
    "'color': training has not seen" in done.stderr and "'never seen'" in done.stderr
  )
  header, written = table_of(tmp_path / "predictions.csv")
  names = data.class_names
  assert header == ["prediction", *(f"probability_{name}" for name in names)]
  if names:
    by_numpy = np.array([row[1:] for row in written], float)
    winners = [names[i] for i in by_numpy.argmax(1)]
    assert [row[0] for row in written] == winners and len(set(winners)) > 1
    np.testing.assert_allclose(by_numpy.sum(1), 1, atol=1e-6)
  else:
    by_numpy = np.array(written, float)[:, 0]

  best = tmp_path / "best"
  session = onnxruntime.InferenceSession(best / "model.onnx")
  (by_onnx,) = session.run(None, {"features": x})
  exported = jax.export.deserialize(bytearray((best / "model.jaxexport").read_bytes()))
  by_export = np.asarray(exported.call(x))
  _, program = portable.load(best)
  for found in (by_numpy, by_onnx, by_export, np.asarray(program(x))):
    assert found.shape == in_process.shape
    # In the target's unit: its mean is 1000.
    np.testing.assert_allclose(found, in_process, rtol=1e-5, atol=1e-5)
  # Any number of rows, for every platform.
  np.testing.assert_allclose(exported.call(x[:3]), by_export[:3], atol=1e-3)
  assert exported.platforms == ("cpu", "cuda", "tpu")


def test_nothing_in_it_is_a_pickle_and_the_script_is_the_module(tmp_path):
  save_model(tmp_path, "binary")
  best = tmp_path / "best"
  names = sorted(path.name for path in best.iterdir())
  assert names == sorted([*export.FILES, *export.PORTABLE_FILES])
  source = pathlib.Path(standalone.__file__).read_text()
  assert (best / "predict.py").read_text() == source and "pickle=True" not in source
  for path in best.iterdir():
    assert b"\x80\x04" != path.read_bytes()[:2] != b"\x80\x05"
  with np.load(best / "weights.npz", allow_pickle=False) as archive:
    assert all(archive[name].dtype == np.float32 for name in archive.files)


def test_onnx_names_features_and_classes(tmp_path):
  data, _, _ = save_model(tmp_path, "multiclass")
  session = onnxruntime.InferenceSession(tmp_path / "best" / "model.onnx")
  told = session.get_modelmeta().custom_metadata_map
  assert json.loads(told["features"]) == list(data.feature_names)
  assert json.loads(told["classes"]) == ["cat", "cow", "dog"]
  assert [each.name for each in session.get_inputs()] == ["features"]
  assert session.get_outputs()[0].shape == ["rows", 3]


def test_without_onnx_the_rest_is_written_and_a_line_says_what_brings_it(
  tmp_path, monkeypatch
):
  save_model(tmp_path, "binary")
  find_spec = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util,
    "find_spec",
    lambda name: None if name == "onnx" else find_spec(name),
  )
  lines = []
  save_model(tmp_path, "binary", log=lines.append)
  assert len(lines) == 1 and '".[onnx]"' in lines[0]
  names = {path.name for path in (tmp_path / "best").iterdir()}
  # The one that was there is of another network.
  assert names == {*export.FILES, *export.PORTABLE_FILES} - {"model.onnx"}
