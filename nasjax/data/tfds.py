"""MNIST, CIFAR-10 and wine quality through TensorFlow Datasets, without TensorFlow.

TFDS's own builders of these need TensorFlow to *prepare* their files (to read and unzip
them, to encode PNGs, to name a dtype), 600 MB for seconds of work. The builders here
are the same data sets with these things done by gzip, tarfile, pillow and numpy; what
they prepare is what TFDS reads everywhere.
"""

import contextlib
import csv
import gzip
import io
import logging
import os
import pathlib
import socket
import tarfile
import urllib.parse
import urllib.request
from collections.abc import Iterator

import numpy as np
import PIL.Image
import tensorflow_datasets as tfds
from tensorflow_datasets.core import registered
from tensorflow_datasets.core.download.download_manager import (
  NonMatchingChecksumError,
)
from tensorflow_datasets.image_classification import cifar as stock_cifar
from tensorflow_datasets.image_classification import mnist as stock_mnist
from tensorflow_datasets.structured.wine_quality import wine_quality as stock_wine

from nasjax.core.types import InputError
from nasjax.data import base, images, wine

MNIST_FILES = {
  "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
  "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
_IDX_IMAGE_HEADER, _IDX_LABEL_HEADER = 16, 8  # bytes before the first value
CIFAR10_FILE = "cifar-10-binary.tar.gz"
_CIFAR_IMAGE = (3, 32, 32)  # as its files have it, after one byte for the label


# TFDS registers a builder by its class when it is defined; the names are taken by the
# stock ones, whose checksums these use.
with registered.skip_registration():

  class _Mnist(stock_mnist.MNIST):
    name = "mnist"
    pkg_dir_path = pathlib.Path(stock_mnist.__file__).parent

    def _split_generators(self, dl_manager):
      files = [file for pair in MNIST_FILES.values() for file in pair]
      paths = dl_manager.download({file: self.URL + file for file in files})
      return {
        split: self._generate_examples(paths[images], paths[labels])
        for split, (images, labels) in MNIST_FILES.items()
      }

    def _generate_examples(self, images_path, labels_path):
      with gzip.open(images_path) as file:
        pixels = np.frombuffer(file.read(), np.uint8, offset=_IDX_IMAGE_HEADER)
      with gzip.open(labels_path) as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=_IDX_LABEL_HEADER)
      for i, image in enumerate(pixels.reshape(-1, 28, 28)):
        yield i, {"image": _png(image), "label": int(labels[i])}

  class _Cifar10(stock_cifar.Cifar10):
    name = "cifar10"
    pkg_dir_path = pathlib.Path(stock_cifar.__file__).parent

    def _split_generators(self, dl_manager):
      stock = self._cifar_info
      archive = dl_manager.download(stock.url)
      with tarfile.open(archive) as file:
        (meta,) = stock.label_files
        names = _member(file, stock.prefix + meta).decode().split("\n")
      self.info.features["label"].names = [name for name in names if name]
      return {
        split: self._generate_examples(split, archive, files)
        for split, files in (("train", stock.train_files), ("test", stock.test_files))
      }

    def _generate_examples(self, split, archive, files):
      index = 0
      with tarfile.open(archive) as file:
        for name in files:
          raw = np.frombuffer(_member(file, self._cifar_info.prefix + name), np.uint8)
          for row in raw.reshape(-1, 1 + np.prod(_CIFAR_IMAGE)):
            image = row[1:].reshape(_CIFAR_IMAGE).transpose(1, 2, 0)
            record = {"id": f"{split}_{index:05d}", "label": int(row[0])}
            yield index, {**record, "image": _png(np.ascontiguousarray(image))}
            index += 1

  class _WineQuality(stock_wine.WineQuality):
    name = "wine_quality"
    pkg_dir_path = pathlib.Path(stock_wine.__file__).parent

    def _info(self):
      return tfds.core.DatasetInfo(
        builder=self,
        features=tfds.features.FeaturesDict(
          {
            "quality": np.int32,
            "features": {name: np.float32 for name in wine.MEASUREMENTS},
          }
        ),
        homepage="https://archive.ics.uci.edu/ml/datasets/wine+quality",
      )

    def _split_generators(self, dl_manager):
      path = dl_manager.download(self.builder_config.dl_url)
      return {"train": self._generate_examples(path)}

    def _generate_examples(self, file_path):
      with open(file_path, encoding="utf-8") as file:
        for i, row in enumerate(csv.DictReader(file, delimiter=";")):
          quality = int(row.pop("quality"))
          yield (
            i,
            {
              "quality": quality,
              "features": {name: float(row[name]) for name in wine.MEASUREMENTS},
            },
          )


def _png(pixels: np.ndarray) -> bytes:
  png = io.BytesIO()
  PIL.Image.fromarray(pixels).save(png, "png")
  return png.getvalue()


def _member(archive: tarfile.TarFile, name: str) -> bytes:
  """A file of an archive; nothing is written to disk."""
  try:
    file = archive.extractfile(name)
  except KeyError:
    file = None
  if file is None:
    raise ValueError(f"the archive lacks {name}")
  return file.read()


def load_mnist(
  *,
  seed: int = 0,
  data_dir: str | None = None,
  manual_dir: str | None = None,
  valid_fraction: float = 0.2,
) -> base.Dataset:
  """MNIST, standard split: 60,000 rows to learn from and 10,000 to test.

  Args:
    seed: draws the validation rows.
    data_dir: where TFDS keeps prepared data (None: its own default).
    manual_dir: a folder with the four original `.gz` files, for a machine without a
      network.
    valid_fraction: of the 60,000.

  Raises:
    InputError: when the data is neither prepared, nor given, nor to be downloaded.
  """
  files = [file for pair in MNIST_FILES.values() for file in pair]
  folder = _given_folder(manual_dir, files)
  otherwise = f"--config.data.manual_dir=FOLDER with {', '.join(files)}"
  with _quiet(), _one_line_errors("MNIST", otherwise):
    builder = _Mnist(data_dir=data_dir, file_format="array_record")
    _prepare(builder, _Mnist.URL, folder)
    train, test = _read_images(builder)
  return base.from_arrays(
    train.x,
    train.y,
    x_test=test.x,
    y_test=test.y,
    name="mnist",
    seed=seed,
    valid_fraction=valid_fraction,
    scaling="pixels",
  )


def load_cifar10(
  *,
  seed: int = 0,
  data_dir: str | None = None,
  manual_dir: str | None = None,
  train_fraction: float = 0.5,
) -> images.Images:
  """CIFAR-10, standard split: 50,000 images to learn from and 10,000 to test.

  Args:
    seed: draws which rows are for the weights.
    data_dir: where TFDS keeps prepared data (None: its own default).
    manual_dir: a folder with the original `cifar-10-binary.tar.gz`, for a machine
      without a network.
    train_fraction: of the 50,000, for the weights; the rest is for the alphas.

  Raises:
    InputError: when the data is neither prepared, nor given, nor to be downloaded.
  """
  folder = _given_folder(manual_dir, [CIFAR10_FILE])
  otherwise = (
    "--config.data.path=FILE.npz with x_train, y_train, x_test and y_test, or "
    f"--config.data.manual_dir=FOLDER with {CIFAR10_FILE}"
  )
  with _quiet(), _one_line_errors("CIFAR-10", otherwise):
    builder = _Cifar10(data_dir=data_dir, file_format="array_record")
    _prepare(builder, builder._cifar_info.url, folder)
    train, test = _read_images(builder)
    names = tuple(builder.info.features["label"].names)
  return images.make("cifar10", train, test, names, seed, train_fraction)


def _given_folder(manual_dir: str | None, files: list[str]) -> str | None:
  """The folder of the user's files, which must be there.

  Raises:
    InputError: naming what is not.
  """
  if not manual_dir:
    return None
  folder = pathlib.Path(manual_dir).expanduser()
  if not folder.is_dir():
    raise InputError(f"--config.data.manual_dir={manual_dir} is not a folder")
  missing = [file for file in files if not (folder / file).is_file()]
  if missing:
    raise InputError(
      f"--config.data.manual_dir={manual_dir} lacks {', '.join(missing)}"
    )
  return str(folder)


def _read_images(builder: tfds.core.DatasetBuilder) -> tuple[base.Split, base.Split]:
  """Training and test rows of a builder of images: x uint8, y int32."""
  splits = []
  for split in ("train", "test"):
    source = builder.as_data_source(
      split, decoders={"image": tfds.decode.SkipDecoding()}
    )
    rows = source.__getitems__(range(len(source)))  # one read; row by row takes twice
    x = np.stack([_pixels(row["image"]) for row in rows])
    splits.append(base.Split(x, np.asarray([row["label"] for row in rows], np.int32)))
  return splits[0], splits[1]


def _pixels(png: bytes) -> np.ndarray:
  with PIL.Image.open(io.BytesIO(png)) as image:
    return np.asarray(image)


def load_wine_quality(
  *,
  seed: int = 0,
  data_dir: str | None = None,
  valid_fraction: float = 0.2,
  test_fraction: float = 0.2,
) -> base.Dataset:
  """White wine in three classes, see `data.wine`.

  Args:
    seed: draws the splits.
    data_dir: where TFDS keeps prepared data (None: its own default).
    valid_fraction: of the rows that are not test.
    test_fraction: of all rows.

  Raises:
    InputError: when the data is neither prepared nor to be downloaded.
  """
  otherwise = "--config.data.path=winequality-white.csv (UCI's file)"
  with _quiet(), _one_line_errors("wine quality", otherwise):
    builder = _WineQuality(
      config="white", data_dir=data_dir, file_format="array_record"
    )
    _prepare(builder, builder.builder_config.dl_url, None)
    source = builder.as_data_source("train")
    rows = source.__getitems__(range(len(source)))
  columns = {
    name: np.asarray([row["features"][name] for row in rows])
    for name in wine.MEASUREMENTS
  }
  labels = wine.classes(np.asarray([row["quality"] for row in rows]))
  return wine.from_measurements(
    columns,
    labels,
    seed=seed,
    valid_fraction=valid_fraction,
    test_fraction=test_fraction,
  )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Keeps TFDS's remarks (no OpenCV, no network yet) and its prints from the user."""
  if not os.isatty(2):
    tfds.disable_progress_bar()
  loggers = [logging.getLogger(name) for name in ("absl", "urllib3")]
  levels = [logger.level for logger in loggers]
  for logger in loggers:
    logger.setLevel(logging.ERROR)
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    for logger, level in zip(loggers, levels):
      logger.setLevel(level)


@contextlib.contextmanager
def _one_line_errors(name: str, otherwise: str) -> Iterator[None]:
  """Turns TFDS's tracebacks into one line that says what would work."""
  give = f"give {otherwise}, or --config.data.data_dir=FOLDER with it prepared by TFDS"
  try:
    yield
  except InputError:
    raise
  except ImportError as error:
    raise InputError(
      f"preparing {name} needs the package {error.name}: pip install {error.name}"
    ) from None
  except NonMatchingChecksumError as error:
    why = str(error).partition(", has wrong checksum")[0]
    raise InputError(f"{name}: not the original file: {why}; {give}") from None
  except socket.gaierror:
    raise InputError(
      f"{name} is not prepared here and there is no network to download it; {give}"
    ) from None
  except (
    OSError,
    RuntimeError,
    ValueError,
    NotImplementedError,
    tfds.download.DownloadError,
  ) as error:
    why = " ".join(str(error).split())[:200] or type(error).__name__
    raise InputError(f"{name} cannot be prepared or read ({why}); {give}") from None


def _prepare(
  builder: tfds.core.DatasetBuilder, url: str, manual_dir: str | None
) -> None:
  """Downloads, or takes from `manual_dir`, what is not prepared yet."""
  if builder.is_prepared():
    return
  # Without a network TFDS would try for minutes; a proxy resolves the name itself.
  if manual_dir is None and not urllib.request.getproxies():
    socket.getaddrinfo(urllib.parse.urlsplit(url).hostname, 443)
  builder.download_and_prepare(
    download_config=tfds.download.DownloadConfig(
      manual_dir=manual_dir, try_download_gcs=False
    )
  )
