"""Children on Ray's workers: the same as here, also if a worker is killed."""

import os
import signal
import threading
import time

import jax
import numpy as np
import psutil
import pytest

from nasjax.core.types import InputError
from nasjax.data import embedded
from nasjax.parallel import ray_cluster
from nasjax.spaces.mlp_chain import MLPChain
from nasjax.training.losses import get_task
from nasjax.training.population import device_data, population_trainer
from nasjax.training.ray_trainer import ray_trainer
from nasjax.training.step import Hyper

pytest.importorskip("ray")

SPACE = MLPChain(widths=(4, 8), max_layers=4)
ARCHS = ["8 relu", "4 tanh - dropout 0.2 - 8 elu", "8 relu - 4 sigmoid", "4 elu"]
GENOTYPES = np.stack([SPACE.parse(arch) for arch in ARCHS])
KEY, HYPER = jax.random.key(3), Hyper(0.01, 9)


@pytest.fixture(scope="module")
def ray():
  with ray_cluster.connected(num_cpus=2) as connected:
    yield connected


def made(maker, *first, **options):
  dataset = embedded.load("iris")
  rows = device_data(dataset.train, dataset.valid)
  task = get_task(dataset.task)
  options = {"epochs": 4, "batch_size": 16, "layout": "exact"} | options
  return maker(*first, SPACE, task, rows, dataset.num_outputs, **options)


def same(a, b):
  for field in ("layers", "epochs_run", "best_epoch", "failure", "stopped"):
    assert getattr(a, field) == getattr(b, field)
  mine = a.weights, a.curve, a.valid_loss
  yours = b.weights, b.curve, b.valid_loss
  jax.tree.map(np.testing.assert_array_equal, mine, yours)


def test_children_are_those_of_one_process_bit_for_bit(ray):
  here = made(population_trainer)(KEY, GENOTYPES, HYPER)
  seen, plans = [], []
  there = made(ray_trainer, ray)(
    KEY,
    GENOTYPES,
    HYPER,
    on_child=lambda i, child: seen.append((i, child)),
    on_plan=plans.append,
  )
  for a, b in zip(here, there, strict=True):
    same(a, b)
  assert sorted(i for i, _ in seen) == [0, 1, 2, 3] and len(plans) == 1
  assert "4 exact" in plans[0].describe()
  # One at a time: the number of workers changes nothing.
  alone = made(ray_trainer, ray, task_options={"num_cpus": 2})(KEY, GENOTYPES, HYPER)
  for a, b in zip(there, alone, strict=True):
    same(a, b)


def test_training_on_and_weights_that_are_given(ray):
  def halved(layers, fresh):
    return jax.tree.map(lambda leaf: 0.5 * leaf, fresh)

  ends = []
  for train in (made(population_trainer), made(ray_trainer, ray)):
    options = {"load": halved}
    part = train(KEY, GENOTYPES, HYPER._replace(stop_after=2), keep=True, **options)
    assert [child.epochs_run for child in part] == [2] * 4
    ends.append(train(KEY, GENOTYPES[1:3], HYPER, before=part[1:3], **options))
  for a, b in zip(*ends, strict=True):
    assert a.epochs_run == 4
    same(a, b)


def test_a_worker_that_is_killed_costs_a_retry(ray, tmp_path):
  train = made(ray_trainer, ray, epochs=400, task_options={"max_retries": 2})
  killed, done = [], threading.Event()

  def kill():
    while not (killed or done.is_set()):
      for process in psutil.process_iter(["cmdline"]):
        if "ray::train_child" in " ".join(process.info["cmdline"] or ()):
          process.send_signal(signal.SIGKILL)
          killed.append(process.pid)
          return
      time.sleep(0.005)

  found = train(
    KEY,
    GENOTYPES,
    HYPER._replace(patience=400),
    on_plan=lambda plan: threading.Thread(target=kill).start(),
  )
  done.set()
  assert len(killed) == 1 and killed[0] != os.getpid()
  here = made(population_trainer, epochs=400)(
    KEY, GENOTYPES, HYPER._replace(patience=400)
  )
  for a, b in zip(here, found, strict=True):
    same(a, b)


def test_layouts_of_children_together_are_refused(ray):
  with pytest.raises(InputError, match="layout may be auto or exact, not padded"):
    made(ray_trainer, ray, layout="padded")
