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
  """Writes to `<workdir>/metrics.jsonl` and `<workdir>/tensorboard/`.

  The lines are what counts: where a run goes on, another event file with all of them
  takes the place of those before, so that TensorBoard shows no step twice.
  """

  def __init__(self, workdir: str | os.PathLike):
    folder = pathlib.Path(workdir)
    before = read(folder)
    self._lines = records.RecordWriter(folder / "metrics.jsonl")
    # Readers forget what earlier event files have from that step on.
    self._board = tensorboardX.SummaryWriter(
      str(folder / "tensorboard"), purge_step=0 if before else None
    )
    for line in before:
      values = {name: v for name, v in line.items() if name not in ("step", "time")}
      self._show(line["step"], line["time"], values)

  def write(self, step: int, values: Mapping[str, float | str]) -> None:
    """One line with `step` and `time`; numbers go to TensorBoard too.

    Args:
      step: children evaluated so far.
      values: by name, such as `search/best_score`.
    """
    now = time.time()
    self._lines.write({"step": step, "time": now, **values})
    self._show(step, now, values)

  def _show(self, step: int, now: float, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
      if not isinstance(value, str):
        number = float("nan") if value is None else float(np.asarray(value))
        self._board.add_scalar(name, number, step, now)

  def close(self) -> None:
    """Flushes both."""
    self._lines.close()
    self._board.close()


def read(workdir: str | os.PathLike) -> list[dict[str, Any]]:
  """The lines of `metrics.jsonl`, oldest first; none when it is absent."""
  return records.read(pathlib.Path(workdir) / "metrics.jsonl")
