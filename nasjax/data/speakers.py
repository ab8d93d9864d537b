"""Who speaks: recordings as cepstral frames, summarised to fixed features.

Stands for the survey's "10 speakers", which is not public. Each recording's real frames
are cut into equal spans; a span is described by mean and standard deviation of every
coefficient, and the recording by the mean size of its frame-to-frame changes.
"""

import os

import numpy as np

from nasjax.core.types import InputError
from nasjax.data import base, tabular_files

_KEYS = ("x", "n_frames", "speaker")


def load(
  path: str | os.PathLike | None,
  *,
  segments: int = 4,
  seed: int = 0,
  valid_fraction: float = 0.2,
  test_fraction: float = 0.2,
) -> base.Dataset:
  """The speaker task from an npz.

  Args:
    path: an npz with `x [N, frames, coefficients]`, `n_frames [N]`, `speaker [N]`, and
      optionally `is_test [N]`, which then is the test split.
    segments: spans of a recording.
    seed: draws the splits.
    valid_fraction: of the rows that are not test.
    test_fraction: of all rows, without `is_test`.

  Raises:
    InputError: a missing file or array, or shapes that do not fit.
  """
  if not path:
    raise InputError("which recordings? --config.data.path=speakers.npz")
  if segments < 1:
    raise InputError(f"--config.data.segments must be positive, got {segments}")
  base.check_options(None, valid_fraction, test_fraction)
  file = tabular_files.check_path(path)
  arrays = tabular_files.read_npz(file)
  missing = [name for name in _KEYS if name not in arrays]
  if missing:
    raise InputError(f"{file} lacks the arrays {', '.join(missing)}")
  x, n_frames, speaker = (arrays[name] for name in _KEYS)
  if x.ndim != 3 or not x.size or not n_frames.shape == speaker.shape == x.shape[:1]:
    raise InputError(
      f"{file}: x must be [recordings, frames, coefficients] with one n_frames and one "
      f"speaker each; got {x.shape}, {n_frames.shape} and {speaker.shape}"
    )
  if n_frames.dtype.kind not in "iu" or x.dtype.kind not in "iuf":
    raise InputError(f"{file}: x must be numbers and n_frames whole numbers")
  if not np.isfinite(x).all():
    bad = np.flatnonzero(~np.isfinite(x).all((1, 2)))
    raise InputError(f"{file}: x is not finite in recording {bad[0] + 1}")
  if n_frames.min() < 1 or n_frames.max() > x.shape[1]:
    raise InputError(f"{file}: n_frames must be between 1 and {x.shape[1]}")
  coefficients = range(x.shape[2])
  parts = [f"{what}_{i}" for what in ("mean", "std") for i in range(segments)]
  names = [f"{part}[{c}]" for part in (*parts, "change") for c in coefficients]
  with tabular_files.naming(file):
    return base.build(
      "speakers",
      {"frames": summarise(x, n_frames, segments)},
      {"frames": "numeric"},
      base.encode_target(speaker, "multiclass"),
      seed=seed,
      valid_fraction=valid_fraction,
      test_fraction=test_fraction,
      test_mask=arrays.get("is_test"),
      names={"frames": names},
    )


def summarise(x: np.ndarray, n_frames: np.ndarray, segments: int) -> np.ndarray:
  """Fixed features of recordings.

  Args:
    x: `[N, frames, M]`; frames at and after `n_frames` are padding.
    n_frames: `[N]`.
    segments: S spans.

  Returns:
    `[N, (2 S + 1) M]`: means of the spans, standard deviations, mean absolute changes.
  """
  rows = []
  for recording, count in zip(x, n_frames):
    frames = recording[:count].astype(np.float64)
    edges = np.linspace(0, count, segments + 1)
    # A span of a very short recording still holds the frame it begins in.
    spans = [
      frames[int(low) : max(int(np.ceil(high)), int(low) + 1)]
      for low, high in zip(edges[:-1], edges[1:])
    ]
    changes = np.abs(np.diff(frames, axis=0)).mean(0) if count > 1 else 0 * frames[0]
    parts = [s.mean(0) for s in spans] + [s.std(0) for s in spans] + [changes]
    rows.append(np.concatenate(parts))
  return np.asarray(rows, np.float32)
