"""Texts: vocabulary from the training part, streams, windows, and bad input."""

import numpy as np
import pytest

from nasjax.core.types import InputError
from nasjax.data import text

LINES = "the cat sat\non the mat\n\nthe dog ran\n"


def write(folder, content, name="text.txt"):
  path = folder / name
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  return str(path)


def words_of(found, part):
  return [found.vocabulary[number] for number in getattr(found, part)]


def test_characters_in_three_parts(tmp_path):
  content = "abab" * 10 + "ba" * 5 + "bz" * 5
  found = text.from_files(
    write(tmp_path, content), valid_fraction=1 / 6, test_fraction=1 / 6
  )
  assert [len(found.train), len(found.valid), len(found.test)] == [40, 10, 10]
  assert "".join(words_of(found, "train")) == "abab" * 10
  assert "".join(words_of(found, "valid")) == "ba" * 5
  # z is only in the test part: nothing of it may be known.
  assert found.vocabulary == ("a", "b", "<unk>")
  assert words_of(found, "test") == ["b", "<unk>"] * 5
  assert found.unknown == 0.25
  assert "40 train + 10 valid + 10 test characters, 3 different" in text.describe(found)


def test_words_of_three_files(tmp_path):
  paths = [
    write(tmp_path, content, name)
    for content, name in (
      (LINES, "train.txt"),
      ("the cow\n", "valid.txt"),
      ("a cat <unk>\n", "test.txt"),
    )
  ]
  found = text.from_files(
    paths[0], unit="words", valid_path=paths[1], test_path=paths[2]
  )
  first = ["the", "cat", "sat", "<eos>", "on", "the", "mat", "<eos>", "<eos>"]
  assert words_of(found, "train")[:9] == first
  assert set(found.vocabulary) == {*first, "dog", "ran", "<unk>"}
  assert words_of(found, "valid") == ["the", "<unk>", "<eos>"]
  assert words_of(found, "test") == ["<unk>", "cat", "<unk>", "<eos>"]
  rare = text.from_files(
    paths[0], unit="words", valid_path=paths[1], test_path=paths[2], min_count=2
  )
  assert rare.vocabulary == ("<eos>", "the", "<unk>")
  assert words_of(rare, "train").count("<unk>") == 6


def test_a_byte_order_mark_is_no_character(tmp_path):
  found = text.from_files(write(tmp_path, b"\xef\xbb\xbf" + b"ab" * 50))
  assert found.vocabulary == ("a", "b", "<unk>")


def test_streams_are_contiguous():
  streams = text.streams(np.arange(11), 3)
  np.testing.assert_array_equal(streams, [[0, 3, 6], [1, 4, 7], [2, 5, 8]])


@pytest.mark.parametrize("rng", [None, np.random.default_rng(0)])
def test_windows_cover_every_prediction_once(rng):
  cuts = text.windows(1000, 35, rng)
  ends = cuts.starts + cuts.lengths
  assert cuts.starts[0] == 0 and ends[-1] == 999
  np.testing.assert_array_equal(cuts.starts[1:], ends[:-1])
  lengths = set(cuts.lengths[:-1].tolist())
  assert lengths == ({35} if rng is None else {35, 17})


def test_half_windows_are_as_rare_as_the_authors():
  cuts = text.windows(200_000, 4, np.random.default_rng(1))
  assert abs((cuts.lengths == 2).mean() - 0.05) < 0.005


@pytest.mark.parametrize(
  "content, options, match",
  [
    (b"ab\ncd\xff\n", {}, "text.txt is not UTF-8: byte 0xff in line 2"),
    ("", {}, r"the training part is empty \(0 characters in all\)"),
    ("ab", {}, "the validation part is empty"),
    (LINES, {"unit": "bytes"}, "unit must be one of words, characters, got 'bytes'"),
    (LINES, {"valid_path": "x.txt"}, "valid_path and --config.data.test_path go"),
    (LINES, {"valid_fraction": 0.0}, "valid_fraction must be between 0 and 1, got 0"),
    (LINES, {"valid_fraction": 0.6, "test_fraction": 0.4}, "leave nothing to train"),
    (LINES, {"min_count": 0}, "min_count must be positive"),
  ],
)
def test_bad_texts_are_one_line(content, options, match, tmp_path):
  path = write(tmp_path, content)
  with pytest.raises(InputError, match=match):
    text.from_files(path, **options)


def test_no_text_and_one_that_is_not_there(tmp_path):
  with pytest.raises(InputError, match="--config.data.path is needed"):
    text.from_files("")
  with pytest.raises(InputError, match="nowhere.txt: No such file"):
    text.from_files(str(tmp_path / "nowhere.txt"))


def test_a_text_shorter_than_a_window():
  text.check_length("a part", 20, 4, 4, "--config.batch_size")
  match = (
    "a part has 20 tokens, 5 in each of 4 streams .--config.batch_size.; a truncation "
    "window takes 5 and the one after"
  )
  with pytest.raises(InputError, match=match):
    text.check_length("a part", 20, 4, 5, "--config.batch_size")
