"""Tables of text, and how values of unknown type are written in them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import markupsafe

DASH = "–"  # what is not known
# In this order: what an escape itself brings in is not escaped again.
_MARKDOWN_ESCAPES = (
  ("\\", "\\\\"),
  ("&", "&amp;"),
  ("<", "&lt;"),
  (">", "&gt;"),
  ("|", "\\|"),
  ("`", "\\`"),
)


class Table(NamedTuple):
  """A table of text.

  Attributes:
    columns: (heading, whether it holds numbers) by column.
    rows: cells by row, as many as there are columns.
    marked: index of the row that is this run's result; -1 for none.
  """

  columns: Sequence[tuple[str, bool]]
  rows: Sequence[Sequence[str]]
  marked: int = -1


def table(
  columns: Sequence[tuple[str, bool]], rows: Sequence[Sequence[str]], marked: int = -1
) -> Table | None:
  """A table without the columns that say nothing; None without rows."""
  kept = [i for i in range(len(columns)) if any(r[i] not in ("", DASH) for r in rows)]
  if not kept:
    return None
  return Table([columns[i] for i in kept], [[r[i] for i in kept] for r in rows], marked)


def pairs(rows: Iterable[tuple[str, Any]]) -> Table | None:
  """A table of names and values, without the values that are not known."""
  shown = [(name, text_of(value)) for name, value in rows if value is not None]
  return Table([("", False), ("", False)], shown) if shown else None


def flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
  """Settings by dotted name, exactly as they were given: nothing is rounded."""
  rows: list[tuple[str, str]] = []
  for name, value in values.items():
    if isinstance(value, dict):
      rows += flatten(value, f"{prefix}{name}.")
    else:
      shown = ", ".join(map(str, value)) if isinstance(value, list) else value
      rows.append((prefix + name, "none" if shown is None else str(shown)))
  return rows


def number(value: Any) -> str:
  """A score to four decimals, a count with separators, what is not known as a dash."""
  if value is None or (isinstance(value, float) and not math.isfinite(value)):
    return DASH
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    return str(value)
  return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def counted(how_many: int, noun: str) -> str:
  """`1 epoch`, `3 epochs`."""
  return f"{how_many} {noun}{'' if how_many == 1 else 's'}"


def figure(value: Any) -> str:
  """A time or another measured number to three significant digits."""
  if not isinstance(value, float) or not math.isfinite(value):
    return number(value)
  return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"


def text_of(value: Any) -> str:
  """A value of unknown type as people read it."""
  if value is None:
    return ""
  if isinstance(value, bool):
    return "yes" if value else "no"
  if isinstance(value, (list, tuple)):
    return ", ".join(map(text_of, value))
  return figure(value)


def markdown(value: Any) -> Any:
  """What every printed expression of report.md goes through: one line, no markup."""
  if isinstance(value, markupsafe.Markup):
    return value
  text = " ".join(str(value).split())
  for plain, escaped in _MARKDOWN_ESCAPES:
    text = text.replace(plain, escaped)
  return text


def verbatim(value: str) -> markupsafe.Markup:
  """Text for an indented code block, where Markdown knows no markup to escape."""
  return markupsafe.Markup(" ".join(value.split()))
