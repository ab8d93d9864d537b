"""The folder of a run: what is in it already, and what becomes of that."""

import errno
import os
import pathlib
import shutil
from typing import Any

from nasjax.core import config as config_lib
from nasjax.core.types import InputError
from nasjax.results import export
from nasjax.results import records as records_lib
from nasjax.runtime import CHECKPOINTS, CHILDREN, LOCK, LOG, STAGES, Run

# What a run writes beside config.json; a new run removes these and nothing else.
_FILES = ("summary.json", STAGES, "metrics.jsonl", "report.html", "report.md")
_RECORDS = ("records", "control_records")
_DATA = "data"  # entry of config.json: digest of what the run learns from
_EXPORTS = ("best", "last_good")  # folders of networks


def open_run(
  workdir: str | os.PathLike,
  experiment: str,
  seed: int,
  config: Any,
  *,
  smoke: bool = False,
  overwrite: bool = False,
  command: str = "",
  kept: bool = True,
) -> Run:
  """Opens a run directory; nothing in it is touched before `Run.begin`.

  Args:
    workdir: the directory; made when absent.
    experiment: the experiment's name.
    seed: the run's seed.
    config: the experiment's frozen dataclass.
    smoke: whether it is the smoke version.
    overwrite: throw away a run that is there (only files that a run writes).
    command: kept for the report.
    kept: the experiment writes into the directory; if not, nothing is asked of it.

  Returns:
    The `Run`. What becomes of a run that is there is said in the body.

  Raises:
    InputError: the directory holds something else, or cannot be read.
  """
  folder = pathlib.Path(workdir)
  identity: dict[str, Any] = {
    "experiment": experiment,
    "seed": seed,
    "smoke": smoke,
    "fingerprint": config_lib.fingerprint(config),
    "config": config_lib.to_dict(config),
  }
  run = Run(folder, experiment, seed, smoke, identity["config"], command)
  run.overwrite = overwrite
  if not kept:
    return run
  # What becomes of a run that is in the folder; the first that holds:
  # 1. --overwrite: everything that a run writes goes, a new run starts.
  # 2. Nothing was measured in it: the same.
  # 3. It is another experiment, seed or config in what matters: refused, with fields.
  # 4. It is finished: nothing is touched, its result is shown.
  # 5. It has checkpoints, or what a stage gave, and the experiment resumes: it goes on
  #    if the data are those that it began with. Each search does from its newest
  #    checkpoint that can be read (an older one if that is damaged, with a warning),
  #    what was recorded later is forgotten, and what a stage gave is kept.
  # 6. Else it starts again, and its records so far are kept under a number.
  try:
    before = _read_before(folder)
    if not overwrite and not _recorded(folder):
      before = {}  # it stopped before anything was measured: nothing to protect
    if before and not overwrite:
      _check_same(folder, before, identity, config_lib.immaterial(config))
      run.already_finished = run.read_summary().get("status") == "finished"
    _check_writable(folder)
  except OSError as error:
    raise InputError(f"cannot use --workdir {folder}: {error.strerror}") from None

  def prepare(resumes: bool, data: int | None) -> list[str]:
    kept = []
    run.resumed = bool(resumes and before and not overwrite and _progressed(folder))
    if run.resumed and before.get(_DATA, data) != data:
      raise InputError(
        f"the data have changed since the run in {folder} began; give another folder, "
        "or --overwrite"
      )
    if before and not run.resumed:
      kept = [] if overwrite else _keep_records(folder)
      _clear(folder, everything=overwrite)
    told = identity if data is None else {**identity, _DATA: data}
    records_lib.write_json(folder / "config.json", told)
    return kept

  run._prepare = prepare
  return run


def _check_writable(folder: pathlib.Path) -> None:
  """Raises OSError when the folder, or the first parent that exists, takes no file."""
  folder = folder.absolute()
  while not folder.exists():
    folder = folder.parent
  if not folder.is_dir():
    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
  if os.statvfs(folder).f_flag & os.ST_RDONLY:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))
  if not os.access(folder, os.W_OK | os.X_OK):
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def _read_before(folder: pathlib.Path) -> dict[str, Any]:
  """The `config.json` of the run that the folder holds; nothing if it is new."""
  if folder.exists() and not folder.is_dir():
    raise InputError(f"--workdir {folder} is a file; give a folder")
  before = records_lib.read_json(folder / "config.json")
  # Many tools write a config.json: one that names no experiment is not ours to replace.
  is_run = {"experiment", "seed", "config"} <= before.keys()
  ours = {folder / LOCK, folder / CHECKPOINTS / CHILDREN}  # also of one of a team
  found = (path for path in folder.rglob("*") if not {path, *path.parents} & ours)
  if not is_run and any(path != folder / CHECKPOINTS for path in found):
    raise InputError(f"--workdir {folder} is not empty and holds no run; give another")
  return before


def _recorded(folder: pathlib.Path) -> bool:
  """Whether the folder holds anything that a run measured."""
  names = ("summary.json", *(f"{name}.jsonl" for name in _RECORDS))
  return _progressed(folder) or any((folder / name).exists() for name in names)


def _progressed(folder: pathlib.Path) -> bool:
  """Whether it holds what a run can go on from."""
  checkpoints = (folder / CHECKPOINTS).glob("*/*")
  return (folder / STAGES).exists() or any(checkpoints)


def _check_same(
  folder: pathlib.Path, before: dict, identity: dict, immaterial: set[str]
) -> None:
  # Equal configs have equal fingerprints: it would say nothing to the user.
  found = {**before, "fingerprint": identity["fingerprint"]}
  found.pop(_DATA, None)  # looked at when they are there
  differing = [
    line
    for line in config_lib.differences(found, identity)
    if line.partition(":")[0].removeprefix("config.") not in immaterial
  ]
  if differing:
    more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
    raise InputError(
      f"--workdir {folder} holds another run ({'; '.join(differing[:3])}{more}); "
      "give another folder, or --overwrite"
    )


def _keep_records(folder: pathlib.Path) -> list[str]:
  kept = []
  for name in _RECORDS:
    path = folder / f"{name}.jsonl"
    if path.exists() and path.stat().st_size:
      number = 1
      while (folder / f"{name}.{number}.jsonl").exists():
        number += 1
      path.rename(folder / f"{name}.{number}.jsonl")
      kept.append(f"{name}.{number}.jsonl")
  return kept


def _clear(folder: pathlib.Path, everything: bool) -> None:
  """Removes what the run before wrote; its log and kept records only on request."""
  paths = [folder / name for name in _FILES]
  paths += [folder / f"{name}.jsonl" for name in _RECORDS]
  exported = (*export.FILES, *export.PORTABLE_FILES)
  paths += [folder / part / name for part in _EXPORTS for name in exported]
  paths += (folder / "tensorboard").glob("events.out.tfevents.*")
  if everything:
    paths.append(folder / LOG)
    paths += (folder / "parts").glob("*/*.npz")
    for name in _RECORDS:
      numbered = folder.glob(f"{name}.*.jsonl")
      paths += [path for path in numbered if path.suffixes[0][1:].isdigit()]
  for path in paths:
    path.unlink(missing_ok=True)
  shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
