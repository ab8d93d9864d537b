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
  (events,) = (tmp_path / "tensorboard").iterdir()
  data = events.read_bytes()
  assert data.count(b"search/best_score") == 2
  assert b"phase" not in data


def test_a_run_without_metrics_has_no_lines(tmp_path):
  assert metrics.read(tmp_path) == []
