import functools
import hashlib
import http.server
import io
import sys
import tarfile
import threading

import numpy as np
import pytest
from tensorflow_datasets.core.download import checksums

from nasjax.core.types import InputError
from nasjax.data import tfds, wine

_FILES = [file for pair in tfds.MNIST_FILES.values() for file in pair]


@pytest.fixture
def no_network(monkeypatch):
  def fail(*_):
    raise tfds.socket.gaierror("Name or service not known")

  monkeypatch.setattr(tfds.socket, "getaddrinfo", fail)
  monkeypatch.setattr(tfds.urllib.request, "getproxies", dict)


def test_mnist_from_the_four_files(shared_data, tmp_path, no_network, capfd):
  given = tfds.load_mnist(data_dir=tmp_path, manual_dir=str(shared_data / "mnist"))
  rows = [len(split.y) for split in (given.train, given.valid, given.test)]
  assert rows == [48_000, 12_000, 10_000]
  assert (given.num_features, given.num_outputs) == (784, 10)
  assert given.train.x.dtype == np.float32 and given.train.y.dtype == np.int32
  assert given.train.x.min() == 0 and given.train.x.max() == 1
  official = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
  assert np.bincount(given.test.y).tolist() == official
  means = [given.test.x[given.test.y == label].mean() for label in (0, 1)]
  assert means[0] > 2 * means[1]  # a nought has more ink than a stroke
  assert "tensorflow" not in sys.modules
  assert capfd.readouterr() == ("", "")


def test_mnist_files_that_are_missing_are_named(tmp_path):
  for file in _FILES[:-1]:
    (tmp_path / file).touch()
  with pytest.raises(InputError, match=f"lacks {_FILES[-1]}$"):
    tfds.load_mnist(manual_dir=str(tmp_path))
  with pytest.raises(InputError, match="manual_dir=.*nowhere is not a folder"):
    tfds.load_mnist(manual_dir=str(tmp_path / "nowhere"))


def test_mnist_files_that_are_not_the_originals_are_refused(tmp_path):
  for file in _FILES:
    (tmp_path / file).write_bytes(b"not MNIST")
  with pytest.raises(InputError, match="MNIST: not the original file") as error:
    tfds.load_mnist(data_dir=tmp_path / "data", manual_dir=str(tmp_path))
  assert "\n" not in str(error.value)


def test_without_a_network_one_line_says_what_to_give(tmp_path, no_network):
  with pytest.raises(InputError, match="no network") as error:
    tfds.load_mnist(data_dir=tmp_path)
  assert "--config.data.manual_dir" in str(error.value)
  assert "--config.data.data_dir" in str(error.value)
  assert all(file in str(error.value) for file in _FILES)
  with pytest.raises(InputError, match="no network.*--config.data.path") as error:
    tfds.load_wine_quality(data_dir=tmp_path)
  assert "\n" not in str(error.value)


@pytest.fixture
def cifar10_folder(tmp_path, monkeypatch):
  """The original archive in small: 5 x 4 and 4 images, and its checksum known."""
  folder, rng = tmp_path / "given", np.random.default_rng(0)
  folder.mkdir()
  stock = tfds._Cifar10._cifar_info.fget(tfds._Cifar10)
  labels = "\n".join(f"class {i}" for i in range(10)) + "\n\n"
  rows = {}
  with tarfile.open(folder / tfds.CIFAR10_FILE, "w:gz") as archive:

    def add(name, content):
      member = tarfile.TarInfo(stock.prefix + name)
      member.size = len(content)
      archive.addfile(member, io.BytesIO(content))

    add("batches.meta.txt", labels.encode())
    for name in (*stock.train_files, *stock.test_files):
      rows[name] = rng.integers(0, 256, (4, 1 + 3 * 32 * 32), np.uint8)
      rows[name][:, 0] = [0, 9, 0, 9]
      add(name, rows[name].tobytes())
  content = (folder / tfds.CIFAR10_FILE).read_bytes()
  digest = hashlib.sha256(content).hexdigest()
  info = checksums.UrlInfo(len(content), digest, tfds.CIFAR10_FILE)
  monkeypatch.setattr(tfds._Cifar10, "url_infos", {stock.url: info})
  return folder, rows


def test_cifar10_from_its_archive(cifar10_folder, tmp_path, no_network, capfd):
  folder, rows = cifar10_folder
  data = tfds.load_cifar10(data_dir=tmp_path / "data", manual_dir=str(folder))
  assert data.shape == (32, 32, 3) and data.class_names[9] == "class 9"
  assert [len(s.y) for s in (data.train, data.valid, data.test)] == [10, 10, 4]
  assert data.train.y.tolist().count(9) == 5  # each class in both halves
  test = data.test.x * data.std + data.mean
  given = rows["test_batch.bin"]
  wanted = given[:, 1:].reshape(4, 3, 32, 32).transpose(0, 2, 3, 1)
  labelled = [(label, x.round().tolist()) for label, x in zip(data.test.y, test)]
  assert sorted(labelled) == sorted(
    (label, x.tolist()) for label, x in zip(given[:, 0], wanted)
  )
  # Prepared once, it needs neither the archive nor a network.
  again = tfds.load_cifar10(data_dir=tmp_path / "data")
  np.testing.assert_array_equal(again.train.x, data.train.x)
  assert again.class_names == data.class_names
  assert "tensorflow" not in sys.modules
  assert capfd.readouterr() == ("", "")


def test_cifar10_that_is_not_there_is_one_line(tmp_path, no_network):
  with pytest.raises(InputError, match="CIFAR-10 is not prepared here") as error:
    tfds.load_cifar10(data_dir=tmp_path)
  for said in ("--config.data.path=FILE.npz", "manual_dir=FOLDER with cifar-10-binary"):
    assert said in str(error.value)
  with pytest.raises(InputError, match="lacks cifar-10-binary.tar.gz"):
    tfds.load_cifar10(manual_dir=str(tmp_path))
  (tmp_path / tfds.CIFAR10_FILE).write_bytes(b"not CIFAR-10")
  with pytest.raises(InputError, match="CIFAR-10: not the original file"):
    tfds.load_cifar10(data_dir=tmp_path / "data", manual_dir=str(tmp_path))


def test_a_package_that_is_missing_is_named():
  missing = pytest.raises(InputError, match="needs the package tensorflow")
  with missing, tfds._one_line_errors("MNIST", "files"):
    raise ModuleNotFoundError("No module", name="tensorflow")


@pytest.fixture
def wine_server(tmp_path, monkeypatch):
  """Serves 60 made wines as UCI does, and points the builder there."""
  key = np.random.default_rng(0)
  header = ";".join(f'"{name}"' for name in (*wine.MEASUREMENTS, "quality"))
  rows = [
    ";".join(f"{value:.3f}" for value in key.uniform(0, 9, 11)) + f";{5 + i % 4}"
    for i in range(60)
  ]
  folder = tmp_path / "server"
  folder.mkdir()
  (folder / "winequality-white.csv").write_text("\n".join([header, *rows]) + "\n")

  class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
      pass

  server = http.server.ThreadingHTTPServer(
    ("127.0.0.1", 0), functools.partial(Quiet, directory=folder)
  )
  threading.Thread(target=server.serve_forever, daemon=True).start()
  url = f"http://127.0.0.1:{server.server_port}/winequality-white.csv"
  for config in tfds._WineQuality.BUILDER_CONFIGS:
    if config.name == "white":
      monkeypatch.setattr(config, "dl_url", url)
  monkeypatch.setenv("no_proxy", "127.0.0.1")
  yield folder / "winequality-white.csv"
  server.shutdown()
  server.server_close()


def test_wine_is_downloaded_and_equals_the_file(wine_server, tmp_path):
  loaded = tfds.load_wine_quality(data_dir=tmp_path / "data", seed=3)
  assert loaded.class_names == ("high", "low", "medium")
  assert loaded.feature_names == wine.MEASUREMENTS
  assert "tensorflow" not in sys.modules

  # TFDS shuffles the rows: the same set of raw rows with the same classes.
  def raw(dataset):
    spec = dataset.preprocessing["features"]
    offset = np.array([s["offset"][0] for s in spec])
    scale = np.array([s["scale"][0] for s in spec])
    rows = [
      (*(np.array(x, float) * scale + offset).round(3), y)
      for split in (dataset.train, dataset.valid, dataset.test)
      for x, y in zip(*split)
    ]
    return sorted(rows)

  again = tfds.load_wine_quality(data_dir=tmp_path / "data", seed=3)
  np.testing.assert_array_equal(loaded.train.x, again.train.x)
  np.testing.assert_allclose(raw(loaded), raw(wine.load_csv(wine_server)), atol=2e-3)
