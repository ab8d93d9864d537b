"""A derived network of cells in `best/`: NumPy, ONNX, StableHLO and nasjax alike."""

import json
import runpy

import jax
import jax.export
import numpy as np
import onnxruntime
import pytest
from alone import alone, table_of

from nasjax.data import standalone_images
from nasjax.data.base import Split
from nasjax.data.images import Images
from nasjax.networks import cell_cnn
from nasjax.results import export
from nasjax.spaces.conv_cell import PRIMITIVES, ConvCell
from nasjax.training import portable_images

pytestmark = pytest.mark.usefixtures("quick_compile")
CLASSES = ("cat", "dog", "cow, brown")
# Every operation but none, both ways of halving, and a cell that reads its own nodes.
ARCH = (
  "Genotype(normal=[('sep_conv_3x3', 0), ('dil_conv_5x5', 1), ('skip_connect', 0), "
  "('avg_pool_3x3', 2), ('dil_conv_3x3', 3), ('max_pool_3x3', 1)], "
  "normal_concat=range(2, 5), reduce=[('max_pool_3x3', 0), ('skip_connect', 1), "
  "('sep_conv_5x5', 1), ('avg_pool_3x3', 0), ('dil_conv_3x3', 0), "
  "('skip_connect', 2)], reduce_concat=range(2, 5))"
)


def pixels(count, shape, seed=1):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (count, *shape)).astype(np.float32)


@pytest.fixture(scope="module", params=[(9, 8, 3), (7, 10, 1)], ids=str)
def saved(request, tmp_path_factory):
  """A network that nobody trained, in `best/`, and its own answers to ten images."""
  shape, rng = request.param, np.random.default_rng(0)
  folder = tmp_path_factory.mktemp("images")
  mean, std = (
    rng.uniform(*ends, shape[2]).astype(np.float32) for ends in ((90, 150), (50, 70))
  )
  nothing = Split(np.zeros((1, *shape), np.float32), np.zeros(1, np.int32))
  images = Images("test", nothing, nothing, nothing, CLASSES, mean, std)
  space = ConvCell(3)
  genotype = space.parse(ARCH)
  cells = space.decode(genotype)
  plan = cell_cnn.make_plan(shape, len(CLASSES), channels=4, layers=4, nodes=3)
  weights = cell_cnn.derived_init(np.uint32(0), plan, cells)
  x = (pixels(10, shape) - mean) / std

  @jax.jit
  def outputs(weights, statistics=None):
    return cell_cnn.derived(weights, plan, cells, x, statistics)

  # As after training: scales and shifts that do something, moments of other batches.
  weights = jax.tree_util.tree_map_with_path(
    lambda path, part: (
      part + 0.3 * rng.normal(size=part.shape).astype(np.float32)
      if "'norm'" in str(path)
      else part
    ),
    weights,
  )
  statistics = [
    [(mean + 0.1, 1.3 * variance) for mean, variance in block]
    for block in jax.device_get(outputs(weights).statistics)
  ]
  # Logits of about 1 either way, so that every class is likely for some image.
  logits, head = np.asarray(outputs(weights, statistics).logits), weights["classifier"]
  head["kernel"] = head["kernel"] / logits.std(0)
  head["bias"] = (head["bias"] - logits.mean(0)) / logits.std(0)
  portable_images.save(
    folder / "best",
    space=space,
    genotype=genotype,
    plan=plan,
    weights={"network": weights},
    statistics=statistics,
    images=images,
    metrics={"test_accuracy": 0.5},
  )
  return folder, shape, jax.nn.softmax(np.asarray(outputs(weights, statistics).logits))


def test_all_four_agree(saved):
  folder, shape, wanted = saved
  wanted = np.asarray(wanted)
  assert np.ptp(wanted, axis=0).min() > 0.1 and len(set(wanted.argmax(1))) > 1
  x, best = pixels(10, shape), folder / "best"
  np.savez(folder / "new.npz", x=x[..., 0] if shape[2] == 1 else x)
  done = alone(folder, "new.npz", "predictions.csv", "--overwrite")
  assert done.returncode == 0, done.stderr
  header, rows = table_of(folder / "predictions.csv")
  assert header == ["prediction", *(f"probability_{name}" for name in CLASSES)]
  assert [row[0] for row in rows] == [CLASSES[i] for i in wanted.argmax(1)]
  by_numpy = np.array([row[1:] for row in rows], float)
  session = onnxruntime.InferenceSession(best / "model.onnx")
  (by_onnx,) = session.run(None, {"images": x})
  exported = jax.export.deserialize(bytearray((best / "model.jaxexport").read_bytes()))
  by_export = np.asarray(exported.call(x))
  for found in (by_numpy, by_onnx, by_export):
    np.testing.assert_allclose(found, wanted, atol=1e-5)
  # Any number of images, for every platform, nothing rounded to bfloat16.
  assert exported.platforms == ("cpu", "cuda", "tpu")
  np.testing.assert_allclose(exported.call(x[:3]), wanted[:3], atol=1e-5)
  (few,) = session.run(None, {"images": x[:3]})
  np.testing.assert_allclose(few, wanted[:3], atol=1e-5)
  program = exported.mlir_module()
  assert "HIGHEST" in program and "precision = [DEFAULT" not in program
  told = session.get_modelmeta().custom_metadata_map
  assert json.loads(told["classes"]) == list(CLASSES)


def test_every_operation_is_in_it():
  assert all(f"'{op}'" in ARCH for op in PRIMITIVES if op != "none")


def test_what_is_in_the_folder(saved):
  best = saved[0] / "best"
  names = {path.name for path in best.iterdir()}
  assert names == {*export.FILES, *export.PORTABLE_FILES}
  source = (best / "predict.py").read_text()
  assert runpy.run_path(str(best / "predict.py"))["Model"]._fields
  with open(standalone_images.__file__) as file:
    assert source == file.read()
  for path in best.iterdir():
    assert b"\x80\x04" != path.read_bytes()[:2] != b"\x80\x05"


def test_what_does_not_fit_is_one_line(saved):
  folder, shape, _ = saved
  whole = pixels(2, shape)
  broken = whole.copy()
  broken[1, 0, 0, 0] = np.nan
  for name, arrays, message in (
    ("none", None, "there is no file none.npz"),
    ("other", {"x": whole[:, :4]}, "not images of"),
    ("nan", {"x": broken}, "image 2 has a pixel that is not finite"),
    ("names", {"a": whole, "b": whole}, "names.npz has no array x; it has a, b"),
    ("texts", {"x": np.array(["a"])}, "not pixels"),
  ):
    if arrays:
      np.savez(folder / f"{name}.npz", **arrays)
    done = alone(folder, f"{name}.npz")
    assert done.returncode == 2 and message in done.stderr
    assert done.stderr.count("\n") == 1
  np.savez(folder / "good.npz", whole)
  (folder / "kept.csv").write_text("kept")
  done = alone(folder, "good.npz", "kept.csv")
  assert done.returncode == 2 and "--overwrite replaces it" in done.stderr
  assert (folder / "kept.csv").read_text() == "kept"


def test_a_model_of_another_kind_is_refused():
  with pytest.raises(ValueError, match="no network of convolutional cells"):
    standalone_images.model_of({"space": {"kind": "mlp_chain"}}, {}, {})
