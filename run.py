"""Runs an experiment: `python run.py --experiment=mlpnas_digits`.

Flags:
  --experiment=NAME   which one; without it, and with --help, the list of them
  --workdir=FOLDER    where everything goes (default runs/NAME, runs/NAME_seed1)
  --seed=0            of everything random
  --smoke             the seconds-long version
  --overwrite         throw away a run that is in the folder already
  --compilation_cache=FOLDER|off  where compiled programs are kept between runs
                      (default: nasjax/programs in the user's cache folder)
  --config.FIELD=...  any field of the experiment's config; --help lists them
"""

import ast
import difflib
import errno
import importlib
import os
import pathlib
import shlex
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from absl import flags

from nasjax.core import config as config_lib
from nasjax.core import interrupts
from nasjax.core.types import InputError
from nasjax.parallel import supervisor

_EXPERIMENTS = pathlib.Path(__file__).resolve().parent / "experiments"
_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_WIDEST_LEFT = 60  # characters of help's first column
_MAX_SEED = 2**32 - 1  # what NumPy's and scikit-learn's generators take
# Flags that start from another configuration, in the order in which they are applied:
# flag -> (what an experiment calls its table of them, what help says).
_STARTS = {
  "config.preset": ("PRESETS", "start from a named configuration"),
  "config.scale": ("SCALES", "the same at another size"),
}


def experiments() -> dict[str, str]:
  """Name -> first docstring line of every experiment; none of them is imported."""
  found = {}
  for path in sorted(_EXPERIMENTS.glob("*.py")):
    if path.stem.startswith(("_", "common")):
      continue
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {getattr(node, "name", None) for node in tree.body}
    for node in tree.body:
      if isinstance(node, ast.Assign):
        names |= {getattr(target, "id", None) for target in node.targets}
    if {"run", "Config"} <= names:
      found[path.stem] = (ast.get_docstring(tree) or "").split("\n")[0]
  return found


def _given(arguments: Sequence[str], flag: str) -> str | None:
  """The value of a flag, before those of the experiment are known."""
  given = None
  for argument, following in zip(arguments, [*arguments[1:], ""]):
    name, equals, value = argument.lstrip("-").partition("=")
    if argument.startswith("-") and name == flag:
      given = value if equals else following
  return given


def _check_name(name: str, known: dict[str, str]) -> None:
  if name not in known:
    near = difflib.get_close_matches(name, known, 1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise InputError(
      f"unknown experiment {name!r}.{hint} There are: {', '.join(known)}"
    )


def _common_flags() -> flags.FlagValues:
  flag_values = flags.FlagValues()
  options: Any = {"flag_values": flag_values}
  flags.DEFINE_string("experiment", None, "which experiment", **options)
  flags.DEFINE_string("workdir", None, "where everything goes", **options)
  flags.DEFINE_integer(
    "seed", 0, "of everything random", lower_bound=0, upper_bound=_MAX_SEED, **options
  )
  flags.DEFINE_boolean("smoke", False, "the seconds-long version", **options)
  flags.DEFINE_boolean("overwrite", False, "throw away a run that is there", **options)
  flags.DEFINE_string("compilation_cache", None, "folder, or off", **options)
  return flag_values


def _parse(arguments: Sequence[str], flag_values: flags.FlagValues) -> None:
  try:
    rest = flag_values(["run.py", *arguments])
  except flags.UnrecognizedFlagError as error:
    raise InputError(_unknown_flag(error.flagname, list(flag_values))) from None
  except flags.Error as error:
    raise InputError(str(error)) from None
  if len(rest) > 1:
    raise InputError(f"unexpected argument {rest[1]!r}; flags look like --name=value")


def _unknown_flag(name: str, known: list[str]) -> str:
  """One line with the nearest flag; its last part alone is enough to be near."""
  parts = {flag.rpartition(".")[2]: flag for flag in known}
  near = difflib.get_close_matches(name, known, 1, 0.8)
  near = near or difflib.get_close_matches(name.rpartition(".")[2], parts, 1, 0.7)
  hint = f"did you mean --{parts.get(near[0], near[0])}?" if near else "see --help"
  if name in _STARTS:
    hint = f"this experiment has no {_STARTS[name][0].lower()}"
  return f"unknown flag --{name}; {hint}"


def _starts(module: Any) -> dict[str, dict[str, Any]]:
  """Flag -> name -> function of a config, for the flags that an experiment has."""
  tables = {flag: getattr(module, table, {}) for flag, (table, _) in _STARTS.items()}
  return {flag: table for flag, table in tables.items() if table}


def _help(name: str | None, known: dict[str, str]) -> str:
  usage = (__doc__ or "").strip()
  if name is None:
    return "\n".join([usage, "", "Experiments:", *_aligned(list(known.items()))])
  module = importlib.import_module(f"experiments.{name}")
  rows = [
    (f"--{flag}=NAME", f"{_STARTS[flag][1]} ({' | '.join(table)})")
    for flag, table in _starts(module).items()
  ]
  rows += config_lib.describe(module.Config())
  text, common = (module.__doc__ or "").strip(), usage.partition("\n\n")[2]
  lines = [text, "", common, "", "Config, with its defaults:", *_aligned(rows)]
  return "\n".join(lines)


def _aligned(rows: Sequence[tuple[str, str]]) -> list[str]:
  """Two columns; what is too long for the first has the second on a line of its own."""
  short = [len(left) for left, _ in rows if len(left) <= _WIDEST_LEFT]
  width, lines = max(short, default=0), []
  for left, right in rows:
    if len(left) > _WIDEST_LEFT:
      lines.append(f"  {left}")
      left = ""
    lines.append(f"  {left.ljust(width)}  {right}".rstrip())
  return lines


def _default_workdir(name: str, seed: int, smoke: bool) -> str:
  suffix = (f"_seed{seed}" if seed else "") + ("_smoke" if smoke else "")
  return str(pathlib.Path("runs") / (name + suffix))


def _command(arguments: Sequence[str]) -> str:
  """How to run it again; pasted, it must not throw away the run that it is read in."""
  kept = [word for word in arguments if word.lstrip("-") != "overwrite"]
  return shlex.join(["python", "run.py", *kept])


class Command(NamedTuple):
  """A command line as it was read.

  Attributes:
    experiment: its name.
    module: that has it.
    config: the experiment's frozen dataclass, with what stands on the line.
    flags: values of the common flags, by name.
  """

  experiment: str
  module: Any
  config: Any
  flags: flags.FlagValues


def read(arguments: Sequence[str]) -> Command:
  """Reads a command line; nothing is run.

  Raises:
    InputError: no experiment, or a flag or a value that it does not have.
  """
  known = experiments()
  name = _given(arguments, "experiment")
  if name is None:
    _parse(arguments, _common_flags())
    raise InputError(f"give --experiment=NAME; there are: {', '.join(known)}")
  _check_name(name, known)
  module = importlib.import_module(f"experiments.{name}")
  starts = _starts(module)
  flag_values = _common_flags()
  config = module.Config()
  config_lib.define_flags(config, flag_values)
  options: Any = {"flag_values": flag_values}
  for flag, table in starts.items():
    flags.DEFINE_enum(flag, None, list(table), _STARTS[flag][1], **options)
  _parse(arguments, flag_values)
  # Precedence: defaults, preset, scale, smoke, then what stands on the line.
  for flag, table in starts.items():
    chosen = flag_values[flag].value
    if chosen is not None:
      config = table[str(chosen)](config)
  if flag_values.smoke:
    config = config.smoke()
  config = config_lib.from_flags(config, flag_values)
  return Command(name, module, config, flag_values)


def _execute(arguments: Sequence[str]) -> int:
  name = _given(arguments, "experiment")
  if not {"--help", "-h", "-help"}.isdisjoint(arguments):
    known = experiments()
    if name is not None:
      _check_name(name, known)
    print(_help(name, known))
    return 0
  is_one_of_several = _given(arguments, "config.distributed") not in (None, "off")
  if is_one_of_several and not supervisor.is_supervised():
    return supervisor.supervise([sys.executable, __file__, *arguments])
  command = read(arguments)
  if not is_one_of_several:
    return _run(arguments, command, None)

  from nasjax.parallel import processes

  place = processes.parse_place(command.config.distributed)
  supervisor.end_with_supervisor()
  if place.coordinator:
    print(
      f"process {place.number} of {place.num_processes}: waits for the others at "
      f"{place.coordinator}",
      file=sys.stderr,
    )
  team = None
  try:
    with processes.joined(place, command.config.heartbeat_seconds) as team:
      return _run(arguments, command, team)
  except KeyboardInterrupt:
    if not (team and team.reason):
      raise
    print(f"error: {team.reason}", file=sys.stderr)  # nobody has interrupted this one
    return interrupts.STATUS


def _run(arguments: Sequence[str], command: Command, team: Any) -> int:
  """Runs an experiment as one process, or as one of a team."""
  name, module, config, flag_values = command

  from nasjax import (  # slow to import: a mistake above has answered by now
    runtime,
    workdir,
  )

  seed, smoke = flag_values.seed, flag_values.smoke
  run = workdir.open_run(
    flag_values.workdir or _default_workdir(name, seed, smoke),
    name,
    seed,
    config,
    smoke=smoke,
    overwrite=flag_values.overwrite,
    command=_command(arguments),
    # Of several processes the first one keeps it.
    kept=getattr(module, "KEEPS_RUN", True) and not (team and team.number),
  )
  run.team = team
  run.compilation_cache = flag_values.compilation_cache
  if run.already_finished:
    summary = run.read_summary()
    result = ""
    if summary.get("best_arch"):
      score, test = summary.get("best_score"), summary.get("test_score")
      result = f": {summary['best_arch']} scored {score:.4f}"
      result += "" if test is None else f", test {test:.4f}"
    print(
      f"{run.workdir} holds this run, finished{result}.\n"
      f"report: {run.workdir / 'report.html'}\n--overwrite runs it again"
    )
    return 0
  if flag_values.compilation_cache != "off":
    runtime.use_compilation_cache(flag_values.compilation_cache)
  try:
    module.run(config, run)
  finally:
    run.close()
  return interrupts.STATUS if run.interrupted else 0


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs the command line; returns the exit status (2 for the user's mistake)."""
  try:
    return _execute(sys.argv[1:] if arguments is None else arguments)
  except InputError as error:
    # A value from the command line or a data file may bring its own line breaks.
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print("interrupted; what was recorded is kept", file=sys.stderr)
    return interrupts.STATUS
  except OSError as error:
    if error.errno not in _CANNOT_WRITE:
      raise
    print(
      f"error: {error.filename or 'cannot write'}: {error.strerror}; what was saved "
      "before is kept, and the same command goes on",
      file=sys.stderr,
    )
    return 2


if __name__ == "__main__":
  interrupts.listen()
  status = main()
  sys.stdout.flush()
  if status:
    # A child may still be training on a worker thread that cannot be stopped.
    os._exit(status)
