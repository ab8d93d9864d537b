"""Scalars over a run: `metrics.jsonl`, and TensorBoard's event files beside it."""

import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorboardX

from nasjax.results import records


class MetricsWriter:
  """Writes to `<workdir>/metrics.jsonl` and `<workdir>/tensorboard/`."""

  def __init__(self, workdir: str | os.PathLike):
    folder = pathlib.Path(workdir)
    self._lines = records.RecordWriter(folder / "metrics.jsonl")
    self._board = tensorboardX.SummaryWriter(str(folder / "tensorboard"))

  def write(self, step: int, values: Mapping[str, float | str]) -> None:
    """One line with `step` and `time`; numbers go to TensorBoard too.

    Args:
      step: children evaluated so far.
      values: by name, such as `search/best_score`.
    """
    self._lines.write({"step": step, "time": time.time(), **values})
    for name, value in values.items():
      if not isinstance(value, str):
        self._board.add_scalar(name, float(np.asarray(value)), step)

  def close(self) -> None:
    """Flushes both."""
    self._lines.close()
    self._board.close()


def read(workdir: str | os.PathLike) -> list[dict[str, Any]]:
  """The lines of `metrics.jsonl`, oldest first; none when it is absent."""
  return records.read(pathlib.Path(workdir) / "metrics.jsonl")
