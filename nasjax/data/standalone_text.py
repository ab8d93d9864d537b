"""What a language model that nasjax found makes of a text.

  python predict.py TEXT.txt [PREDICTIONS.csv] [--overwrite]
  python predict.py TEXT.txt --continue=200 [--seed=0]

It stands beside `genotype.json`, `weights.npz` and `preprocessing.json`, reads them and
the text, and needs Python 3.11 and NumPy alone. It prints the perplexity of the text,
or writes each token with the probability that it had after those before it, and what
was likeliest; or it goes on with the text for so many tokens, drawn by their
probabilities. As a module: `load`, `encode`, `predict`; model.onnx and model.jaxexport
take tokens `[T, B]` and a hidden state `[B, H]`, and answer as `predict` does.

In nasjax this file is `nasjax/data/standalone_text.py`; the nodes of model.onnx are
made by the same `step`. `load` is also in its siblings: each of them leaves alone.
"""

import argparse
import csv
import io
import json
import os
import pathlib
import re
import sys
import zipfile
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

UNKNOWN = "<unk>"
END_OF_LINE = "<eos>"
_WINDOW = 256  # steps at a time: probabilities are as wide as the vocabulary


class Model(NamedTuple):
  """What the three files hold.

  Attributes:
    unit: "words" or "characters".
    vocabulary: V tokens by number.
    cell: (activation, the state that it reads) of each node.
    arrays: `embedding [V, H]`, `bias [V]`, `input [2H, 2H]`, `nodes [N, H, 2H]`.
  """

  unit: str
  vocabulary: list[str]
  cell: list[tuple[str, int]]
  arrays: dict[str, np.ndarray]


def model_of(
  description: dict[str, Any], arrays: dict[str, np.ndarray], fitted: dict[str, Any]
) -> Model:
  """The model that the contents of the three files describe.

  Raises:
    ValueError: they are of no recurrent cell.
  """
  if description.get("space", {}).get("kind") != "recurrent_cell":
    raise ValueError("the model is no language model of a recurrent cell")
  found = re.findall(r"\('(\w+)', (\d+)\)", description.get("arch", ""))
  cell = [(activation, int(source)) for activation, source in found]
  missing = {"embedding", "bias", "input", "nodes"} - arrays.keys()
  missing |= {"unit", "vocabulary"} - fitted.keys()
  if missing:
    raise ValueError(f"the model has no {', '.join(sorted(missing))}")
  if len(cell) != len(arrays["nodes"]):
    raise ValueError(f"the cell of genotype.json has {len(cell)} nodes")
  if any(source > node for node, (_, source) in enumerate(cell)):
    raise ValueError("a node of genotype.json reads one that comes after it")
  return Model(fitted["unit"], fitted["vocabulary"], cell, arrays)


def load(folder: str | os.PathLike) -> Model:
  """Reads the three files.

  Raises:
    ValueError: one is missing or is not what it should be.
  """
  source = pathlib.Path(folder)
  try:
    with np.load(source / "weights.npz", allow_pickle=False) as archive:
      arrays = {name: archive[name] for name in archive.files}
    description, fitted = (
      json.loads((source / f"{name}.json").read_text(encoding="utf-8"))
      for name in ("genotype", "preprocessing")
    )
  except FileNotFoundError as error:
    raise ValueError(f"no model in {source}: {error.filename} is missing") from None
  except (OSError, EOFError, zipfile.BadZipFile) as error:
    raise ValueError(f"the model in {source} cannot be read: {error}") from None
  return model_of(description, arrays, fitted)


def tokens_of(text: str, unit: str) -> Sequence[str]:
  """The tokens of a text; a line of words ends with `<eos>`."""
  if unit == "characters":
    return text
  return [token for line in text.splitlines() for token in (*line.split(), END_OF_LINE)]


def encode(model: Model, tokens: Sequence[str]) -> np.ndarray:
  """`[N]` int32 numbers; what is not in the vocabulary is `<unk>`."""
  number = {token: index for index, token in enumerate(model.vocabulary)}
  unknown = number[UNKNOWN]
  return np.array([number.get(token, unknown) for token in tokens], np.int32)


class NumPy:
  """The operations on arrays; what else carries out `step` has the same methods."""

  def product(self, x: Any, matrix: Any) -> Any:
    """Matrix product."""
    return x @ matrix

  def halves(self, x: Any) -> Any:
    """The two halves of the last axis."""
    return np.split(x, 2, -1)

  def add(self, left: Any, right: Any) -> Any:
    """The sum."""
    return left + right

  def gated(self, state: Any, gate: Any, made: Any) -> Any:
    """`state + sigmoid(gate) * (made - state)`."""
    return state + self.sigmoid(gate) * (made - state)

  def mean(self, parts: Sequence[Any]) -> Any:
    """Of several states."""
    return sum(parts) / len(parts)

  def tanh(self, x: Any) -> Any:
    """Hyperbolic tangent."""
    return np.tanh(x)

  def sigmoid(self, x: Any) -> Any:
    """Logistic function, which overflows nowhere in this form."""
    return 0.5 + 0.5 * np.tanh(0.5 * x)

  def relu(self, x: Any) -> Any:
    """The larger of x and 0."""
    return np.maximum(x, 0.0)

  def identity(self, x: Any) -> Any:
    """x."""
    return x


def step(model: Model, ops: Any, into: Any, hidden: Any) -> Any:
  """One step of the cell: the next hidden state `[B, H]`.

  Liu, Simonyan and Yang, "DARTS: differentiable architecture search", ICLR 2019,
  section 3.1.2.

  Args:
    model: whose cell.
    ops: with the methods of `NumPy`.
    into: `[B, 2H]` the input's part of the first product.
    hidden: `[B, H]` before.
  """
  arrays = model.arrays
  recurrent = arrays["input"][hidden_units(model) :]
  gate, made = ops.halves(ops.add(into, ops.product(hidden, recurrent)))
  states = [ops.gated(hidden, gate, ops.tanh(made))]
  for node, (activation, source) in enumerate(model.cell):
    state = states[source]
    gate, made = ops.halves(ops.product(state, arrays["nodes"][node]))
    states.append(ops.gated(state, gate, getattr(ops, activation)(made)))
  return ops.mean(states[1:])


def hidden_units(model: Model) -> int:
  """H."""
  return model.arrays["embedding"].shape[1]


def predict(
  model: Model, tokens: np.ndarray, hidden: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """Probabilities `[T, B, V]` of what follows each token, and the last hidden state.

  Args:
    model: what to run, in float64.
    tokens: `[T, B]` numbers.
    hidden: `[B, H]` that the tokens before left; zeros without any.
  """
  table, ops = model.arrays["embedding"].astype(np.float64), NumPy()
  units = hidden_units(model)
  hidden = np.zeros((tokens.shape[1], units)) if hidden is None else hidden
  into = table[tokens] @ model.arrays["input"][:units]
  states = np.empty((*tokens.shape, units))
  for number in range(len(tokens)):
    states[number] = hidden = step(model, ops, into[number], hidden)
  logits = states @ table.T + model.arrays["bias"]
  powers = np.exp(logits - logits.max(-1, keepdims=True))
  return powers / powers.sum(-1, keepdims=True), hidden


class Judged(NamedTuple):
  """What a model makes of N tokens.

  Attributes:
    probability: `[N - 1]` of each token but the first, after those before it.
    likeliest: `[N - 1]` numbers of what was likeliest in its place.
    following: `[V]` probabilities of what follows the last.
    hidden: `[1, H]` after the last.
  """

  probability: np.ndarray
  likeliest: np.ndarray
  following: np.ndarray
  hidden: np.ndarray

  @property
  def perplexity(self) -> float:
    """Of all tokens but the first; infinite where one was impossible."""
    with np.errstate(divide="ignore"):
      return float(np.exp(-np.log(self.probability).mean()))


def judge(model: Model, numbers: np.ndarray) -> Judged:
  """Runs a model over tokens `[N]`, N at least 2."""
  hidden, found, best = None, [], []
  for start in range(0, len(numbers), _WINDOW):
    window = numbers[start : start + _WINDOW]
    probabilities, hidden = predict(model, window[:, None], hidden)
    targets = numbers[start + 1 : start + 1 + len(window)]
    found.append(probabilities[np.arange(len(targets)), 0, targets])
    best.append(probabilities[: len(targets), 0].argmax(-1))
    following = probabilities[-1, 0]
  assert hidden is not None
  return Judged(np.concatenate(found), np.concatenate(best), following, hidden)


def go_on(model: Model, judged: Judged, count: int, seed: int) -> list[str]:
  """So many tokens after a text, each drawn by its probability; `<unk>` never is."""
  rng, drawn = np.random.default_rng(seed), []
  following, hidden = judged.following, judged.hidden
  for _ in range(count):
    following = following.copy()
    following[model.vocabulary.index(UNKNOWN)] = 0.0
    number = rng.choice(len(following), p=following / following.sum())
    drawn.append(model.vocabulary[number])
    probabilities, hidden = predict(model, np.array([[number]]), hidden)
    following = probabilities[0, 0]
  return drawn


def text_of(model: Model, tokens: Sequence[str]) -> str:
  """Tokens as they are read."""
  if model.unit == "characters":
    return "".join(tokens)
  lines = " ".join(tokens).split(END_OF_LINE)
  return "\n".join(line.strip() for line in lines)


def read(path: str | os.PathLike, model: Model) -> np.ndarray:
  """The numbers `[N]` of a text file's tokens.

  Raises:
    ValueError: no such file, it is not UTF-8, or has fewer than two tokens.
  """
  try:
    text = pathlib.Path(path).read_bytes().decode("utf-8-sig")
  except FileNotFoundError:
    raise ValueError(f"there is no file {path}") from None
  except UnicodeDecodeError as error:
    raise ValueError(f"{path} is not UTF-8: {error.reason}") from None
  numbers = encode(model, tokens_of(text, model.unit))
  if len(numbers) < 2:
    raise ValueError(f"{path} has {len(numbers)} {model.unit}; at least 2 are needed")
  return numbers


def table(model: Model, numbers: np.ndarray, judged: Judged) -> str:
  """CSV: each token but the first, its probability, and what was likeliest."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow(["token", "probability", "likeliest"])
  for number, value, best in zip(numbers[1:], judged.probability, judged.likeliest):
    writer.writerow([model.vocabulary[number], f"{value:.9g}", model.vocabulary[best]])
  return text.getvalue()


def write(output: str | os.PathLike, text: str, overwrite: bool) -> None:
  """Writes the whole file or nothing.

  Raises:
    ValueError: it is there already, unless `overwrite`.
  """
  path = pathlib.Path(output)
  if path.exists() and not overwrite:
    raise ValueError(f"{path} is there already; --overwrite replaces it")
  part = path.with_name(f".{path.name}.{os.getpid()}")
  try:
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
  finally:
    part.unlink(missing_ok=True)


def main() -> None:
  """The command line; exits with status 2 and one line for the user's mistake."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
  parser.add_argument("text", help="a text file")
  parser.add_argument("output", nargs="?", help="a CSV file")
  parser.add_argument("--overwrite", action="store_true", help="replace the output")
  parser.add_argument(
    "--continue", dest="count", type=int, default=0, help="tokens to go on for"
  )
  parser.add_argument("--seed", type=int, default=0, help="of those")
  given = parser.parse_args()
  try:
    model = load(pathlib.Path(__file__).resolve().parent)
    numbers = read(given.text, model)
    judged = judge(model, numbers)
    if given.output:
      write(given.output, table(model, numbers, judged), given.overwrite)
    if given.count > 0:
      print(text_of(model, go_on(model, judged, given.count, given.seed)))
    else:
      shown = f"{judged.perplexity:.4f} over {len(numbers) - 1} {model.unit}"
      print(f"perplexity {shown}")
  except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
  main()
