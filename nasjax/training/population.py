"""Training a population of chains, behind one function whatever the layout.

Layouts (see BUILD.md for the measurements):

* "exact": one compiled program per architecture, run in turn; the next ones compile on
  the other cores meanwhile. Padding wastes twenty times the arithmetic on a CPU.
* "padded": one vmapped program for every architecture; what an accelerator wants.
* "auto": exact on a CPU, padded elsewhere.

A child's result depends on its genotype, its key and its initial weights, never on the
layout (up to rounding), on its neighbours or on their order.
"""

import concurrent.futures
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nasjax.core import keys as keys_lib
from nasjax.core.types import InputError
from nasjax.networks import mlp
from nasjax.spaces.mlp_chain import Layer, MLPChain
from nasjax.training.losses import Task
from nasjax.training.step import (
  DeviceData,
  Hyper,
  TrainResult,
  epoch_batches,
  make_train,
)

Layout = Literal["auto", "exact", "padded"]
LAYOUTS = ("auto", "exact", "padded")


class Child(NamedTuple):
  """One trained child, on the host.

  Attributes:
    layers: its hidden layers.
    weights: exact weights of its best epoch; None when it failed.
    curve: `[T]` validation metric by epoch, NaN where none was run.
    valid_loss: `[T]` likewise.
    epochs_run: how many epochs ran.
    best_epoch: which of them was the best, from 1; 0 when none was.
    seconds: run time, compilation apart (a padded population's time is shared out
      equally).
    failure: why it failed, in a few words; None when it did not.
  """

  layers: tuple[Layer, ...]
  weights: mlp.Weights | None
  curve: np.ndarray
  valid_loss: np.ndarray
  epochs_run: int
  best_epoch: int
  seconds: float
  failure: str | None


LoadWeights = Callable[[tuple[Layer, ...], mlp.Weights], mlp.Weights]
OnChild = Callable[[int, Child], None]


def population_trainer(
  space: MLPChain,
  task: Task,
  data: DeviceData,
  num_outputs: int,
  *,
  epochs: int,
  batch_size: int,
  layout: Layout = "auto",
) -> Callable[..., list[Child]]:
  """Builds the function that trains any population of the space on these rows.

  Args:
    space: the space of the genotypes.
    task: loss and metric.
    data: rows on the device.
    num_outputs: C.
    epochs: T, at most.
    batch_size: B.
    layout: see the module.

  Returns:
    `train(key, genotypes [P, D], hyper, load=None, on_child=None) -> list[Child]`.
    `load(layers, fresh)` may replace a child's fresh weights (one-shot); `on_child(i,
    child)` is called as each child is done. Compiled programs are kept between calls.

  Raises:
    InputError: for a layout, a batch size or a number of epochs that cannot be.
  """
  if layout not in LAYOUTS:
    raise InputError(f"unknown layout {layout!r}; there are {', '.join(LAYOUTS)}")
  if epochs < 1 or batch_size < 1:
    raise InputError(
      f"epochs and batch_size must be positive, got {epochs} and {batch_size}"
    )
  if layout == "auto":
    layout = "exact" if jax.default_backend() == "cpu" else "padded"
  num_rows, num_features = data.x_train.shape

  def init(key, genotype):
    return mlp.init(key, space, genotype, num_features, num_outputs)

  # One child at a time: padded weights are large, and drawing them is quick.
  init_one = jax.jit(init)
  init_all = jax.jit(jax.vmap(init))
  child_keys = jax.jit(keys_lib.for_genotypes)
  make_batches = jax.jit(lambda key: epoch_batches(key, num_rows, batch_size, epochs))
  run = (_exact if layout == "exact" else _padded)(space, task, data)

  def train(
    key: jax.Array,
    genotypes: np.ndarray,
    hyper: Hyper,
    load: LoadWeights | None = None,
    on_child: OnChild | None = None,
  ) -> list[Child]:
    init_key, train_key, batch_key = keys_lib.named(key, "init", "train", "batches")
    genotypes = np.asarray(genotypes, np.int32)
    layers = [space.layers(genotype) for genotype in genotypes]
    hyper = hyper.as_arrays()
    init_keys = child_keys(init_key, genotypes)
    train_keys = child_keys(train_key, genotypes)
    if layout == "exact":
      init_keys, train_keys = tuple(init_keys), tuple(train_keys)

    def exact_weights(i: int) -> mlp.Weights:
      padded = jax.tree.map(np.asarray, init_one(init_keys[i], genotypes[i]))
      fresh = mlp.extract(padded, layers[i])
      return load(layers[i], fresh) if load else fresh

    def padded_weights() -> mlp.PaddedWeights:
      padded = init_all(init_keys, genotypes)
      if load is None:
        return padded
      host = jax.tree.map(np.asarray, padded)
      members = [_member(host, i) for i in range(len(layers))]
      loaded = [
        mlp.embed(load(chain, mlp.extract(member, chain)), chain, member)
        for chain, member in zip(layers, members)
      ]
      return jax.tree.map(lambda *leaves: np.stack(leaves), *loaded)

    weights = exact_weights if layout == "exact" else padded_weights
    batches = make_batches(batch_key)
    return run(genotypes, layers, train_keys, weights, batches, hyper, on_child)

  return train


def _child(
  layers: tuple[Layer, ...], result: TrainResult, weights: Any, seconds: float
) -> Child:
  diverged = bool(result.diverged)
  epochs_run = int(result.epochs_run)
  return Child(
    layers=layers,
    weights=None if diverged else weights,
    curve=np.asarray(result.curve),
    valid_loss=np.asarray(result.valid_loss),
    epochs_run=epochs_run,
    best_epoch=int(result.best_epoch),
    seconds=seconds,
    failure=f"diverged in epoch {epochs_run}" if diverged else None,
  )


def _member(population: Any, i: int) -> Any:
  """Member i of a pytree whose leaves have the population axis first."""
  return jax.tree.map(lambda leaf: leaf[i], population)


def _failed(layers: tuple[Layer, ...], epochs: int, reason: str) -> Child:
  nothing = np.full(epochs, np.nan, np.float32)
  return Child(layers, None, nothing, nothing, 0, 0, 0.0, reason)


def _exact(space: MLPChain, task: Task, data: DeviceData) -> Callable:
  """Runs children one after the other, each in a program of its own."""
  programs: dict[tuple[Layer, ...], Any] = {}

  def compile_for(layers: tuple[Layer, ...], *arguments):
    if layers not in programs:
      program = make_train(
        lambda weights, x, key: mlp.apply(weights, layers, x, key), task
      )
      programs[layers] = jax.jit(program).lower(*arguments).compile()
    return programs[layers]

  def run(genotypes, layers, keys, initial, batches, hyper, on_child):
    # Worker threads, also for running: the main thread then only waits for them, and
    # Ctrl-C is answered at once instead of after the child.
    compilers = concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1)
    runner = concurrent.futures.ThreadPoolExecutor(1)

    def prepare(i: int):
      weights = initial(i)
      return weights, compile_for(layers[i], weights, keys[i], batches, data, hyper)

    def run_one(i: int, ready: concurrent.futures.Future) -> Child:
      try:
        weights, program = ready.result()
        start = time.perf_counter()
        result = jax.block_until_ready(program(weights, keys[i], batches, data, hyper))
        seconds = time.perf_counter() - start
      except jax.errors.JaxRuntimeError as error:  # out of memory, for one
        return _failed(layers[i], batches.shape[0], str(error).splitlines()[0][:200])
      weights = jax.tree.map(np.asarray, result.weights)
      return _child(layers[i], result, weights, seconds)

    try:
      # Equal architectures share a program, so only the first of each is prepared
      # ahead of its turn.
      ahead = {
        i: compilers.submit(prepare, i)
        for i in range(len(layers))
        if layers.index(layers[i]) == i
      }
      children = []
      for i in range(len(layers)):
        ready = ahead.pop(i, None) or compilers.submit(prepare, i)
        children.append(runner.submit(run_one, i, ready).result())
        if on_child:
          on_child(i, children[-1])
      return children
    finally:
      compilers.shutdown(wait=False, cancel_futures=True)
      runner.shutdown(wait=False, cancel_futures=True)

  return run


def _padded(space: MLPChain, task: Task, data: DeviceData) -> Callable:
  """Runs the population as one vmapped program with traced genotypes."""

  def train_one(weights, genotype, key, batches, data, hyper):
    def apply(weights, x, dropout_key):
      return mlp.apply_padded(weights, space, genotype, x, dropout_key)

    return make_train(apply, task)(weights, key, batches, data, hyper)

  program = jax.jit(jax.vmap(train_one, in_axes=(0, 0, 0, None, None, None)))

  def run(genotypes, layers, keys, initial, batches, hyper, on_child):
    start = time.perf_counter()
    weights = initial()
    result = jax.block_until_ready(
      program(weights, genotypes, keys, batches, data, hyper)
    )
    seconds = (time.perf_counter() - start) / len(layers)
    host = jax.tree.map(np.asarray, result)
    children: list[Child] = []
    for i, chain in enumerate(layers):
      member = _member(host, i)
      exact = mlp.extract(member.weights, chain)
      children.append(_child(chain, member, exact, seconds))
      if on_child:
        on_child(i, children[-1])
    return children

  return run


def device_data(train: Sequence, valid: Sequence) -> DeviceData:
  """Puts `(x, y)` of the two splits on the device, once."""
  return DeviceData(*map(jnp.asarray, (*train, *valid)))
