import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nasjax.core.types import InputError
from nasjax.results.checkpoints import Checkpoints


def state(step):
  return {
    "key": jax.random.key(step),
    "weights": (jnp.full(3, float(step)), np.arange(step)),
    "step": step,
  }


@pytest.fixture
def saved(tmp_path):
  with Checkpoints(tmp_path / "c") as checkpoints:
    for step in range(5):
      checkpoints.save(step, state(step))
  return tmp_path / "c"


def check(found, step):
  assert found[0] == step == found[1]["step"]
  np.testing.assert_array_equal(found[1]["weights"][0], np.full(3, step))
  np.testing.assert_array_equal(found[1]["weights"][1], np.arange(step))
  assert jax.random.uniform(found[1]["key"]) == jax.random.uniform(jax.random.key(step))


def test_the_newest_of_the_last_three_comes_back(saved):
  assert sorted(path.name for path in saved.iterdir()) == ["2", "3", "4"]
  with Checkpoints(saved) as checkpoints:
    check(checkpoints.restore(state(0)), 4)
    checkpoints.save(5, state(5))
  check(Checkpoints(saved).restore(state(0)), 5)


def test_nothing_saved_is_nothing(tmp_path):
  assert Checkpoints(tmp_path / "none").restore(state(0)) is None
  assert not (tmp_path / "none").exists()


def spoil(folder: pathlib.Path):
  for path in folder.rglob("*"):
    if path.is_file():
      path.write_bytes(b"spoilt")


def test_a_damaged_checkpoint_falls_back_to_the_one_before(saved):
  spoil(saved / "4")
  # What a process was writing when it died.
  shutil.copytree(saved / "3", saved / "5.orbax-checkpoint-tmp-1")
  lines = []
  check(Checkpoints(saved, lines.append).restore(state(0)), 3)
  assert len(lines) == 1 and lines[0].startswith("checkpoint 4 cannot be read")
  assert sorted(path.name for path in saved.iterdir()) == ["2", "3"]


def test_all_damaged_is_one_line(saved):
  for step in (2, 3, 4):
    spoil(saved / str(step))
  with pytest.raises(InputError, match="no checkpoint in .* can be read; --overwrite"):
    Checkpoints(saved).restore(state(0))


def test_a_state_of_another_kind_is_not_restored(saved):
  with pytest.raises(InputError):
    Checkpoints(saved).restore({"other": 1})


def test_what_cannot_be_written_is_one_line_and_the_rest_is_kept(saved, monkeypatch):
  import orbax.checkpoint as ocp

  def full(*_, **__):
    raise OSError(28, "No space left on device")

  with Checkpoints(saved) as checkpoints:
    monkeypatch.setattr(ocp.CheckpointManager, "save", full)
    with pytest.raises(InputError, match="No space left on device; what was saved"):
      checkpoints.save(5, state(5))
  monkeypatch.undo()
  check(Checkpoints(saved).restore(state(0)), 4)
