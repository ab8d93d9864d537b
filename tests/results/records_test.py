import json
import logging
import os

import jax.numpy as jnp
import numpy as np
import pytest

from nasjax.core.types import InputError
from nasjax.results import records


def test_what_is_written_is_read_back_as_plain_values(tmp_path):
  path = tmp_path / "records.jsonl"
  with records.RecordWriter(path) as writer:
    writer.write({"score": np.float32(0.5), "genotype": np.arange(3), "n": np.int64(7)})
    writer.write({"score": float("nan"), "curve": [1.0, np.inf], "x": jnp.ones(2)})
  assert records.read(path) == [
    {"score": 0.5, "genotype": [0, 1, 2], "n": 7},
    {"score": None, "curve": [1.0, None], "x": [1.0, 1.0]},
  ]


def test_a_record_is_on_disk_before_the_writer_is_closed(tmp_path):
  writer = records.RecordWriter(tmp_path / "records.jsonl")
  writer.write({"index": 0})
  assert records.read(tmp_path / "records.jsonl") == [{"index": 0}]
  writer.close()


def test_an_absent_file_and_an_empty_one_hold_no_records(tmp_path):
  (tmp_path / "empty.jsonl").touch()
  assert records.read(tmp_path / "absent.jsonl") == []
  assert records.read(tmp_path / "empty.jsonl") == []


@pytest.mark.parametrize("torn", [b'{"index": 1, "sc', b'{"arch": "\xe2\x82', b"\n"])
def test_a_torn_last_line_is_left_out_with_a_warning(tmp_path, caplog, torn):
  path = tmp_path / "records.jsonl"
  path.write_bytes(b'{"index": 0}\n' + torn)
  with caplog.at_level(logging.WARNING):
    assert records.read(path) == [{"index": 0}]
  assert "cut short" in caplog.text


def test_a_bad_line_in_the_middle_is_an_error_of_one_line(tmp_path):
  path = tmp_path / "records.jsonl"
  path.write_text('{"index": 0}\nnonsense\n{"index": 2}\n')
  with pytest.raises(InputError, match="line 2 is no JSON") as error:
    records.read(path)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  "tail, kept", [('{"index": 1, "sc', []), ('{"index": 1}', [{"index": 1}])]
)
def test_appending_after_a_last_line_without_end_loses_no_record(tmp_path, tail, kept):
  path = tmp_path / "records.jsonl"
  path.write_text('{"index": 0}\n' + tail)
  with records.RecordWriter(path) as writer:
    writer.write({"index": 2})
  assert records.read(path) == [{"index": 0}, *kept, {"index": 2}]


def test_json_without_nan(tmp_path):
  records.write_json(tmp_path / "a.json", {"a": float("nan"), "b": {"c": (1, -np.inf)}})
  text = (tmp_path / "a.json").read_text()
  assert json.loads(text) == {"a": None, "b": {"c": [1, None]}}


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
  records.write_text(tmp_path / "a.txt", "old")

  def fail(*_):
    raise OSError("disk full")

  monkeypatch.setattr(os, "replace", fail)
  with pytest.raises(OSError, match="disk full"):
    records.write_text(tmp_path / "a.txt", "new")
  assert (tmp_path / "a.txt").read_text() == "old"
  assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_write_bytes_replaces_the_whole_file(tmp_path):
  records.write_bytes(tmp_path / "a", b"a longer content")
  records.write_bytes(tmp_path / "a", b"\x00short")
  assert (tmp_path / "a").read_bytes() == b"\x00short"
