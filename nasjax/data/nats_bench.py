"""NATS-Bench's topology space: from its authors' files to one compact table.

Dong, Liu, Musial and Gabrys 2021, "NATS-Bench: Benchmarking NAS Algorithms for
Architecture Topology and Size" (the same cells as NAS-Bench-201, Dong and Yang 2020).

    python -m nasjax.data.nats_bench NATS-tss-v1_0-3ffb9-simple nats_tss.npz

reads their folder: `meta.pickle.pbz2`, which lists the 15,625 cells, and one record a
cell, `000000.pickle.pbz2` to `015624.pickle.pbz2`. A record takes 13 ms of a core (half
of that is bz2), all of them three and a half minutes. As many processes read as there
are cores: they share nothing, and cost a second each to start.

The files are pickles, which `plain_pickle` reads as data: a file that would run
anything is refused.
"""

import argparse
import collections
import concurrent.futures
import itertools
import multiprocessing
import os
import pathlib
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

import numpy as np

from nasjax.core.types import InputError
from nasjax.data.plain_pickle import naming, read_plain, shown

OP_NAMES = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))

_NUM_CELLS = len(OP_NAMES) ** len(EDGES)
_META = "meta.pickle.pbz2"
_CELL = re.compile(
  r"\|(\w+)~0\|\+\|(\w+)~0\|(\w+)~1\|\+\|(\w+)~0\|(\w+)~1\|(\w+)~2\|", re.ASCII
)
# Our name: (network, its split) of the validation accuracy, and of the test accuracy.
# On CIFAR-10 these are two networks: "cifar10-valid" has learned from one half of the
# training images and is validated on the other, "cifar10" has learned from both.
_DATASETS = {
  "cifar10": (("cifar10-valid", "x-valid"), ("cifar10", "ori-test")),
  "cifar100": (("cifar100", "x-valid"), ("cifar100", "x-test")),
  "imagenet16": (("ImageNet16-120", "x-valid"), ("ImageNet16-120", "x-test")),
}
# A process takes as long to start (it imports JAX) as a hundred records to read.
_ROWS_WORTH_PROCESSES = 512


class Converted(NamedTuple):
  """What a conversion has written.

  Attributes:
    path: the npz.
    rows: how many cells are in it.
    trials: how many cells have how many networks trained for 200 epochs, by number of
      networks.
  """

  path: pathlib.Path
  rows: int
  trials: dict[int, int]


def convert(
  folder: str | os.PathLike,
  path: str | os.PathLike,
  *,
  rows: Iterable[int] | None = None,
  workers: int | None = None,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Converted:
  """Writes NATS-Bench's topology space as an npz; the whole file or nothing.

  The arrays, for N cells in NATS-Bench's order: `ops [N, 6]` int8, numbers into
  `op_names`, over `edges [6, 2]`; `n_seeds [N]`; and of each data set d of cifar10,
  cifar100 and imagenet16 (ImageNet16-120), float32, means over the training seeds:

  * `d_valid [N]`, `d_test [N]`: percent after 200 epochs; `ep12_d_valid`,
    `ep12_d_test`: after the schedule of 12 epochs.
  * `d_valid_per_seed [N, S]`: by ascending seed, NaN where a cell has fewer.
  * `d_train_seconds [N]`: of the 200 epochs of the networks behind `d_valid`.
  * `d_params_m [N]`, `d_flops_m [N]`: millions, of the same networks.

  Args:
    folder: the authors' "-simple" folder.
    path: the npz to write; one that is there is replaced.
    rows: which cells, in which order; the default is all, and all must be there.
    workers: how many processes read; the default is one a core, or none for few rows.
      A script that is not guarded by `if __name__ == "__main__"` needs `workers=1`.
    progress: called with the number of records read and that of all.

  Raises:
    InputError: a folder or record that is not NATS-Bench's, lacks something or asks
      for more than plain data; records that are missing; a path that cannot be written.
  """
  folder, path = pathlib.Path(folder), pathlib.Path(path)
  if workers is not None and workers < 1:
    raise InputError(f"workers must be positive, got {workers}")
  if path.suffix != ".npz" or path.is_dir():
    raise InputError(f"{path} is no name of a file to write: it must end in .npz")
  archs = _read_meta(folder)
  indices = list(range(_NUM_CELLS) if rows is None else rows)
  for row in indices:
    if not 0 <= row < _NUM_CELLS:
      raise InputError(f"row {row} is not one of NATS-Bench's {_NUM_CELLS:,}")
  if not indices:
    raise InputError("rows is empty: which cells are to be converted?")
  present = set(os.listdir(folder))
  missing = [row for row in indices if _file_name(row) not in present]
  if missing:
    raise InputError(
      f"{folder} lacks {len(missing):,} of {len(indices):,} records; the first is "
      f"{_file_name(missing[0])} (row {missing[0]})"
    )
  try:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
  except OSError as error:
    raise InputError(f"{path} cannot be written: {error.strerror}") from None
  try:
    with os.fdopen(descriptor, "wb") as file:
      found = []
      jobs = [(folder / _file_name(row), row, archs[row]) for row in indices]
      for values in _read_all(jobs, workers):
        found.append(values)
        progress(len(found), len(indices))
      arrays = _table([archs[row] for row in indices], found)
      np.savez_compressed(file, **arrays)
    os.chmod(temporary, 0o644)  # mkstemp is for the owner alone
    os.replace(temporary, path)
  except BaseException:
    pathlib.Path(temporary).unlink(missing_ok=True)
    raise
  trials = collections.Counter(arrays["n_seeds"].tolist())
  return Converted(path, len(indices), dict(sorted(trials.items())))


def _file_name(row: int) -> str:
  return f"{row:06d}.pickle.pbz2"


def _read_meta(folder: pathlib.Path) -> list[str]:
  """The cells of the benchmark as its authors write them, by row."""
  if not folder.is_dir():
    raise InputError(
      f"{folder} is no folder: unpack NATS-Bench's NATS-tss-v1_0-3ffb9-simple.tar"
    )
  file = folder / _META
  if not file.is_file():
    raise InputError(f"{folder} is no folder of NATS-Bench: it lacks {_META}")
  archs = _entry(read_plain(file), "meta_archs", file, list)
  with naming(file):
    cells = {tuple(parse(arch)) for arch in archs}
  if len(cells) != _NUM_CELLS or len(archs) != _NUM_CELLS:
    raise InputError(f"{file} lists {len(cells):,} cells, not {_NUM_CELLS:,}")
  return archs


def parse(arch: str) -> list[int]:
  """The operation of each of `EDGES`, as numbers into `OP_NAMES`.

  Args:
    arch: as NATS-Bench writes a cell, `|op~0|+|op~0|op~1|+|op~0|op~1|op~2|`.

  Raises:
    InputError: no such cell.
  """
  match = _CELL.fullmatch(arch) if isinstance(arch, str) else None
  if not match or not set(match.groups()) <= set(OP_NAMES):
    raise InputError(f"{shown(arch)} is no cell of NATS-Bench's topology space")
  return [OP_NAMES.index(name) for name in match.groups()]


def _read_all(jobs: Sequence[tuple], workers: int | None) -> Iterator[dict[str, Any]]:
  """The values of every record, in the order of the jobs."""
  if workers is None:
    workers = os.cpu_count() or 1 if len(jobs) >= _ROWS_WORTH_PROCESSES else 1
  if workers == 1:
    yield from itertools.starmap(_read_record, jobs)
    return
  # A fork would copy the locks of JAX's threads.
  context = multiprocessing.get_context("spawn")
  with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
    try:
      yield from pool.map(_read_record, *zip(*jobs), chunksize=16)
    except BrokenProcessPool:
      raise InputError(
        "a process that was reading records died (memory, or a script without "
        '`if __name__ == "__main__"`); one worker reads in this process'
      ) from None


def _read_record(file: pathlib.Path, row: int, arch: str) -> dict[str, Any]:
  """The columns of one cell: numbers, and lists with one number a seed."""
  record = read_plain(file)
  values: dict[str, Any] = {}
  for epochs, prefix in ((200, ""), (12, "ep12_")):
    results = _entry(record, str(epochs), file, dict)
    if results.get("arch_index") != row or results.get("arch_str") != arch:
      raise InputError(f"{file} is not the record of row {row} of {_META}")
    for name, (valid, test) in _DATASETS.items():
      trials = _trials(results, valid[0], epochs, file)
      per_seed = [_accuracy(trial, valid[1], epochs, file) for trial in trials]
      values[f"{prefix}{name}_valid"] = np.mean(per_seed)
      values[f"{prefix}{name}_test"] = np.mean(
        [
          _accuracy(trial, test[1], epochs, file)
          for trial in _trials(results, test[0], epochs, file)
        ]
      )
      if epochs == 200:
        values[f"{name}_valid_per_seed"] = per_seed
        values[f"{name}_train_seconds"] = np.mean(
          [_seconds(trial, epochs, file) for trial in trials]
        )
        for column, key in (("params_m", "params"), ("flops_m", "flop")):
          numbers = [_number(trial, key, file) for trial in trials]
          values[f"{name}_{column}"] = np.mean(numbers)
  return values


def _trials(results: dict, network: str, epochs: int, file: pathlib.Path) -> list[dict]:
  """The trained networks of one kind, by ascending seed."""
  seeds = _entry(_entry(results, "dataset_seed", file, dict), network, file, list)
  if not seeds or not all(type(seed) is int for seed in seeds):
    raise InputError(f"{file}: {network} has no seeds at {epochs} epochs")
  every = _entry(results, "all_results", file, dict)
  trials = [_entry(every, (network, seed), file, dict) for seed in sorted(set(seeds))]
  for trial in trials:
    if trial.get("epochs") != epochs:
      raise InputError(f"{file}: a {network} was not trained for {epochs} epochs")
  return trials


def _accuracy(trial: dict, split: str, epochs: int, file: pathlib.Path) -> float:
  """Percent of a split after the last epoch."""
  key = f"{split}@{epochs - 1}"
  percent = _number(_entry(trial, "eval_acc1es", file, dict), key, file)
  if percent > 100:
    raise InputError(f"{file}: {key} is {percent:g} percent")
  return percent


def _seconds(trial: dict, epochs: int, file: pathlib.Path) -> float:
  """What training took, all epochs together."""
  times = _entry(trial, "train_times", file, dict)
  return sum(_number(times, epoch, file) for epoch in range(epochs))


def _entry(holder: Any, key: Any, file: pathlib.Path, kind: type) -> Any:
  """What is under a key, which must be there and of a kind."""
  if not isinstance(holder, dict) or not isinstance(holder.get(key), kind):
    raise InputError(f"{file} is no record of NATS-Bench: it lacks {key!r}")
  return holder[key]


def _number(holder: dict, key: Any, file: pathlib.Path) -> float:
  """The number under a key."""
  number = holder.get(key)
  # A bool is an int to isinstance.
  if (
    isinstance(number, int | float) and type(number) is not bool and 0 <= number < 1e12
  ):
    return float(number)
  raise InputError(
    f"{file} is no record of NATS-Bench: {key!r} is no number from 0 to 1e12"
  )


def _table(archs: Sequence[str], found: Sequence[dict]) -> dict[str, Any]:
  """The columns of all cells."""
  arrays: dict[str, Any] = {
    "ops": np.array([parse(arch) for arch in archs], np.int8),
    "op_names": np.array(OP_NAMES),
    "edges": np.array(EDGES, np.int8),
  }
  counts = [len(values["cifar10_valid_per_seed"]) for values in found]
  arrays["n_seeds"] = np.array(counts, np.int8)
  for name in found[0]:
    columns = [np.atleast_1d(values[name]) for values in found]
    table = np.full((len(found), max(map(len, columns))), np.nan, np.float32)
    for line, numbers in zip(table, columns):
      line[: len(numbers)] = numbers
    arrays[name] = table if name.endswith("_per_seed") else table[:, 0]
  return arrays


def main(argv: Sequence[str] | None = None) -> int:
  """The command: converts a folder, with one line for what is wrong (status 2)."""
  parser = argparse.ArgumentParser(
    prog="python -m nasjax.data.nats_bench",
    description="NATS-Bench's topology space as one npz.",
  )
  parser.add_argument("folder", help="the authors' folder, NATS-tss-v1_0-*-simple")
  parser.add_argument("out", help="the npz to write")
  parser.add_argument("--workers", type=int, help="processes (default: one a core)")
  args = parser.parse_args(argv)
  shows = sys.stderr.isatty()

  def progress(done: int, total: int) -> None:
    if shows and (done % 50 == 0 or done == total):
      end = "\n" if done == total else ""
      print(f"\r{done:,} of {total:,} records", end=end, file=sys.stderr, flush=True)

  try:
    done = convert(args.folder, args.out, workers=args.workers, progress=progress)
  except InputError as error:
    print(f"{parser.prog}: {error}", file=sys.stderr)
    return 2
  seeds = ", ".join(f"{cells:,} with {n} seeds" for n, cells in done.trials.items())
  print(f"{done.path}: {done.rows:,} cells ({seeds})")
  return 0


if __name__ == "__main__":
  sys.exit(main())
