"""MNIST and wine quality through TensorFlow Datasets, without TensorFlow.

TFDS's own MNIST and wine builders need TensorFlow to *prepare* their files (to unzip,
to encode PNGs, to name a dtype), 600 MB for seconds of work. The builders here are the
same data sets with these three things done by gzip, pillow and numpy; what they prepare
is what TFDS reads everywhere.
"""

import contextlib
import csv
import gzip
import io
import logging
import os
import pathlib
import socket
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
from tensorflow_datasets.image_classification import mnist as stock_mnist
from tensorflow_datasets.structured.wine_quality import wine_quality as stock_wine

from nasjax.core.types import InputError
from nasjax.data import base, wine

MNIST_FILES = {
  "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
  "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
_IDX_IMAGE_HEADER, _IDX_LABEL_HEADER = 16, 8  # bytes before the first value


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
        png = io.BytesIO()
        PIL.Image.fromarray(image).save(png, "png")
        yield i, {"image": png.getvalue(), "label": int(labels[i])}

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
  if manual_dir:
    folder = pathlib.Path(manual_dir).expanduser()
    if not folder.is_dir():
      raise InputError(f"--config.data.manual_dir={manual_dir} is not a folder")
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
      raise InputError(
        f"--config.data.manual_dir={manual_dir} lacks {', '.join(missing)}"
      )
  otherwise = f"--config.data.manual_dir=FOLDER with {', '.join(files)}"
  with _quiet(), _one_line_errors("MNIST", otherwise):
    builder = _Mnist(data_dir=data_dir, file_format="array_record")
    _prepare(builder, _Mnist.URL, manual_dir and str(folder))
    x, y = {}, {}
    for split in MNIST_FILES:
      source = builder.as_data_source(
        split, decoders={"image": tfds.decode.SkipDecoding()}
      )
      rows = source.__getitems__(range(len(source)))  # one read; row by row takes twice
      x[split] = np.stack([_pixels(row["image"]) for row in rows])
      y[split] = np.asarray([row["label"] for row in rows])
  return base.from_arrays(
    x["train"],
    y["train"],
    x_test=x["test"],
    y_test=y["test"],
    name="mnist",
    seed=seed,
    valid_fraction=valid_fraction,
    scaling="pixels",
  )


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
