"""JSON lines, one a child, and atomic writes of whole files."""

import json
import logging
import math
import os
import pathlib
import tempfile
from typing import Any

import numpy as np

from nasjax.core.types import InputError

_LOG = logging.getLogger(__name__)


def plain(value: Any) -> Any:
  """A value as JSON has it: numpy becomes Python, what is not finite becomes null."""
  if isinstance(value, dict):
    return {str(key): plain(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [plain(item) for item in value]
  if isinstance(value, np.ndarray):
    return plain(value.tolist())
  if isinstance(value, np.generic):
    return plain(value.item())
  if hasattr(value, "__array__"):  # a jax array, which this layer need not import
    return plain(np.asarray(value))
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


class RecordWriter:
  """Appends one JSON line per `write`, flushed, so that a crash loses none.

  A last line that an earlier writer left cut short is dropped first, with a warning:
  what is appended would otherwise be glued to it, and both lost.
  """

  def __init__(self, path: str | os.PathLike):
    _mend_last_line(pathlib.Path(path))
    self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115

  def write(self, record: dict[str, Any]) -> None:
    """Appends a record."""
    self._file.write(json.dumps(plain(record), allow_nan=False) + "\n")
    self._file.flush()

  def close(self) -> None:
    """Closes the file."""
    self._file.close()

  def __enter__(self) -> "RecordWriter":
    return self

  def __exit__(self, *_) -> None:
    self.close()


def _mend_last_line(path: pathlib.Path) -> None:
  if not path.exists():
    return
  data = path.read_bytes()
  start = data.rfind(b"\n") + 1
  if start == len(data):
    return
  with path.open("rb+") as file:
    try:
      json.loads(data[start:])
    except ValueError:
      _LOG.warning("%s: the last line was cut short and is dropped", path)
      file.truncate(start)
    else:
      file.seek(len(data))
      file.write(b"\n")


def read(path: str | os.PathLike) -> list[dict[str, Any]]:
  """The records of a file; none when it is absent.

  A last line that was cut short (the process was killed in mid-write) is left out, with
  a warning.

  Raises:
    InputError: a line before the last one is no JSON.
  """
  try:
    text = pathlib.Path(path).read_text(encoding="utf-8", errors="replace")
  except FileNotFoundError:
    return []
  lines = text.removesuffix("\n").split("\n") if text else []
  records = []
  for number, line in enumerate(lines, 1):
    try:
      records.append(json.loads(line))
    except ValueError:
      if number < len(lines):
        raise InputError(f"{path}, line {number} is no JSON record") from None
      _LOG.warning("%s: the last line was cut short and is left out", path)
  return records


def read_json(path: str | os.PathLike) -> dict[str, Any]:
  """The object of a JSON file; nothing when it is absent.

  Raises:
    InputError: it is no JSON, or no object.
  """
  path = pathlib.Path(path)
  try:
    values = json.loads(path.read_text(encoding="utf-8"))
  except FileNotFoundError:
    return {}
  except ValueError as error:
    raise InputError(f"{path} is not JSON: {error}") from None
  if not isinstance(values, dict):
    raise InputError(f"{path} holds no JSON object")
  return values


def keep_first(path: str | os.PathLike, count: int) -> list[dict[str, Any]]:
  """Cuts a file of records after the first `count`, atomically; gives these back.

  Raises:
    InputError: there are not so many.
  """
  records = read(path)
  if len(records) < count:
    raise InputError(
      f"{path} holds {len(records)} records where a checkpoint has seen {count}; "
      "--overwrite starts again"
    )
  if len(records) > count:
    write_text(path, "".join(json.dumps(each) + "\n" for each in records[:count]))
  return records[:count]


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
  """Writes a whole file or nothing: to a neighbour first, then renamed."""
  target = pathlib.Path(path)
  descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
  try:
    with os.fdopen(descriptor, "wb") as file:
      file.write(data)
    os.chmod(temporary, 0o644)  # mkstemp is for the owner alone
    os.replace(temporary, target)
  except BaseException:
    pathlib.Path(temporary).unlink(missing_ok=True)
    raise


def write_text(path: str | os.PathLike, text: str) -> None:
  """`write_bytes` of UTF-8 text."""
  write_bytes(path, text.encode("utf-8"))


def write_json(path: str | os.PathLike, value: Any) -> None:
  """`write_text` of indented JSON; what is not finite becomes null."""
  write_text(path, json.dumps(plain(value), indent=2, allow_nan=False) + "\n")
