import time

import jax.numpy as jnp
import numpy as np

from nasjax.results import metrics


def test_lines_carry_step_and_time_and_scalars_reach_tensorboard(tmp_path):
  writer = metrics.MetricsWriter(tmp_path)
  writer.write(8, {"search/best_score": np.float32(0.5), "phase": "search"})
  writer.write(16, {"search/best_score": jnp.float32(0.75), "loss": float("nan")})
  writer.close()
  lines = metrics.read(tmp_path)
  assert [line["step"] for line in lines] == [8, 16]
  assert lines[0]["search/best_score"] == 0.5
  assert lines[0]["phase"] == "search"
  assert lines[1]["loss"] is None
  assert lines[0]["time"] <= lines[1]["time"]


def test_tensorboards_own_reader_finds_a_run_by_its_folder(tmp_path):
  from tensorboard.backend.event_processing import event_multiplexer

  for name, offset in (("mlpnas_digits", 0.0), ("mlpnas_digits_seed1", 0.1)):
    (tmp_path / name).mkdir()
    writer = metrics.MetricsWriter(tmp_path / name)
    for step, value in ((8, 0.5), (16, 0.75)):
      writer.write(step, {"search/best_score": value + offset, "phase": "search"})
    writer.close()
  board = event_multiplexer.EventMultiplexer()
  board.AddRunsFromDirectory(str(tmp_path))  # what --logdir does
  board.Reload()
  runs = [f"{name}/tensorboard" for name in ("mlpnas_digits", "mlpnas_digits_seed1")]
  assert sorted(board.Runs()) == runs
  assert board.Runs()[runs[0]]["scalars"] == ["search/best_score"]
  for run, offset in zip(runs, (0.0, 0.1)):
    events = board.Scalars(run, "search/best_score")
    assert [event.step for event in events] == [8, 16]
    np.testing.assert_allclose([e.value for e in events], [0.5 + offset, 0.75 + offset])


def test_a_run_that_goes_on_shows_no_step_twice(tmp_path):
  from tensorboard.backend.event_processing import event_accumulator

  def seen(board):
    board.Reload()
    return [(event.step, event.value) for event in board.Scalars("score")]

  writer = metrics.MetricsWriter(tmp_path)
  for step in (8, 16, 24):
    writer.write(step, {"score": step / 4, "loss": float("nan"), "phase": "search"})
  writer.close()
  watching = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
  assert seen(watching) == [(8, 2.0), (16, 4.0), (24, 6.0)]
  time.sleep(1.1)  # event files are named by the second
  path = tmp_path / "metrics.jsonl"  # as a run that goes on from step 8 leaves it
  path.write_text(path.read_text().splitlines(keepends=True)[0])
  writer = metrics.MetricsWriter(tmp_path)
  writer.write(16, {"score": 5.0})
  writer.close()
  fresh = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
  assert seen(fresh) == seen(watching) == [(8, 2.0), (16, 5.0)]
  assert fresh.Scalars("loss")[0].step == 8 and len(fresh.Scalars("loss")) == 1
  assert fresh.Scalars("score")[0].wall_time == metrics.read(tmp_path)[0]["time"]


def test_a_run_without_metrics_has_no_lines(tmp_path):
  assert metrics.read(tmp_path) == []
