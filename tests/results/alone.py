"""Runs a saved model's script where nothing but NumPy can be imported."""

import csv
import subprocess
import sys
import textwrap

# Python's own modules and NumPy: whatever else is imported is an error.
ALONE = """
  import runpy, sys
  class Nothing:
    def find_spec(self, name, path=None, target=None):
      if name.split(".")[0] not in {*sys.stdlib_module_names, "numpy"}:
        raise ImportError(f"{name} is not for a stand-alone script")
  sys.meta_path.insert(0, Nothing())
  sys.argv = sys.argv[1:]
  runpy.run_path(sys.argv[0], run_name="__main__")
"""


def alone(folder, *arguments):
  """Runs `best/predict.py` in a folder."""
  return subprocess.run(
    [sys.executable, "-I", "-c", textwrap.dedent(ALONE), "best/predict.py", *arguments],
    cwd=folder,
    capture_output=True,
    text=True,
  )


def table_of(path):
  """Header and rows of a CSV file."""
  with open(path, newline="") as file:
    header, *rows = csv.reader(file)
  return header, rows
