"""The throughput experiment's smoke run, its files, and what its figures say."""

import json
import time

import pytest

import run as command_line
from experiments import common_ways, throughput
from nasjax.core.types import InputError


def test_smoke_run(tmp_path):
  arguments = ["--experiment=throughput", "--smoke", f"--workdir={tmp_path / 'run'}"]
  assert command_line.main(arguments) == 0
  summary = json.loads((tmp_path / "run" / "summary.json").read_text())
  assert summary["status"] == "finished"
  rows = {(row["workload"], row["way"]): row for row in summary["rows"]}
  ways = throughput.Config().smoke().ways
  assert set(rows) == {(w, way) for w in ("mnist_32", "digits_all") for way in ways}
  for (workload, _), row in rows.items():
    assert row["total_seconds"] > 0 and row["amortised_rate"] > 0
    assert row["peak_gb"] > 0.05
    assert 0 < row["of_matrix_rate"] < row["of_floor"] < 1.5 and row["gflops"] > 0
    assert (workload == "mnist_32") == ("step_ms" in row)
  page = (tmp_path / "run" / "report.html").read_text()
  text = (tmp_path / "run" / "report.md").read_text()
  for word in ("mnist_32", "digits_all", "one_jit", "Ceiling in the same run"):
    assert word in page and word in text
  assert "<svg" in page


def test_the_ways_train_the_same_chains():
  space = throughput._space(throughput.Config(max_width=16), max_layers=4)
  (genotypes,) = common_ways.random_rounds(space, 0, 1, 6)
  assert len({tuple(genotype) for genotype in genotypes}) == 6
  first, second = common_ways.random_rounds(space, 0, 2, 3)
  assert (genotypes[:3] == first).all() and (genotypes[3:] == second).all()
  everything = throughput._chains_of_one_or_two(
    throughput._space(throughput.Config(), max_layers=3)
  )
  assert everything.shape == (812, 3)
  assert len({tuple(genotype) for genotype in everything}) == 812


def test_a_pause_stops_a_way_and_does_not_count():
  space = throughput._space(throughput.Config(max_width=8), max_layers=2)
  work = common_ways.Workload(
    name="tiny",
    features=4,
    classes=3,
    rows=64,
    valid_rows=16,
    batch_size=32,
    epochs=1,
    rounds=common_ways.random_rounds(space, 0, 1, 2),
    space=space,
    seed=0,
  )
  worker = common_ways.Worker("one_jit", work)
  try:
    begin = time.perf_counter()
    assert worker.go_on(0, 0.01) is None  # it compiles
    compiled = worker.num_compiles
    time.sleep(1)
    # Stopped, it has not finished what takes a fraction of a second; and goes on.
    assert not worker._connection.poll()
    seconds = worker.go_on(0)
    assert 0 < seconds < time.perf_counter() - begin - 1
    assert worker.num_compiles > compiled == 0
    assert worker.train(0) > 0
    assert worker.go_on(0, 1e-6) is None
  finally:
    worker.close()
  assert not worker._process.is_alive()


def test_only_what_ran_counts():
  """Also when a way was done just before it was stopped."""

  class Connection:
    def send(self, number):
      pass

    def poll(self, most):
      return most is None

    def recv(self):
      return (start, start + 10.0), 0, 1

  worker = object.__new__(common_ways.Worker)
  worker.way, worker.num_compiles, worker._connection = "way", 0, Connection()
  worker._signal = lambda number: None
  start = time.perf_counter()
  worker._paused_at = start + 9.0  # a second before its end
  worker._pauses = [(start + 2.0, start + 5.0), (start + 6.0, start + 7.0)]
  assert worker.go_on(0, 1.0) is None  # and the clock says less than start + 9
  worker._pauses[-1] = (start + 9.0, start + 60.0)
  worker._paused_at = start + 70.0
  assert worker.go_on(0) == pytest.approx(10.0 - 3.0 - 1.0 - 1.0)


def test_a_peer_that_is_not_installed_is_left_out(monkeypatch):
  class Log:
    lines: list[str] = []

    def warn(self, line):
      self.lines.append(line)

  def refused(way, work):
    raise RuntimeError(f"{way}: ModuleNotFoundError: No module named 'torch'")

  monkeypatch.setattr(throughput, "Worker", refused)
  assert throughput._start(("torch",), None, Log()) == []
  assert "peers" in Log.lines[0] and "torch" in Log.lines[0]


def test_a_budget_of_nothing_is_refused():
  with pytest.raises(InputError, match="config.repeats must be positive"):
    throughput.run(throughput.Config(repeats=0), None)
