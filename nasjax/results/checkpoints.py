"""Checkpoints of a state as it changes, kept by orbax.

Saving is asynchronous: the state is copied, and written while the work goes on. A step
that was being written when the process died is not there for who reads.
"""

import contextlib
import functools
import logging
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from nasjax.core import interrupts, trees
from nasjax.core.types import InputError

_KEPT = 3


class Checkpoints:
  """The newest three states of one folder; a context manager.

  Leaving the context waits for what is being written.

  Attributes:
    seconds: that `save` and `close` have kept their callers.
  """

  def __init__(
    self,
    folder: str | os.PathLike,
    warn: Callable[[str], None] = lambda message: None,
  ):
    """Args:
    folder: made when something is first saved.
    warn: called with a line about a checkpoint that cannot be read.
    """
    self._folder, self._warn = pathlib.Path(folder).absolute(), warn
    self._manager: Any = None
    self.seconds = 0.0

  def save(self, step: int, state: Any) -> None:
    """Begins to write a state; waits for the one before, if that is not done.

    Args:
      step: rises from call to call.
      state: a pytree of arrays and numbers.

    Raises:
      InputError: it, or the one before, could not be written.
    """
    with self._said():
      orbax = _orbax()
      if self._manager is None:
        self._folder.mkdir(parents=True, exist_ok=True)
        options = orbax.CheckpointManagerOptions(
          max_to_keep=_KEPT, create=False, multiprocessing_options=_alone()
        )
        self._manager = orbax.CheckpointManager(self._folder, options=options)
      # A copy: what is written meanwhile may be donated to the next step.
      state = {"state": jax.tree.map(_copied, trees.storable(state))}
      self._manager.save(step, args=orbax.args.StandardSave(state), force=True)

  def restore(self, template: Any) -> tuple[int, Any] | None:
    """The newest state that can be read, and its step; None if there is none.

    Whatever is newer cannot be read, and is removed with a warning.

    Args:
      template: see `core.trees.like`.

    Raises:
      InputError: there are checkpoints, and none of them can be read.
    """
    steps = sorted((int(p.name) for p in self._numbered()), reverse=True)
    for step in steps:
      try:
        alone = _alone()
        with _orbax().StandardCheckpointer(multiprocessing_options=alone) as reader:
          stored = reader.restore(self._folder / str(step) / "default")
        state = trees.like(template, stored["state"])
      except Exception as error:  # whatever a damaged file makes a reader raise
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        self._warn(
          f"checkpoint {step} cannot be read ({reason}); trying the one before"
        )
        continue
      self._forget_after(step)
      return step, state
    if steps:
      raise InputError(
        f"no checkpoint in {self._folder} can be read; --overwrite starts again"
      )
    return None

  def clear(self) -> None:
    """Removes all, when nothing will go on from here."""
    self.close()
    self._forget_after(-1)

  def _forget_after(self, step: int) -> None:
    """Removes what is newer, and what was not written to its end."""
    if not self._folder.is_dir():
      return
    for path in self._folder.iterdir():
      if not path.name.isdecimal() or int(path.name) > step:
        shutil.rmtree(path, ignore_errors=True)

  def _numbered(self) -> Iterator[pathlib.Path]:
    if self._folder.is_dir():
      yield from (path for path in self._folder.iterdir() if path.name.isdecimal())

  def close(self) -> None:
    """Waits for what is being written.

    Raises:
      InputError: it could not be written.
    """
    if self._manager is None:
      return
    manager, self._manager = self._manager, None
    with self._said():
      manager.wait_until_finished()
      manager.close()

  @contextlib.contextmanager
  def _said(self) -> Iterator[None]:
    start = time.perf_counter()
    try:
      with interrupts.held():  # half a save leaves threads that wait for the other half
        yield
    except InputError:
      raise
    except Exception as error:
      reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
      raise InputError(
        f"cannot write a checkpoint into {self._folder}: {reason}; what was saved "
        "before is kept: with room for it the same command goes on"
      ) from error
    finally:
      self.seconds += time.perf_counter() - start

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, *_) -> None:
    self.close()


def _alone() -> Any:
  """orbax's options by which this process waits for no other: of several, one has the
  state."""
  options = _orbax().options.MultiprocessingOptions
  me = jax.process_index()
  return options(me, {me}, str(me)) if jax.process_count() > 1 else options()


def _copied(leaf: Any) -> Any:
  if not isinstance(leaf, jax.Array):
    return leaf
  # Of several processes orbax takes no array that one of them alone has.
  return np.array(leaf) if jax.process_count() > 1 else leaf.copy()


@functools.cache
def _orbax() -> Any:
  """orbax, which takes a second to import and logs what concerns nobody.

  Of a save that fails it raises one error. asyncio would show those of all its parts,
  and tensorstore that nobody waits for the others any more.
  """
  import orbax.checkpoint

  logging.getLogger("absl").setLevel(logging.CRITICAL)
  logging.getLogger("asyncio").addFilter(_is_retrieved)
  show = sys.unraisablehook

  def shown(unraisable: Any) -> None:
    if str(unraisable.exc_value) != "Event loop is closed":
      show(unraisable)

  sys.unraisablehook = shown
  return orbax.checkpoint


def _is_retrieved(record: logging.LogRecord) -> bool:
  return "exception was never retrieved" not in record.getMessage()
