"""Any text file as tokens: words or characters, three parts, streams and windows.

The vocabulary is that of the training part alone; what else occurs is `<unk>`. A line
of words ends with `<eos>`, so Penn Treebank and WikiText files are read as their
authors' programs read them. Parts are contiguous: train, then valid, then test.
"""

import collections
import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from nasjax.core.types import InputError
from nasjax.data.standalone_text import UNKNOWN, tokens_of

UNITS = ("words", "characters")
_FLAG = "--config.data"


@dataclasses.dataclass(frozen=True)
class Text:
  """A text in three parts.

  Attributes:
    name: for the report.
    unit: one of `UNITS`.
    vocabulary: tokens by number, the most frequent first.
    train: `[N]` int32 numbers, that the weights learn from.
    valid: that the alphas learn from, and that decides when to average.
    test: that nothing is ever selected on.
  """

  name: str
  unit: str
  vocabulary: tuple[str, ...]
  train: np.ndarray
  valid: np.ndarray
  test: np.ndarray

  @property
  def unknown(self) -> float:
    """Which part of the validation and test tokens is not in the vocabulary."""
    outside = np.concatenate([self.valid, self.test])
    return float((outside == self.vocabulary.index(UNKNOWN)).mean())


def describe(text: Text) -> str:
  """One line: tokens of each part, and the vocabulary."""
  parts = " + ".join(
    f"{len(getattr(text, name)):,} {name}" for name in ("train", "valid", "test")
  )
  return f"{text.name}: {parts} {text.unit}, {len(text.vocabulary):,} different"


def from_files(
  path: str,
  *,
  unit: str = "characters",
  valid_path: str = "",
  test_path: str = "",
  valid_fraction: float = 0.1,
  test_fraction: float = 0.1,
  min_count: int = 1,
) -> Text:
  """Reads a text.

  Args:
    path: of the text, UTF-8; of its training part, when the others have files.
    unit: one of `UNITS`.
    valid_path: of the validation part, if it is a file of its own.
    test_path: of the test part, likewise; both or neither.
    valid_fraction: of the tokens, when all are in one file.
    test_fraction: likewise.
    min_count: what occurs less often in the training part is `<unk>`.

  Raises:
    InputError: no such file, not UTF-8 (saying where), an empty part, or options that
      do not fit.
  """
  if not path:
    raise InputError(
      f"{_FLAG}.path is needed: any text file in UTF-8 (no text comes with nasjax)"
    )
  if bool(valid_path) != bool(test_path):
    raise InputError(f"{_FLAG}.valid_path and {_FLAG}.test_path go together")
  for name, value in (("valid", valid_fraction), ("test", test_fraction)):
    if not 0 < value < 1:
      raise InputError(f"{_FLAG}.{name}_fraction must be between 0 and 1, got {value}")
  if valid_fraction + test_fraction >= 1:
    raise InputError(
      f"{_FLAG}.valid_fraction and {_FLAG}.test_fraction leave nothing to train on: "
      f"{valid_fraction} + {test_fraction}"
    )
  if min_count < 1:
    raise InputError(f"{_FLAG}.min_count must be positive, got {min_count}")
  tokens = _tokens(_read(path), unit)
  if valid_path:
    parts = [tokens, *(_tokens(_read(each), unit) for each in (valid_path, test_path))]
  else:
    test = len(tokens) - int(test_fraction * len(tokens))
    valid = test - int(valid_fraction * len(tokens))
    parts = [tokens[:valid], tokens[valid:test], tokens[test:]]
  for name, part in zip(("training", "validation", "test"), parts):
    if not len(part):
      raise InputError(
        f"{path}: the {name} part is empty ({len(tokens)} {unit} in all)"
      )
  counts = collections.Counter(parts[0])
  frequent = [token for token, count in counts.most_common() if count >= min_count]
  vocabulary = tuple(dict.fromkeys([*frequent, UNKNOWN]))
  number = {token: index for index, token in enumerate(vocabulary)}
  unknown = number[UNKNOWN]
  return Text(
    pathlib.Path(path).name,
    unit,
    vocabulary,
    *(
      np.fromiter((number.get(token, unknown) for token in part), np.int32, len(part))
      for part in parts
    ),
  )


def _read(path: str | os.PathLike) -> str:
  try:
    data = pathlib.Path(path).read_bytes()
  except OSError as error:
    raise InputError(f"{path}: {error.strerror}") from None
  try:
    return data.decode("utf-8-sig")
  except UnicodeDecodeError as error:
    line = data.count(b"\n", 0, error.start) + 1
    raise InputError(
      f"{path} is not UTF-8: byte {data[error.start]:#04x} in line {line}"
    ) from None


def _tokens(text: str, unit: str) -> Sequence[str]:
  if unit not in UNITS:
    raise InputError(f"unit must be one of {', '.join(UNITS)}, got {unit!r}")
  return tokens_of(text, unit)


def streams(tokens: np.ndarray, batch: int) -> np.ndarray:
  """`[T, B]` contiguous streams side by side; what is left over at the end is dropped.

  Args:
    tokens: `[N]`.
    batch: B; not more than there are tokens.
  """
  steps = len(tokens) // batch
  return np.ascontiguousarray(tokens[: steps * batch].reshape(batch, steps).T)


class Windows(NamedTuple):
  """Where streams are cut, for truncated backpropagation.

  Attributes:
    starts: `[W]` int32, first step of each window.
    lengths: `[W]` int32, its steps.
  """

  starts: np.ndarray
  lengths: np.ndarray


def windows(
  steps: int, longest: int, rng: np.random.Generator | None = None
) -> Windows:
  """Cuts streams into windows; every step but the last has the next one as its target.

  Args:
    steps: T of the streams.
    longest: steps of a window. Programs are compiled for this length alone; shorter
      windows are filled up, and what counts is masked.
    rng: of windows half as long with probability 0.05, as the authors draw them; None
      for windows of one length.
  """
  starts, lengths, start = [], [], 0
  while start < steps - 1:
    length = longest
    if rng is not None and rng.random() < 0.05:
      length = max(longest // 2, 1)
    length = min(length, steps - 1 - start)
    starts.append(start)
    lengths.append(length)
    start += length
  return Windows(np.array(starts, np.int32), np.array(lengths, np.int32))


def check_length(name: str, tokens: int, batch: int, window: int, flag: str) -> None:
  """Refuses what does not fill one window.

  Args:
    name: of the part, for the user.
    tokens: how many it has.
    batch: streams side by side.
    window: steps of a window.
    flag: that sets `batch`.

  Raises:
    InputError: saying what is too short, and for what.
  """
  steps = tokens // batch
  if steps < window + 1:
    raise InputError(
      f"{name} has {tokens:,} tokens, {steps} in each of {batch} streams ({flag}); a "
      f"truncation window takes {window} and the one after"
    )
