import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import pytest

from nasjax import runtime, workdir
from nasjax.core import config as config_lib
from nasjax.core.types import InputError


@dataclasses.dataclass(frozen=True)
class Section:
  rate: float = 0.1
  rounds: int = 3
  widths: tuple[int, ...] = (8, 16)


@dataclasses.dataclass(frozen=True)
class Config:
  strategy: Section = Section()
  label: str = "a"


@pytest.fixture
def start(tmp_path):
  """Opens a run in one folder; keyword arguments change its identity."""
  opened = []

  def start(
    folder=tmp_path / "run",
    experiment="toy",
    seed=0,
    config=None,
    resumes=False,
    **options,
  ):
    config = Config() if config is None else config
    for run in opened:
      run.close()
    opened.append(workdir.open_run(folder, experiment, seed, config, **options))
    if not opened[-1].already_finished:
      opened[-1].begin(resumes)
    return opened[-1]

  yield start
  for run in opened:
    run.close()


def snapshot(folder):
  """Every file's bytes and time of change."""
  paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
  return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


def fill(run, status):
  """What an experiment leaves behind."""
  with run.records() as records:
    records.write({"index": 0, "score": 0.5})
  run.metrics.write(1, {"search/best_score": 0.5})
  run.log("first")
  (run.workdir / "best").mkdir(exist_ok=True)
  (run.workdir / "best" / "genotype.json").write_text("{}")
  (run.workdir / "report.html").write_text("<html>")
  run.write_summary({"status": status, "best_score": 0.5})
  run.close()


def test_a_new_run_writes_its_identity(start, tmp_path):
  run = start(tmp_path / "deep" / "run", seed=3, smoke=True, command="python run.py")
  assert json.loads((run.workdir / "config.json").read_text()) == {
    "experiment": "toy",
    "seed": 3,
    "smoke": True,
    "fingerprint": config_lib.fingerprint(Config()),
    "config": {
      "strategy": {"rate": 0.1, "rounds": 3, "widths": [8, 16]},
      "label": "a",
    },
  }
  # And no temporary file.
  assert sorted(os.listdir(run.workdir)) == [".lock", "config.json"]
  assert run.config == config_lib.to_dict(Config())
  assert (run.smoke, run.command, run.already_finished) == (
    True,
    "python run.py",
    False,
  )
  assert jnp.array_equal(
    jax.random.key_data(run.key), jax.random.key_data(jax.random.key(3))
  )


@pytest.mark.parametrize("status", ["finished", "interrupted"])
@pytest.mark.parametrize(
  ("changed", "expected"),
  [
    ({"experiment": "other"}, "experiment: toy -> other"),
    ({"seed": 1}, "seed: 0 -> 1"),
    ({"smoke": True}, "smoke: False -> True"),
    ({"config": Config(Section(rate=0.2))}, "config.strategy.rate: 0.1 -> 0.2"),
  ],
)
def test_another_run_in_the_folder_is_refused_and_left_alone(
  start, status, changed, expected
):
  folder = start().workdir
  fill(start(), status)
  before = snapshot(folder)
  with pytest.raises(InputError) as error:
    start(**changed)
  assert f"({expected})" in str(error.value) and "--overwrite" in str(error.value)
  assert "\n" not in str(error.value)
  assert snapshot(folder) == before


@pytest.mark.parametrize("left", ["checkpoints/derived/1/state", "stages.json"])
def test_what_a_run_can_go_on_from_says_whose_it_is(tmp_path, left):
  def begun(data, **options):
    run = workdir.open_run(tmp_path / "run", "toy", 0, Config(), **options)
    try:
      run.begin(resumes=True, data=data)
    finally:
      run.close()
    return run

  assert not begun(7).resumed and not begun(8).resumed  # nothing was done yet
  path = tmp_path / "run" / left
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("{}")
  with pytest.raises(InputError, match="the data have changed"):
    begun(7)
  with pytest.raises(InputError, match="rate: 0.1 -> 0.2"):
    workdir.open_run(tmp_path / "run", "toy", 0, Config(Section(rate=0.2)))
  assert begun(8).resumed and path.exists()
  assert not begun(7, overwrite=True).resumed and not path.exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_nothing_is_touched_before_the_run_begins(start, tmp_path, overwrite):
  fill(start(), "interrupted")
  folder = start().workdir
  fill(start(), "finished" if overwrite else "interrupted")
  before = snapshot(folder)
  run = workdir.open_run(folder, "toy", 0, Config(), overwrite=overwrite)
  assert not run.already_finished and snapshot(folder) == before
  run.begin()
  assert snapshot(folder) != before
  workdir.open_run(tmp_path / "new", "toy", 0, Config())
  assert not (tmp_path / "new").exists()


def test_a_run_that_recorded_nothing_gives_way(start):
  folder = start(seed=1).workdir  # say, its data file was not found
  run = start(seed=2)
  assert json.loads((folder / "config.json").read_text())["seed"] == run.seed == 2


def test_at_most_three_differing_fields_are_named(start):
  fill(start(), "interrupted")
  with pytest.raises(InputError) as error:
    start(seed=1, config=Config(Section(0.2, 4, (1,)), "b"))
  assert str(error.value).count("->") == 3 and "and 2 more" in str(error.value)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
  ("name", "text"),
  [
    ("thesis.tex", "x"),
    (".hidden", ""),
    ("config.json", '{"model_type": "another tool"}'),
    ("config.json", "{}"),
    ("config.json", "not json"),
    ("config.json", "[1]"),
  ],
)
def test_a_folder_of_something_else_is_refused(start, tmp_path, name, text, overwrite):
  (tmp_path / name).write_text(text)
  before = snapshot(tmp_path)
  with pytest.raises(InputError) as error:
    start(tmp_path, overwrite=overwrite)
  assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)
  assert snapshot(tmp_path) == before


@pytest.mark.parametrize("name, ours", [("children", True), ("other", False)])
def test_what_another_process_kept_there_does_not_matter(start, tmp_path, name, ours):
  (tmp_path / "checkpoints" / name / "1").mkdir(parents=True)
  (tmp_path / "checkpoints" / name / "1" / "a.npz").write_text("")
  with contextlib.nullcontext() if ours else pytest.raises(InputError, match="no run"):
    assert not start(tmp_path).resumed


def test_a_workdir_that_cannot_be_one_is_refused(start, tmp_path):
  (tmp_path / "file").write_text("x")
  for folder in (tmp_path / "file", tmp_path / "file" / "run", tmp_path / ("n" * 300)):
    with pytest.raises(InputError, match="--workdir"):
      start(folder)
  assert (tmp_path / "file").read_text() == "x"


def test_a_finished_run_is_left_alone(start):
  fill(start(), "finished")
  before = snapshot(start().workdir)
  run = start()
  assert run.already_finished and run.read_summary()["best_score"] == 0.5
  assert snapshot(run.workdir) == before


def test_an_unfinished_run_starts_again_and_keeps_its_records(start):
  folder = start().workdir
  for number in (1, 2):
    fill(start(), "interrupted")
    kept = (folder / "records.jsonl").read_bytes()
    run = start()
    assert not run.already_finished
    assert (folder / f"records.{number}.jsonl").read_bytes() == kept
    assert f"records.{number}.jsonl" in (folder / "log.txt").read_text()
    assert run.read_records() == [] and run.read_summary() == {}
  left = {path.name for path in folder.rglob("*") if path.is_file()}
  kept = {"records.1.jsonl", "records.2.jsonl"}
  assert left == {".lock", "config.json", "log.txt"} | kept
  assert (folder / "log.txt").read_text().count("first") == 2


def saved(run, rounds):
  """Leaves a checkpoint after each of some rounds of two children."""
  with run.checkpoints("search") as checkpoints, run.records() as records:
    for number in range(1, rounds + 1):
      for index in range(2):
        records.write({"index": 2 * number - 2 + index})
      run.metrics.write(2 * number, {"search/best_score": 0.5})
      run.metrics.write(2 * number, {"control/best_score": 0.5})
      checkpoints.save(number, {"count": 2 * number})


def test_an_unfinished_run_with_checkpoints_goes_on(start):
  saved(start(), 3)
  run = start(resumes=True)
  assert run.resumed and "goes on" in (run.workdir / "log.txt").read_text()
  step, state = run.checkpoints("search").restore({"count": 0})
  assert (step, state) == (3, {"count": 6})
  # Whatever was recorded later is not known to the state that goes on.
  run.metrics.write(6, {"control/best_score": 0.7})  # they may be open already
  assert len(run.rewind("records", 4, "search")) == 4 == len(run.read_records())
  run.metrics.write(8, {"control/best_score": 0.7})
  metrics = (run.workdir / "metrics.jsonl").read_text().splitlines()
  left = [(json.loads(line)["step"], "search" in line) for line in metrics]
  assert left == [
    *((2, True), (2, False), (4, True), (4, False)),
    *((6, False), (6, False), (8, False)),
  ]
  with pytest.raises(InputError, match="holds 4 records where a checkpoint has seen 5"):
    run.rewind("records", 5, "search")


def test_who_does_not_resume_or_has_no_checkpoint_starts_again(start):
  saved(start(), 1)
  run = start()
  assert not run.resumed and run.read_records() == []
  assert not (run.workdir / "checkpoints").exists()
  fill(run, "interrupted")
  assert not start(resumes=True).resumed
  saved(start(), 1)
  run = start(resumes=True, overwrite=True)
  assert not run.resumed and not (run.workdir / "checkpoints").exists()


def test_a_stage_is_done_once(start):
  run, calls = start(), []

  def work():
    calls.append(1)
    return {"score": 0.1, "words": None}

  first = run.once("a", work)
  saved(run, 1)
  run = start(resumes=True)
  assert run.once("a", work) == first == {"score": 0.1, "words": None}
  assert len(calls) == 1
  run.once("b", work)
  assert len(calls) == 2


HOLDER = """
import sys, filelock
lock = filelock.FileLock(sys.argv[1])
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""


def test_a_folder_in_use_is_refused_and_left_alone(start):
  fill(start(), "interrupted")
  run = start(experiment="toy")
  run.close()
  before = snapshot(run.workdir)
  command = [sys.executable, "-c", HOLDER, str(run.workdir / ".lock")]
  pipe = subprocess.PIPE
  with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as holder:
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with pytest.raises(InputError, match="in use by another process"):
      start()
    assert snapshot(run.workdir) == before
    holder.kill()  # whoever dies holds nothing
  start()


def test_a_field_that_does_not_matter_may_change(start):
  @dataclasses.dataclass(frozen=True)
  class Sized:
    rate: float = 0.1
    memory: float = config_lib.field(1.0, "of the machine", matters=False)

  saved(start(config=Sized()), 1)
  with pytest.raises(InputError, match=r"config.rate: 0.1 -> 0.2\)"):
    start(config=Sized(0.2, 2.0), resumes=True)
  assert start(config=Sized(0.1, 2.0), resumes=True).resumed


def test_overwrite_removes_only_what_a_run_writes(start):
  fill(start(), "interrupted")
  fill(start(), "finished")  # beside records.1.jsonl
  folder = start().workdir
  foreign = [folder / "notes.txt", folder / "best" / "mine.npz"]
  foreign += [folder / "records.old.jsonl", folder / "tensorboard" / "mine"]
  for path in foreign:
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
  run = start(overwrite=True, seed=1)
  left = {path for path in folder.rglob("*") if path.is_file()}
  assert left == {folder / ".lock", folder / "config.json", *foreign}
  assert json.loads((folder / "config.json").read_text())["seed"] == 1
  assert not run.already_finished


def test_log_is_one_line_on_screen_and_in_the_file(start, capsys):
  run = start()
  run.log("a [red]name[/red]\nof two lines")
  run.warn("careful")
  lines = capsys.readouterr().out.splitlines()
  assert [line.split(" ", 1)[1] for line in lines] == [
    "a [red]name[/red] of two lines",
    "warning: careful",
  ]
  assert (run.workdir / "log.txt").read_text().splitlines() == lines


def test_progress_without_a_terminal_logs_every_five_seconds_and_the_last(
  start, capsys, monkeypatch
):
  clock = [100.0]
  monkeypatch.setattr(
    runtime, "time", types.SimpleNamespace(monotonic=lambda: clock[0])
  )
  with start().progress(12, "search") as progress:
    for done in range(1, 13):
      clock[0] += 1.0
      progress.update(done, best=f"0.{done}")
  lines = [line.split(" ", 1)[1] for line in capsys.readouterr().out.splitlines()]
  assert lines == [
    "search: 5/12 children, best 0.5, 7 s left",
    "search: 10/12 children, best 0.10, 2 s left",
    "search: 12/12 children, best 0.12, 0 s left",
  ]


def test_terminal_shows_a_bar_with_log_lines_above(start, capsys, monkeypatch):
  monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes the capture for a terminal
  monkeypatch.setenv("COLUMNS", "160")
  run = start()
  with run.progress(4, "search") as progress:
    progress.update(3, best="0.75")
    run.log("[bold]as typed[/bold]")
  run.table("t[1]", ["name"], [["[red]raw[/red]"]])
  out = capsys.readouterr().out
  for text in ("3/4", "best 0.75", "[bold]as typed[/bold]", "t[1]", "[red]raw[/red]"):
    assert text in out


def test_table_without_a_terminal_is_aligned_text(start, capsys):
  start().table("scores", ["name", "accuracy"], [["a long name", "0.5"], ["b", "0.75"]])
  assert capsys.readouterr().out.splitlines() == [
    "",
    "scores",
    "  name         accuracy",
    "  a long name  0.5",
    "  b            0.75",
  ]


def test_compiles_are_counted_once_each(start, tmp_path):
  first = start(tmp_path / "1")
  second = start(tmp_path / "2")
  x = jnp.arange(7.0)
  function = jax.jit(lambda x: jnp.sin(x) * 3)
  with runtime.CompileCounter() as cold:
    function(x).block_until_ready()
  with runtime.CompileCounter() as warm:
    function(x).block_until_ready()
  assert (cold.count, warm.count, warm.seconds) == (1, 0, 0.0)
  assert cold.seconds > 0
  assert first.compile_stats()["num_compiles"] == second.compile_stats()["num_compiles"]
  late = start(tmp_path / "3").compile_stats()
  assert late["num_compiles"] == late["compile_seconds"] == late["num_cached"] == 0
  assert second.compile_stats()["num_compiles"] >= 1


def test_a_second_process_finds_the_programs_of_the_first(tmp_path):
  script = """
import dataclasses, sys, jax
import jax.numpy as jnp
from nasjax import runtime, workdir

@dataclasses.dataclass(frozen=True)
class Nothing:
  pass

runtime.use_compilation_cache(sys.argv[1])
run = workdir.open_run(sys.argv[2], "none", 0, Nothing())
run.begin()
jax.jit(lambda x: jnp.linalg.qr(jnp.sin(x) @ x))(jnp.eye(40))
stats = run.compile_stats()
print(stats["num_compiles"], stats["num_cached"], stats["longest_compile_seconds"])
"""

  def process(number):
    workdir = str(tmp_path / str(number))
    command = [sys.executable, "-c", script, str(tmp_path / "cache"), workdir]
    words = subprocess.run(command, capture_output=True, text=True, check=True)
    return [float(word) for word in words.stdout.split()]

  cold, warm = process(1), process(2)
  assert cold[0] == warm[0] and cold[1] == 0 and warm[1] >= 1
  assert warm[2] < cold[2]


def test_a_cache_folder_that_cannot_be(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(InputError, match="cannot use --compilation_cache"):
    runtime.use_compilation_cache(tmp_path / "file" / "cache")


def test_environment_names_versions_and_machine():
  found = runtime.environment()
  for name in ("nasjax", "jax", "flax", "optax", "numpy", "python"):
    assert found[name][0].isdigit()
  assert found["jax"] == jax.__version__
  assert "cores" in found["machine"]
  assert jax.devices()[0].device_kind in found["devices"]
