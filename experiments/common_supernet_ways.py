"""Ways to run the supernet of DARTS: ours, and the same network written in PyTorch.

A way is `prepare(work) -> run(number)`, as in `common_ways`; each runs in a process of
its own. PyTorch's is written as a user would write it from the paper.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common_darts import SupernetConfig
from experiments.common_ways import torch_device
from nasjax.networks import cell_cnn, supernet_cnn
from nasjax.spaces.conv_cell import CELLS, PRIMITIVES, ConvCell, edges
from nasjax.strategies import darts
from nasjax.training import cells, flops
from nasjax.training.losses import get_task


@dataclasses.dataclass(frozen=True)
class Work:
  """A supernet and the batch that it sees.

  Attributes:
    image: (H, W, C).
    classes: that it tells apart.
    channels: of the first cells.
    layers: cells.
    batch_size: rows.
    seed: of the rows, which are random: time does not depend on them.
  """

  image: tuple[int, int, int]
  classes: int
  channels: int
  layers: int
  batch_size: int
  seed: int

  def plan(self) -> cell_cnn.Plan:
    """The network."""
    return cell_cnn.make_plan(self.image, self.classes, self.channels, self.layers)

  def batch(self) -> tuple[np.ndarray, np.ndarray]:
    """x `[B, H, W, C]` and y `[B]`."""
    random = np.random.default_rng(self.seed)
    x = random.normal(size=(self.batch_size, *self.image)).astype(np.float32)
    return x, random.integers(0, self.classes, self.batch_size).astype(np.int32)


def _loss_of(work: Work) -> darts.Loss:
  form = SupernetConfig().form()  # as a search on this platform has it
  return cells.supernet_loss(work.plan(), get_task("multiclass"), form)


def _pass(derivative: str | None = None) -> Callable[[Work], tuple[Callable, tuple]]:
  """The loss, or one of its `darts.Derivatives` by name, and what it takes."""

  def make(work: Work) -> tuple[Callable, tuple]:
    loss = _loss_of(work)
    weights = jax.device_put(supernet_cnn.init(np.uint32(0), work.plan()))
    alphas = supernet_cnn.init_alphas(jax.random.key(1))
    arguments: tuple = weights, alphas, cells.Batch(*map(jnp.asarray, work.batch()))
    if derivative == "mixed":
      arguments += (weights,)  # a direction as good as any
    if derivative is None:
      return jax.jit(loss), arguments
    return getattr(darts.derivatives(loss), derivative), arguments

  return make


def _step(order: str) -> Callable[[Work], tuple[Callable, tuple]]:
  """A step of the search, `(state, batch, batch) -> (state, ...)`, and its input."""

  def make(work: Work) -> tuple[Callable, tuple]:
    loss = _loss_of(work)
    strategy = darts.darts(
      lambda key: supernet_cnn.init(np.uint32(0), work.plan()),
      supernet_cnn.init_alphas,
      loss,
      loss,
      ConvCell().derive,
      order=order,
      num_steps=1000,
    )
    batch = cells.Batch(*map(jnp.asarray, work.batch()))
    return strategy.step, (strategy.init(jax.random.key(0)), batch, batch)

  return make


PROGRAMS: dict[str, Callable[[Work], tuple[Callable, tuple]]] = {
  "forward": _pass(),
  "gradient": _pass("both"),
  "of_weights": _pass("of_weights"),
  "of_alphas": _pass("of_alphas"),
  "mixed": _pass("mixed"),
  "order_1": _step("1"),
  "exact": _step("2"),
  "finite_difference": _step("finite_difference"),
}
"""Ours: `work -> (function, its arguments)`."""


def num_flops(way: str, work: Work) -> int | None:
  """Of one run of a way of ours, see `flops.count`; None for another's."""
  if way not in PROGRAMS:
    return None
  function, arguments = PROGRAMS[way](work)
  return flops.count(function, *arguments)


def _ours(way: str) -> Callable[[Work], Callable[[int], None]]:
  def prepare(work: Work) -> Callable[[int], None]:
    function, arguments = PROGRAMS[way](work)

    def run(_: int) -> None:
      nonlocal arguments
      made = jax.block_until_ready(function(*arguments))
      if isinstance(arguments[0], darts.State):  # a search goes on from there
        arguments = made[0], *arguments[1:]

    return run

  return prepare


def _torch(backward: bool) -> Callable[[Work], Callable[[int], None]]:
  def prepare(work: Work) -> Callable[[int], None]:
    import torch

    device = torch_device()
    network = _torch_supernet(work).to(device)
    x, y = work.batch()
    x_NCHW = torch.tensor(x.transpose(0, 3, 1, 2).copy(), device=device)
    targets = torch.tensor(y.astype(np.int64), device=device)

    def run(_: int) -> None:
      with torch.set_grad_enabled(backward):
        loss = torch.nn.functional.cross_entropy(network(x_NCHW), targets)
      if backward:
        network.zero_grad()
        loss.backward()
      if device == "cuda":
        torch.cuda.synchronize()

    return run

  return prepare


def _torch_supernet(work: Work):
  """The same network in PyTorch."""
  import torch
  from torch import nn

  def norm(channels):
    return nn.BatchNorm2d(channels, affine=False)

  def half(channels, size, stride, dilation):
    padding = dilation * (size - 1) // 2
    return nn.Sequential(
      nn.ReLU(),
      nn.Conv2d(
        channels, channels, size, stride, padding, dilation, channels, bias=False
      ),
      nn.Conv2d(channels, channels, 1, bias=False),
      norm(channels),
    )

  class Halved(nn.Module):
    def __init__(self, inputs, channels):
      super().__init__()
      self.even = nn.Conv2d(inputs, channels // 2, 1, 2, bias=False)
      self.odd = nn.Conv2d(inputs, channels // 2, 1, 2, bias=False)
      self.norm = norm(channels)

    def forward(self, x):
      x = torch.relu(x)
      return self.norm(torch.cat([self.even(x), self.odd(x[:, :, 1:, 1:])], 1))

  def operation(name, channels, stride):
    if name == "skip_connect":
      return nn.Identity() if stride == 1 else Halved(channels, channels)
    if "pool" in name:
      pool = (
        nn.MaxPool2d(3, stride, 1)
        if name.startswith("max")
        else nn.AvgPool2d(3, stride, 1, count_include_pad=False)
      )
      return nn.Sequential(pool, norm(channels))
    size = int(name[-1])
    if name.startswith("sep"):
      return nn.Sequential(half(channels, size, stride, 1), half(channels, size, 1, 1))
    return half(channels, size, stride, 2)

  class Mixed(nn.Module):
    def __init__(self, channels, stride):
      super().__init__()
      self.operations = nn.ModuleList(
        operation(name, channels, stride) for name in PRIMITIVES[1:]
      )

    def forward(self, x, weights):
      pairs = zip(weights[1:], self.operations)
      return sum(weight * operation(x) for weight, operation in pairs)

  def alike(inputs, channels):
    return nn.Sequential(
      nn.ReLU(), nn.Conv2d(inputs, channels, 1, bias=False), norm(channels)
    )

  class Cell(nn.Module):
    def __init__(self, cell):
      super().__init__()
      first = Halved if cell.after_reduction else alike
      self.first = first(cell.inputs[0], cell.channels)
      self.second = alike(cell.inputs[1], cell.channels)
      self.mixed = nn.ModuleList(
        Mixed(cell.channels, 2 if cell.reduction and source < 2 else 1)
        for source, _ in edges(4)
      )

    def forward(self, before, last, weights):
      states = [self.first(before), self.second(last)]
      entering = iter(zip(self.mixed, weights))
      for _ in range(4):
        pairs = zip(tuple(states), entering)  # as many edges as there are states
        states.append(sum(mixed(x, weight) for x, (mixed, weight) in pairs))
      return torch.cat(states[2:], 1)

  class Supernet(nn.Module):
    def __init__(self):
      super().__init__()
      plan = work.plan()
      wide = plan.cells[0].inputs[0]
      self.plan = plan
      self.stem = nn.Sequential(
        nn.Conv2d(work.image[2], wide, 3, 1, 1, bias=False), nn.BatchNorm2d(wide)
      )
      self.cells = nn.ModuleList(map(Cell, plan.cells))
      self.classifier = nn.Linear(plan.outputs, work.classes)
      self.alphas = nn.ParameterDict(
        {name: nn.Parameter(1e-3 * torch.randn(14, 8)) for name in CELLS}
      )

    def forward(self, x):
      before = last = self.stem(x)
      for cell, place in zip(self.cells, self.plan.cells):
        weights = torch.softmax(self.alphas[place.kind], -1)
        before, last = last, cell(before, last, weights)
      return self.classifier(last.mean((2, 3)))

  return Supernet()


WAYS: dict[str, Callable[[Work], Callable[[int], None]]] = {
  **{way: _ours(way) for way in PROGRAMS},
  "torch_forward": _torch(False),
  "torch_gradient": _torch(True),
}


def find(way: str) -> Callable[[Work], Callable[[int], None]]:
  """The way of that name."""
  return WAYS[way]
