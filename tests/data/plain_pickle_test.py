"""Pickles as plain data: nothing in a file ever runs, whatever it says."""

import bz2
import collections
import os
import pathlib
import pickle
import struct
import sys

import numpy as np
import pytest

from nasjax.core.types import InputError
from nasjax.data.plain_pickle import read_plain


class Calls:
  """Pickles as a call of anything."""

  def __init__(self, function, *args):
    self._call = function, args

  def __reduce__(self):
    return self._call


class Instance:
  def __setstate__(self, state):
    raise AssertionError("ran")


def _object_array():
  array = np.empty(1, object)
  array[0] = Calls(os.mkdir, "ran")
  return array


def _by_name(module, name):
  """The instructions that put a global on the stack."""
  return b"".join(_text(text) for text in (module, name)) + b"\x93"


def _text(text):
  return b"\x8c" + bytes([len(text)]) + text.encode()


FLOAT = _by_name("numpy", "dtype") + _text("f8") + b"\x89\x88\x87R"
SCALAR = _by_name("numpy.core.multiarray", "scalar")
ORDERED = _by_name("collections", "OrderedDict")
SYSTEM = f"{os.name}.system"  # os.system pickles as posix.system or nt.system


def raw(body):
  return b"\x80\x04" + body + b"."


MALICIOUS = {
  "os.system": (Calls(os.system, "touch ran"), SYSTEM),
  "eval": (Calls(eval, "open('ran', 'w')"), "builtins.eval"),
  "exec": (Calls(exec, "open('ran', 'w')"), "builtins.exec"),
  "getattr": (Calls(getattr, {}, "keys"), "builtins.getattr"),
  "import": (Calls(__import__, "antigravity"), "builtins.__import__"),
  "instance": (Instance(), "plain_pickle_test.Instance"),
  "class": (pathlib.PurePosixPath, "pathlib.PurePosixPath"),
  "nested": ({"12": [{"a": ({"b": Calls(os.mkdir, "ran")},)}]}, f"{os.name}.mkdir"),
  "key": ({(1, Calls(os.mkdir, "ran")): 1}, f"{os.name}.mkdir"),
  "in an OrderedDict": (
    collections.OrderedDict(a=Calls(os.mkdir, "ran")),
    f"{os.name}.mkdir",
  ),
  "numpy objects": (_object_array(), "_reconstruct"),
  "numpy array": (np.zeros(3), "numpy"),
  "default dict": (collections.defaultdict(list), "collections.defaultdict"),
  "partial": (Calls(__import__("functools").partial, os.mkdir), "functools.partial"),
}


@pytest.fixture
def read(tmp_path, monkeypatch):
  """Reads bytes as record 0; fails if that has made anything in the folder."""
  monkeypatch.chdir(tmp_path)

  def read(data, compress=True):
    file = tmp_path / "000000.pickle.pbz2"
    file.write_bytes(bz2.compress(data) if compress else data)
    try:
      with pytest.raises(InputError) as caught:
        read_plain(file)
    finally:
      assert os.listdir(tmp_path) == [file.name]
    message = str(caught.value)
    assert file.name in message and "\n" not in message and len(message) < 400
    return message

  return read


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("case", MALICIOUS)
def test_a_malicious_pickle_runs_nothing(case, protocol, read):
  value, name = MALICIOUS[case]
  message = read(pickle.dumps(value, protocol=protocol))
  if protocol == 4 or case in ("os.system", "exec"):
    # Older protocols call it __builtin__, or copyreg comes first.
    assert name in message.replace("__builtin__", "builtins")


def test_the_marker_would_be_made_without_the_guard(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for case in ("os.system", "eval", "nested"):
    pickle.loads(pickle.dumps(MALICIOUS[case][0], protocol=4))
    marker = tmp_path / "ran"
    assert marker.exists()
    marker.rmdir() if marker.is_dir() else marker.unlink()


BY_HAND = {
  # The classic protocol 0, where class names are lines.
  "text": (b"cos\nsystem\n(S'touch ran'\ntR.", "os.system"),
  "inst": (b"(ios\nsystem\n.", "os.system"),
  "inst with a text": (b"(S'touch ran'\nios\nsystem\n.", "STRING"),
  "dotted": (
    raw(_by_name("collections", "OrderedDict.fromkeys.__globals__")),
    "collections.OrderedDict.fromkeys",
  ),
  "split": (raw(_by_name("collections.OrderedDict", "fromkeys")), "fromkeys"),
  "terminal": (raw(_by_name("os\x1b[2J\n", "system")), "os\\x1b[2J\\n.system"),
  "persistent": (raw(_text("x") + b"Q"), "persistent id"),
  "persistent text": (b"Px\n.", "persistent id"),
  "extension": (raw(b"\x82\x01"), "EXT1"),
  # A dtype of objects would have numpy unpickle, or take an address for an object.
  "object dtype": (
    raw(
      _by_name("numpy", "dtype") + _text("O8") + b"\x89\x88\x87R",
    ),
    "numpy.dtype('O8')",
  ),
  "dtype of a dict": (raw(_by_name("numpy", "dtype") + b"}\x85R"), "a dict"),
  "structured dtype": (
    raw(FLOAT + b"(K\x03" + _text("|") + b"N(" + _text("f") + b"t}t" + b"b"),
    "no plain number",
  ),
  "scalar of a dict": (raw(SCALAR + b"}C\x08" + bytes(8) + b"\x86R"), "scalar"),
  "scalar too short": (raw(SCALAR + FLOAT + b"C\x07" + bytes(7) + b"\x86R"), "error"),
  "dict with arguments": (raw(ORDERED + b"](K\x01K\x02e\x85R"), "arguments"),
  # BUILD sets attributes: of what may be called, of a format, of a container.
  "build a callable": (raw(ORDERED + b"}" + _text("f") + b"K\x01sb"), "changes"),
  "build by slots": (raw(SCALAR + b"N}" + _text("f") + b"K\x01s\x86b"), "changes"),
  "build a format": (raw(FLOAT + b"}" + _text("f") + b"K\x01sb"), "no plain number"),
  "build a dict": (raw(b"}}" + _text("f") + b"K\x01sb"), "Error"),
  "new object": (raw(ORDERED + b")\x81"), "Error"),
  "call a number": (raw(b"K\x01)R"), "Error"),
  "nothing to call": (raw(b"R"), "Error"),
  "memory slot": (raw(b"Nr\xff\xff\xff\x7f"), "LONG_BINPUT"),
  "long bytes": (raw(b"\x8e" + b"\xff" * 7 + b"\x7f"), "BINBYTES8"),
  "long frame": (raw(b"\x95" + b"\xff" * 7 + b"\x7fN"), "Error"),
  "unknown slot": (raw(b"h\x07"), "not remembered"),
  "no end": (raw(b"N")[:-1], "no end"),
  "cut number": (b"\x80\x04G\x00.", "no end"),
  "empty": (b"", "no end"),
  "no instruction": (b"\xff.", "number 255"),
  "text file": (b"hello", "not remembered"),
}


@pytest.mark.parametrize("case", BY_HAND)
def test_crafted_instructions_are_refused(case, read):
  data, reason = BY_HAND[case]
  assert reason in read(data)


@pytest.mark.parametrize("leave", [b"\x94", b"Nb\x94", b"(e\x94", b"(u\x94"])
def test_tuples_that_take_exponential_time_to_hash_are_refused(leave, read):
  # Every tuple holds the one before twice; the last, as a key, would have 2**60 leaves.
  body = b"}K\x01K\x01\x86" + leave
  for slot in range(60):
    body += b"h" + bytes([slot]) + b"h" + bytes([slot]) + b"\x86" + leave
  assert "not remembered" in read(raw(body + b"Ns"))


def test_deep_tuples_are_refused_before_hashing_overflows_the_stack(read):
  assert "4096 tuples" in read(raw(b"})" + b"K\x01\x86" * 1_000_000 + b"Ns"))


def test_deep_lists_do_no_harm(tmp_path):
  file = tmp_path / "000000.pickle.pbz2"
  file.write_bytes(bz2.compress(raw(b"]" * 100_000 + b"a" * 99_999)))
  assert isinstance(read_plain(file), list)


def test_a_bomb_is_not_unpacked(read, monkeypatch):
  bomb = bz2.compress(bytes(80 << 20))
  assert len(bomb) < 1000
  assert "16 MiB" in read(bomb, compress=False)
  # Many streams in one file are one text.
  assert "16 MiB" in read(bz2.compress(bytes(1 << 20)) * 20, compress=False)


def test_damaged_files_are_named(read):
  whole = bz2.compress(pickle.dumps({k: k / 7 for k in range(1000)}, protocol=4))
  assert "end-of-stream" in read(whole[: len(whole) // 2], compress=False)
  assert "Invalid data" in read(b"no bz2 at all", compress=False)
  assert read(b"", compress=False)


@pytest.mark.parametrize("dtype", ["<f8", ">f8", "<f4", ">f4", "<i8", ">i8", "<i4"])
def test_numpy_numbers_arrive_as_pythons(dtype, tmp_path):
  for value in (np.dtype(dtype).type(1.5), np.array([-3], dtype)[0]):
    file = tmp_path / "a.pbz2"
    file.write_bytes(bz2.compress(pickle.dumps({"a": [value], "b": value}, protocol=4)))
    got = read_plain(file)
    assert got == {"a": [value], "b": value}
    assert type(got["b"]) in (int, float)


def test_a_format_keeps_its_byte_order(tmp_path):
  state = b"(K\x03" + _text(">") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
  data = raw(SCALAR + FLOAT + state + b"C\x08" + struct.pack(">d", 2.5) + b"\x86R")
  (tmp_path / "a.pbz2").write_bytes(bz2.compress(data))
  assert read_plain(tmp_path / "a.pbz2") == 2.5 == pickle.loads(data)


def test_nothing_is_imported(read):
  modules = set(sys.modules)
  assert "antigravity.fly" in read(raw(_by_name("antigravity", "fly") + b")R"))
  assert set(sys.modules) == modules
