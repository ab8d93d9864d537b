"""The authors' notation of cells, `Genotype(name=[('operation', state), ...], ...)`.

Read as data: nothing in the text is run, and no name in it is looked up.
"""

import ast
from collections.abc import Mapping, Sequence
from typing import Any

from nasjax.core.types import InputError


def fields(
  text: str, wanted: Sequence[str], example: str, published: Mapping[str, str]
) -> dict[str, list]:
  """The lists of a genotype in words.

  Args:
    text: the notation, or a name out of `published`.
    wanted: names of the lists.
    example: how the notation looks, for the user.
    published: notation by name.

  Raises:
    InputError: it is no such text, or its lists are not those wanted.
  """
  text = published.get(text.strip(), text)
  try:
    call = ast.parse(text.strip(), mode="eval").body
    if not isinstance(call, ast.Call) or call.args:
      raise ValueError("no call")
    found = {str(part.arg): _values(part.value) for part in call.keywords}
  except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
    raise InputError(
      f"not a genotype in the form {example}, nor one of {', '.join(published)}: "
      f"{text.strip()[:60]!r}"
    ) from None
  missing = [name for name in wanted if name not in found]
  if missing or len(found) != len(wanted):
    raise InputError(
      f"a genotype has {', '.join(wanted)}; this one has {', '.join(found)}"
    )
  return found


def _values(node: ast.expr) -> list:
  """A literal list, or `range(a, b)`."""
  if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
    if node.func.id != "range" or len(node.args) != 2 or node.keywords:
      raise ValueError("no range")
    low, high = (ast.literal_eval(part) for part in node.args)
    if type(low) is not int or type(high) is not int or high - low > 100:
      raise ValueError("no range")
    return list(range(low, high))
  return list(ast.literal_eval(node))


def check_joined(name: str, joined: list, states: range) -> None:
  """Refuses a cell whose output is not made of all its nodes.

  Raises:
    InputError: naming the list.
  """
  if joined != list(states):
    raise InputError(f"{name} must join all nodes, {list(states)}, got {joined}")


def edge(
  value: Any, where: str, node: int, states: int, operations: Sequence[str]
) -> tuple[str, int]:
  """One edge, checked.

  Args:
    value: as the notation has it.
    where: which edge that is, for the user.
    node: that reads it.
    states: how many there are before that node.
    operations: known names.

  Returns:
    (operation, source state).

  Raises:
    InputError: no edge, an unknown operation, or a state that is not there yet.
  """
  if not isinstance(value, tuple) or len(value) != 2:
    raise InputError(f"{where} must be ('operation', state), got {value!r}")
  op, source = value
  if op not in operations:
    raise InputError(f"{where}: no operation {op!r}; there are {', '.join(operations)}")
  if type(source) is not int or not 0 <= source < states:
    before = "state 0" if states == 1 else f"states 0 to {states - 1}"
    raise InputError(
      f"{where} reads state {source!r}; node {node} comes after {before}"
    )
  return op, source
