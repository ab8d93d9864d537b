"""Where this user's machine keeps what may be made again: programs, device rates."""

import os
import pathlib


def folder() -> pathlib.Path:
  """`nasjax` in the user's cache folder (`XDG_CACHE_HOME`, else `~/.cache`)."""
  base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
  return pathlib.Path(base) / "nasjax"
