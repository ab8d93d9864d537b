"""Memory of a population that does not fit as a whole: peak and time of every layout.

  python -m benchmarks.memory

Trains 1,000 children of the largest chain of the default space (ten layers of 512) for
an epoch of two steps, each layout in a process of its own, and prints what the process
had at its most beside what the machine has. Nothing is to be killed for memory.
"""

import argparse
import sys

import numpy as np
import psutil

from experiments.common_ways import Worker, Workload
from nasjax.networks import mlp
from nasjax.spaces.mlp_chain import MLPChain

_FEATURES, _CLASSES, _BATCH = 64, 10, 32
_LAYOUTS = ("auto", "exact", "bucketed", "padded")


def main() -> int:
  """Runs the layouts and prints a Markdown table; 1 if one of them did not end."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
  parser.add_argument("--children", type=int, default=1000)
  parser.add_argument("--layouts", nargs="+", default=_LAYOUTS, choices=_LAYOUTS)
  options = parser.parse_args()
  space = MLPChain()
  largest = " - ".join([f"{space.max_width} relu"] * (space.length - 1))
  genotype = space.parse(largest)
  work = Workload(
    name="memory",
    features=_FEATURES,
    classes=_CLASSES,
    rows=2 * _BATCH,
    valid_rows=_BATCH,
    batch_size=_BATCH,
    epochs=1,
    rounds=(np.stack([genotype] * options.children),),
    space=space,
    seed=0,
  )
  num_params = mlp.num_params(space.layers(genotype), _FEATURES, _CLASSES)
  weights_gb = 4e-9 * num_params * options.children
  total_gb = psutil.virtual_memory().total / 1e9
  print(
    f"{options.children} children of {num_params:,} parameters, {weights_gb:.1f} GB of "
    f"weights; a machine of {total_gb:.1f} GB\n\n"
    "| layout | peak, GB | seconds |\n|---|---:|---:|"
  )
  status = 0
  for layout in options.layouts:
    worker = None
    try:
      worker = Worker(layout, work)
      seconds = worker.train()
      print(f"| {layout} | {worker.peak_bytes / 1e9:.1f} | {seconds:.0f} |", flush=True)
    except RuntimeError as error:
      print(f"| {layout} | {error} | – |", flush=True)
      status = 1
    finally:
      if worker is not None:
        worker.close()
  return status


if __name__ == "__main__":
  sys.exit(main())
