"""Ways to train a population of chains, each in a process of its own.

A way is `prepare(workload, children) -> train(round) -> None`: our layouts, one `jit`
per child in plain JAX and optax, and the plain PyTorch and Keras loops that a user
would write. All train the same chains on the same rows in batches of one size. A
process each keeps their threads, caches and peak memory apart; the parent asks one
after the other, so that the others rest while one is timed.
"""

import ctypes
import dataclasses
import multiprocessing
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nasjax.core.types import InputError
from nasjax.runtime import CompileCounter
from nasjax.spaces import base
from nasjax.spaces.mlp_chain import Dropout, MLPChain
from nasjax.training import profile
from nasjax.training.losses import get_task
from nasjax.training.population import device_data, population_trainer
from nasjax.training.step import Hyper, epoch_batches

_LEARNING_RATE, _EPSILON = 1e-3, 1e-7
_PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>


@dataclasses.dataclass(frozen=True)
class Workload:
  """A population and the rows it learns from.

  Attributes:
    name: for the tables.
    features: F.
    classes: C.
    rows: N, as many as are really trained on in an epoch.
    valid_rows: M.
    batch_size: B.
    epochs: T, of every child.
    rounds: genotypes by round, each `[P, D]`.
    space: of the genotypes.
    seed: of the rows, which are random: time does not depend on them.
    share: part of a job's steps that is timed here; plans are made for all of them.
  """

  name: str
  features: int
  classes: int
  rows: int
  valid_rows: int
  batch_size: int
  epochs: int
  rounds: tuple[np.ndarray, ...]
  space: MLPChain
  seed: int
  share: float = 1.0

  def data(self) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """`(x, y)` of train and of valid rows."""
    random = np.random.default_rng(self.seed)
    count = self.rows + self.valid_rows
    x = random.normal(size=(count, self.features)).astype(np.float32)
    y = random.integers(0, self.classes, count).astype(np.int32)
    return (x[: self.rows], y[: self.rows]), (x[self.rows :], y[self.rows :])

  def batches(self) -> np.ndarray:
    """`[T, S, B]` rows by step."""
    return np.asarray(
      epoch_batches(jax.random.key(0), self.rows, self.batch_size, self.epochs)
    )


def random_rounds(
  space: MLPChain, seed: int, rounds: int, population: int
) -> tuple[np.ndarray, ...]:
  """Distinct random genotypes, by round."""
  keys = jax.random.split(jax.random.key(seed), 4 * rounds * population)
  drawn = np.asarray(jax.jit(jax.vmap(lambda key: base.sample(space, key)))(keys))
  _, first = np.unique(drawn, axis=0, return_index=True)
  chosen = drawn[np.sort(first)][: rounds * population]
  if len(chosen) < rounds * population:
    raise InputError(
      f"the space has too few chains for {rounds} rounds of {population} different ones"
    )
  return tuple(np.split(chosen, rounds))


def ours(layout: str) -> Callable[[Workload], Callable[[int], None]]:
  """A layout of ours."""

  def prepare(work: Workload) -> Callable[[int], None]:
    train, valid = work.data()
    here = profile.load_or_measure()
    # A plan weighs compiling against training: a part of the one for that of the other.
    here = dataclasses.replace(
      here,
      compile_base=here.compile_base * work.share,
      compile_layer=here.compile_layer * work.share,
    )
    trainer = population_trainer(
      work.space,
      get_task("multiclass"),
      device_data(train, valid),
      work.classes,
      epochs=work.epochs,
      batch_size=work.batch_size,
      layout=layout,  # type: ignore[arg-type]
      device_profile=here,
    )
    hyper = Hyper(_LEARNING_RATE, work.epochs + 1)

    def run(number: int) -> None:
      trainer(jax.random.key(0), work.rounds[number], hyper)

    return run

  return prepare


def one_jit_per_child(work: Workload) -> Callable[[int], None]:
  """Plain JAX and optax: a jitted epoch of each architecture, children in turn."""
  (x, y), _ = (tuple(map(jnp.asarray, split)) for split in work.data())
  batches = jnp.asarray(work.batches())
  optimizer = optax.adam(_LEARNING_RATE, eps=_EPSILON)
  functions = {
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "elu": jax.nn.elu,
  }
  epochs: dict[Any, Any] = {}

  def make_epoch(layers):
    def outputs(weights, x, key):
      remaining = iter(weights)
      for i, layer in enumerate(layers):
        if isinstance(layer, Dropout):
          shape, kept = x.shape, 1 - layer.rate
          keep = jax.random.bernoulli(jax.random.fold_in(key, i), kept, shape)
          x = jnp.where(keep, x / kept, 0.0)
        else:
          kernel, bias = next(remaining)
          x = functions[layer.activation](x @ kernel + bias)
      kernel, bias = next(remaining)
      return x @ kernel + bias

    def loss(weights, rows, key):
      logits = outputs(weights, x[rows], key)
      return optax.softmax_cross_entropy_with_integer_labels(logits, y[rows]).mean()

    @jax.jit
    def epoch(weights, state, key, rows):
      def step(carry, inputs):
        weights, state = carry
        number, rows = inputs
        value, gradient = jax.value_and_grad(loss)(
          weights, rows, jax.random.fold_in(key, number)
        )
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(weights, updates), state), value

      return jax.lax.scan(step, (weights, state), (jnp.arange(len(rows)), rows))

    return epoch

  def run(number: int) -> None:
    random = np.random.default_rng(0)
    for genotype in work.rounds[number]:
      layers = work.space.layers(genotype)
      sizes = [work.features, *_widths(layers), work.classes]
      weights = [
        (0.05 * random.normal(size=(i, o)).astype(np.float32), np.zeros(o, np.float32))
        for i, o in zip(sizes[:-1], sizes[1:])
      ]
      state = optimizer.init(weights)
      epoch = epochs.setdefault(layers, make_epoch(layers))
      for e, rows in enumerate(batches):
        (weights, state), value = epoch(weights, state, jax.random.key(e), rows)
      jax.block_until_ready(value)

  return run


def _widths(layers) -> list[int]:
  return [layer.width for layer in layers if not isinstance(layer, Dropout)]


def torch_loop(work: Workload) -> Callable[[int], None]:
  """A plain PyTorch training loop, children in turn."""
  import torch

  device = torch_device()
  rows_of, _ = work.data()
  x, y = (torch.from_numpy(array).to(device) for array in rows_of)
  y = y.long()
  batches = torch.tensor(work.batches()).long().to(device)
  activations = {
    "sigmoid": torch.nn.Sigmoid,
    "tanh": torch.nn.Tanh,
    "relu": torch.nn.ReLU,
    "elu": torch.nn.ELU,
  }

  def build(layers):
    modules: list[Any] = []
    units = work.features
    for layer in layers:
      if isinstance(layer, Dropout):
        modules.append(torch.nn.Dropout(layer.rate))
      else:
        modules += [
          torch.nn.Linear(units, layer.width),
          activations[layer.activation](),
        ]
        units = layer.width
    return torch.nn.Sequential(*modules, torch.nn.Linear(units, work.classes))

  def run(number: int) -> None:
    for genotype in work.rounds[number]:
      model = build(work.space.layers(genotype)).to(device)
      adam = torch.optim.Adam(model.parameters(), _LEARNING_RATE, eps=_EPSILON)
      loss = torch.nn.CrossEntropyLoss()
      for epoch in batches:
        for rows in epoch:
          adam.zero_grad()
          loss(model(x[rows]), y[rows]).backward()
          adam.step()
    if device == "cuda":
      torch.cuda.synchronize()

  return run


def torch_device() -> str:
  """The device that ours runs on, with products of the precision that ours has there.

  Raises:
    RuntimeError: there is a GPU, and this PyTorch is not made for it.
  """
  import torch

  if jax.default_backend() != "gpu":
    return "cpu"
  if not torch.cuda.is_available():
    raise RuntimeError("this PyTorch does not reach the GPU")
  torch.set_float32_matmul_precision("high")  # TF32, as JAX's default
  torch.backends.cudnn.allow_tf32 = True
  return "cuda"


def keras_loop(work: Workload) -> Callable[[int], None]:
  """Keras's own `fit`, children in turn."""
  import keras

  (x, y), _ = work.data()
  batches = work.batches()
  models: dict[Any, Any] = {}

  def build(layers):
    inputs = [keras.layers.Input((work.features,))]
    hidden = [
      keras.layers.Dropout(layer.rate)
      if isinstance(layer, Dropout)
      else keras.layers.Dense(layer.width, layer.activation)
      for layer in layers
    ]
    model = keras.Sequential(inputs + hidden + [keras.layers.Dense(work.classes)])
    model.compile(
      keras.optimizers.Adam(_LEARNING_RATE, epsilon=_EPSILON),
      keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model

  def run(number: int) -> None:
    for genotype in work.rounds[number]:
      layers = work.space.layers(genotype)
      model = models.setdefault(layers, None) or build(layers)
      models[layers] = model
      for rows in batches:
        used = rows.reshape(-1)
        options = dict(batch_size=work.batch_size, shuffle=False, verbose=0)
        model.fit(x[used], y[used], **options)

  return run


WAYS: dict[str, Callable[[Workload], Callable[[int], None]]] = {
  "auto": ours("auto"),
  "exact": ours("exact"),
  "bucketed": ours("bucketed"),
  "padded": ours("padded"),
  "one_jit": one_jit_per_child,
  "torch": torch_loop,
  "keras": keras_loop,
}


def find(way: str) -> Callable[[Any], Callable[[int], None]]:
  """The way of that name."""
  return WAYS[way]


def share_device() -> None:
  """Lets several processes have memory of one accelerator, each as much as it uses.

  To be called before the first use of the device.
  """
  os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def peak_bytes(way: str) -> int:
  """The most memory that this process has had: of the accelerator where there is one,
  else resident."""
  stats = jax.devices()[0].memory_stats() if jax.default_backend() != "cpu" else None
  if stats and way.startswith("torch"):
    import torch

    return torch.cuda.max_memory_allocated()
  if stats and "peak_bytes_in_use" in stats:
    return stats["peak_bytes_in_use"]
  # Linux counts in KiB.
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _serve(connection, way: str, work: Any, ways: Callable) -> None:
  """The worker's loop: one timed round for every number that comes."""
  if sys.platform == "linux":  # one that is stopped would not see that nobody waits
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
  share_device()
  try:
    train = ways(way)(work)
    connection.send(None)
    while (number := connection.recv()) is not None:
      with CompileCounter() as compiles:
        start = time.perf_counter()
        train(number)
        end = time.perf_counter()
      connection.send(((start, end), compiles.count, peak_bytes(way)))
  except KeyboardInterrupt:
    pass  # the parent was interrupted too, and says so
  except Exception:
    connection.send(traceback.format_exc(limit=-1).strip().splitlines()[-1])


class Worker:
  """A way at work in a process of its own.

  Attributes:
    way: its name.
    peak_bytes: memory at its most so far, see `peak_bytes`.
    num_compiles: XLA programs compiled so far.

  Args:
    way: its name.
    work: what the way is prepared for.
    ways: `name -> way`, a function that a new process can import.
  """

  def __init__(self, way: str, work: Any, ways: Callable = find):
    context = multiprocessing.get_context("spawn")
    self.way, self.peak_bytes, self.num_compiles = way, 0, 0
    self._connection, other = context.Pipe()
    self._process = context.Process(
      target=_serve, args=(other, way, work, ways), daemon=True
    )
    self._process.start()
    self._pauses: list[tuple[float, float]] = []
    self._paused_at: float | None = None
    other.close()
    self._receive()

  def _receive(self) -> Any:
    try:
      answer = self._connection.recv()
    except EOFError:
      answer = "its process ended"
    if isinstance(answer, str):
      self.close()
      raise RuntimeError(f"{self.way}: {answer}")
    return answer

  def train(self, number: int = 0) -> float:
    """Trains a round; seconds."""
    seconds = self.go_on(number)
    assert seconds is not None  # it was not told when to pause
    return seconds

  def go_on(self, number: int = 0, most: float | None = None) -> float | None:
    """Begins a round, or goes on with the one that is paused.

    Args:
      number: of the round.
      most: seconds after which its process is stopped where it stands, whatever it is
        compiling or training; None lets it run to its end.

    Returns:
      Seconds of the round, without its pauses; None when it is paused.
    """
    if self._paused_at is None:
      self._connection.send(number)
    else:
      self._pauses.append((self._paused_at, time.perf_counter()))
      self._paused_at = None
      self._signal(signal.SIGCONT)
    if not self._connection.poll(most):
      self._signal(signal.SIGSTOP)
      self._paused_at = time.perf_counter()
      return None
    (start, end), compiles, self.peak_bytes = self._receive()
    self.num_compiles += compiles
    # The clock is the same in all processes; the last pause may be after the end.
    pauses, self._pauses = self._pauses, []
    return end - start - sum(max(0, min(end, b) - max(start, a)) for a, b in pauses)

  def _signal(self, number: int) -> None:
    if self._process.is_alive() and self._process.pid:
      os.kill(self._process.pid, number)

  def close(self) -> None:
    """Ends the process."""
    if self._process.is_alive():
      self._process.kill()  # one that is stopped hears nothing else
    self._process.join(10)
    self._connection.close()
