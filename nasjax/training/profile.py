"""What this device does in a second, measured once and kept.

They feed the cost model of `training.packing`, which compares one way of running a
round with another: ratios matter, and a factor of two in all of them changes nothing.
"""

import concurrent.futures
import dataclasses
import functools
import json
import math
import os
import pathlib
import platform
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from nasjax.core import cache
from nasjax.core.types import InputError
from nasjax.networks import mlp
from nasjax.spaces.mlp_chain import Dense
from nasjax.training import step
from nasjax.training.losses import TASKS

# A product streams its kernel: eight of them are more than a cache of one core holds.
_BATCH, _UNITS, _KERNELS, _REPEATS = 32, 512, 8, 96
# What a program takes to compile beside its layers, in layers: the compiler's, not the
# machine's, and a difference of two compilations is mostly noise.
_BASE = 0.5
_SMALL, _LARGE = 2**17, 2**23  # values of a vector that a cache holds, and does not


@dataclasses.dataclass(frozen=True)
class DeviceProfile:
  """Rates of one device; of a CPU, what each core gets while all are busy.

  Attributes:
    flops: floating-point operations a second in products of `[32, 512] x [512, 512]`.
    bandwidth: bytes a second through an elementwise loop over a megabyte.
    memory_bandwidth: likewise over what no cache holds.
    launch: seconds that a tiny kernel inside a program takes.
    compile_base: seconds to trace and compile a training program without layers.
    compile_layer: seconds more for every dense layer.
  """

  flops: float
  bandwidth: float
  memory_bandwidth: float
  launch: float
  compile_base: float
  compile_layer: float

  def __post_init__(self):
    for name, value in dataclasses.asdict(self).items():
      if not (math.isfinite(value) and value > 0):
        raise InputError(f"a device profile needs a positive {name}, got {value}")


ANY = DeviceProfile(5e10, 5e10, 2e10, 1e-6, 0.4, 0.1)
"""A core of some CPU, where a plan has nothing to weigh."""

GIVEN = {
  "tpu-v5e": DeviceProfile(197e12, 819e9, 819e9, 1e-6, 1.0, 1.0),
  "tpu-v6e": DeviceProfile(918e12, 1640e9, 1640e9, 1e-6, 1.0, 1.0),
}
"""Devices that need not be here: published peaks in bfloat16 and of the memory, compile
times by `benchmarks/tpu_audit.py`; the launch is a guess that decides little."""

DEVICES = ("measured", *GIVEN)


def cores() -> int:
  """Cores that this process may use."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def seconds_of(function: Callable, *arguments: Any, repeats: int = 3) -> float:
  """Run time of a compiled function; on a CPU while every core runs it.

  The best of some runs after a first one: the others were disturbed.
  """
  at_once = cores() if jax.default_backend() == "cpu" else 1

  def run(_: int) -> None:
    jax.block_until_ready(function(*arguments))

  times = []
  with concurrent.futures.ThreadPoolExecutor(at_once) as threads:
    for _ in range(1 + repeats):
      start = time.perf_counter()
      list(threads.map(run, range(at_once)))
      times.append(time.perf_counter() - start)
  return min(times[1:])


def measure() -> DeviceProfile:
  """Measures the default device; takes about a second and a half."""

  def repeat(body, times=_REPEATS):
    return jax.jit(
      lambda start, *constants: jax.lax.fori_loop(
        0, times, lambda i, carry: body(i, carry, *constants), start
      )
    )

  def sweep(size, times):
    vector = jnp.ones(size)
    step = repeat(lambda _, c, v: c * 0.5 + v, times)
    seconds = seconds_of(step, vector, vector)
    return 3 * 4 * size * times / seconds

  jax.jit(jax.grad(jnp.sin)).lower(1.0).compile()  # the first in a process is slower
  per_layer = _training_like(hidden_layers=1) / (_BASE + 2)
  small = jnp.ones((8, 8))
  tiny = repeat(lambda _, c, k: jnp.cos(c) @ k)
  kernels = [jnp.eye(_UNITS) for _ in range(_KERNELS)]
  product = repeat(
    lambda _, c, *kernels: functools.reduce(jnp.matmul, kernels, c),
    _REPEATS // _KERNELS,
  )
  seconds = seconds_of(product, jnp.ones((_BATCH, _UNITS)), *kernels) / _REPEATS
  return DeviceProfile(
    flops=2 * _BATCH * _UNITS**2 / seconds,
    bandwidth=sweep(_SMALL, _REPEATS),
    memory_bandwidth=sweep(_LARGE, 10),
    launch=seconds_of(tiny, small, small) / _REPEATS / 2,
    compile_base=_BASE * per_layer,
    compile_layer=per_layer,
  )


def _training_like(hidden_layers: int) -> float:
  """Compiles what an exact program of so many hidden layers consists of; seconds, of
  all threads together."""
  start = time.process_time()
  chain = tuple(Dense(32 + 8 * i, "elu") for i in range(hidden_layers))
  weights = mlp.init(0, chain, 16, 4)
  # A constant of this moment: no cache of programs can have this one.
  moment = 1.0 + (time.time_ns() % 2**20) * 2.0**-22
  epoch = step.make_epoch(
    lambda w, x, seed: mlp.apply(w, chain, x, seed) * moment, TASKS["multiclass"]
  )
  shape = jax.ShapeDtypeStruct
  data = step.DeviceData(*(shape((64, 16), jnp.float32), shape((64,), jnp.int32)) * 2)
  steps = shape((8,), jnp.float32)
  jax.jit(epoch).lower(
    step.start(weights),
    shape((8,), jnp.uint32),
    shape((8, 8), jnp.int32),
    step.Schedule(steps, steps),
    data,
  ).compile()
  return time.process_time() - start


def _device_name() -> str:
  """The accelerator's kind, or the model of the CPU."""
  device = jax.local_devices()[0]
  if device.platform != "cpu":
    return device.device_kind
  try:
    text = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8")
    models = [line for line in text.splitlines() if line.startswith("model name")]
    return models[0].partition(":")[2].strip()
  except (OSError, IndexError):
    return platform.processor() or platform.machine()


def load_or_measure(folder: pathlib.Path | None = None) -> DeviceProfile:
  """This device's profile, measured if the cache folder has none of this jax yet.

  A folder that cannot be written, or a file that cannot be read, costs the measurement
  and nothing else.
  """
  folder = cache.folder() if folder is None else folder
  name = f"{_device_name()} jax {jax.__version__} busy cores {cores()}"
  path = folder / "profile.json"
  stored: dict[str, Any] = {}
  try:
    stored = json.loads(path.read_text())
    return DeviceProfile(**stored[name])
  except (OSError, ValueError, KeyError, TypeError, InputError):
    stored = stored if isinstance(stored, dict) else {}
  profile = measure()
  stored[name] = dataclasses.asdict(profile)
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=folder, delete=False) as file:
      json.dump(stored, file, indent=1)
    os.replace(file.name, path)
  except OSError:
    pass
  return profile
