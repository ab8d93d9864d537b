"""Pickles as plain data: containers, texts and numbers, and nothing that runs.

A pickle is a program. Three gates keep the ones that NATS-Bench's authors ship from
being that: `_vet` lets only those instructions through that their files consist of,
`find_class` refuses every name but three (and never imports one), and behind these
stand objects of this module that build a dict, a format of numbers and a number.
"""

import bz2
import contextlib
import io
import os
import pathlib
import pickle
import pickletools
import struct
from collections.abc import Iterator
from typing import Any

from nasjax.core.types import InputError

# The longest file of the benchmark, its list of cells, has 1.4 million bytes.
_MAX_BYTES = 16 << 20


def read_plain(file: pathlib.Path) -> Any:
  """What a bz2-compressed pickle of NATS-Bench holds.

  NumPy's numbers arrive as Python's, and an OrderedDict as a dict.

  Raises:
    InputError: a file that cannot be read, is longer than 16 MiB once decompressed, or
      asks for anything else; nothing that it asks for has then been run.
  """
  try:
    with bz2.open(file) as stream:
      data = stream.read(_MAX_BYTES + 1)
  except (OSError, EOFError) as error:
    raise InputError(f"{file} cannot be read as bz2: {error}") from None
  if len(data) > _MAX_BYTES:
    raise InputError(
      f"{file} holds more than {_MAX_BYTES >> 20} MiB, which no record of the "
      '"-simple" folder does'
    )
  with naming(file):
    end, refusal = _vet(data)
    try:
      # What comes before a refused instruction tells better what the file wanted.
      value = _PlainUnpickler(io.BytesIO(data[:end])).load()
    except InputError:
      raise
    except Exception as error:
      raise InputError(
        refusal or f"it is no pickle of NATS-Bench's ({type(error).__name__})"
      ) from None
  return value


@contextlib.contextmanager
def naming(file: os.PathLike) -> Iterator[None]:
  """Puts the file before the message of an `InputError`."""
  try:
    yield
  except InputError as error:
    raise InputError(f"{file}: {error}") from None


def shown(value: Any) -> str:
  """A foreign text on one short line; of anything else no more than its type."""
  return ascii(value[:60]) if isinstance(value, str) else f"a {type(value).__name__}"


class _Callable:
  """What a pickle may call: it has no attributes, and accepts none from a pickle."""

  __slots__ = ()

  def __setstate__(self, state):
    raise InputError("it changes one of the names it may call")


class _OrderedDict(_Callable):
  __slots__ = ()

  def __call__(self, *args):
    if args:
      raise InputError("it calls collections.OrderedDict with arguments")
    return {}


class _Dtype(_Callable):
  __slots__ = ()

  def __call__(self, code, *flags):
    if not isinstance(code, str) or code not in _Format.CODES:
      raise InputError(f"numpy.dtype({shown(code)}) is no plain number")
    return _Format(code)


class _Format:
  """A format of one number: what numpy.dtype is for, without NumPy."""

  __slots__ = ("_code", "_order")
  CODES = {"f4": "f", "f8": "d", "i4": "i", "i8": "q"}

  def __init__(self, code):
    self._code, self._order = code, "<"

  def __setstate__(self, state):
    # (version, byte order, sub-array, names, fields, item size, alignment, flags)
    if len(state) < 5 or state[1] not in ("<", ">") or state[2:5] != (None,) * 3:
      raise InputError("its numpy.dtype is no plain number")
    self._order = state[1]

  def number(self, data):
    return struct.unpack(self._order + self.CODES[self._code], data)[0]


class _Scalar(_Callable):
  __slots__ = ()

  def __call__(self, dtype, data):
    if type(dtype) is not _Format or type(data) is not bytes:
      raise InputError("its numpy scalar is no plain number")
    return dtype.number(data)


_ALLOWED = {
  ("collections", "OrderedDict"): _OrderedDict(),
  ("numpy", "dtype"): _Dtype(),
  ("numpy.core.multiarray", "scalar"): _Scalar(),
  ("numpy._core.multiarray", "scalar"): _Scalar(),  # its name since NumPy 2
}


class _PlainUnpickler(pickle.Unpickler):
  """Refuses every name but those of `_ALLOWED`, and imports none."""

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) not in _ALLOWED:
      raise InputError(_asks_for(module, name))
    return _ALLOWED[module, name]

  def persistent_load(self, pid: Any) -> Any:
    raise InputError("it refers to something outside of itself")


def _asks_for(module: str, name: str) -> str:
  name = shown(f"{module}.{name}").strip("'")
  return f"it asks for {name}, which is no plain data; nothing of it was run"


_CODES = {op.name: ord(op.code) for op in pickletools.opcodes}
_NAMES = {code: name for name, code in _CODES.items()}
# The bytes that follow an instruction which needs no further thought.
_WIDTHS = [-1] * 256
for _name, _width in {
  **dict.fromkeys(("MARK", "NONE", "NEWTRUE", "NEWFALSE", "EMPTY_DICT"), 0),
  **dict.fromkeys(("EMPTY_LIST", "EMPTY_SET", "EMPTY_TUPLE", "APPEND", "APPENDS"), 0),
  **dict.fromkeys(("SETITEM", "SETITEMS", "ADDITEMS", "STACK_GLOBAL", "REDUCE"), 0),
  **dict.fromkeys(("BUILD", "NEWOBJ"), 0),
  **{"PROTO": 1, "BININT1": 1, "BININT2": 2, "BININT": 4, "BINFLOAT": 8, "FRAME": 8},
}.items():
  _WIDTHS[_CODES[_name]] = _width
# What may be looked up again once remembered. Not a tuple: a tuple that holds another
# twice, and so on, takes exponential time to hash.
_SHARED = {
  *(_CODES[name] for name in ("SHORT_BINUNICODE", "SHORT_BINBYTES", "STACK_GLOBAL")),
  *(_CODES[name] for name in ("REDUCE", "EMPTY_DICT", "EMPTY_LIST")),
}
_TUPLES = {_CODES[name] for name in ("TUPLE1", "TUPLE2", "TUPLE3", "TUPLE")}
# A record has a hundred or so; a tuple nested a million deep, once hashed, overflows
# the stack.
_MAX_TUPLES = 4096


def _vet(data: bytes) -> tuple[int, str | None]:
  """Looks through the instructions of a pickle without following them.

  Left out are those that NATS-Bench's files do without and that do harm or hide it: a
  memory slot of a chosen number (four bytes then claim gigabytes), the registry of
  extensions, persistent ids, the older ways to name a class.

  Returns:
    Where the part ends that may be loaded, and what is wrong there, if anything is.
  """
  memoize, text, raw = (
    _CODES[name] for name in ("MEMOIZE", "SHORT_BINUNICODE", "SHORT_BINBYTES")
  )
  get, long_get, stop = (_CODES[name] for name in ("BINGET", "LONG_BINGET", "STOP"))
  widths, shared, position, before, tuples = _WIDTHS, [], 0, 0, 0
  try:
    while True:
      code = data[position]
      width = widths[code]
      if width >= 0:
        position += 1 + width
      elif code == memoize:
        shared.append(before in _SHARED)
        position += 1
      elif code in (text, raw):
        position += 2 + data[position + 1]
      elif code in (get, long_get):
        width = 1 if code == get else 4
        slot = int.from_bytes(data[position + 1 : position + 1 + width], "little")
        if slot >= len(shared) or not shared[slot]:
          return position, "it looks up a tuple, or what it has not remembered"
        position += 1 + width
      elif code in _TUPLES and tuples < _MAX_TUPLES:
        tuples += 1
        position += 1
      elif code == stop:
        return position + 1, None
      else:
        return position, _refusal(data, position)
      before = code
  except IndexError:
    return position, "the pickle has no end"


def _refusal(data: bytes, position: int) -> str:
  """Why an instruction is not let through, with the class that it names."""
  name = _NAMES.get(data[position], f"number {data[position]}")
  if name in ("GLOBAL", "INST"):
    module, attribute, *_ = (data[position + 1 :][:400] + b"\n\n").split(b"\n")
    return _asks_for(module.decode("latin-1"), attribute.decode("latin-1"))
  if name in ("PERSID", "BINPERSID"):
    return "it refers to something outside of itself by a persistent id"
  if data[position] in _TUPLES:
    return f"it has more than {_MAX_TUPLES} tuples"
  return f"the pickle instruction {name} is none that NATS-Bench's records use"
