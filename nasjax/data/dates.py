"""Dates in a column of text: the whole column in one order of year, month and day.

Arrow itself reads ISO dates. Here are year first (`2024/12/31`), month first
(`12/31/2024`) and day first (`31/12/2024`, `31.12.2024`), with `/`, `-` or `.` between,
a year of four digits from 1500 to 2199 and perhaps a time (`18:30` or `18:30:59`). A
column is dates only if every value is a day of the calendar in the same order. Where
every value is one both month first and day first, month first is taken; with `.`
between, the day is always first.
"""

import datetime
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from nasjax.data.standalone import ORDERS, moment

READ = "2024-12-31, 2024/12/31, 31.12.2024, 12/31/2024 or 31/12/2024"
# Looser: also `12/31/24`, `31 Dec 2024`, `Dec 31, 2024` and what follows them.
_LIKE_A_DATE = re.compile(
  r"\s*(\d{1,4}[-/. ]+(\d{1,2}|[a-z]{3,9})|[a-z]{3,9}[. ]+\d{1,2})[-/., ]+\d{2,4}\b.*",
  re.ASCII | re.IGNORECASE,
)


class Order(NamedTuple):
  """How a column's dates are written.

  Attributes:
    name: "year first", "month first" or "day first".
    doubtful: a text of the column that is another day in another order in which the
      whole column could be read as well; None where there is none.
  """

  name: str
  doubtful: str | None


def find_order(texts: Iterable[str]) -> Order | None:
  """The order in which every text is a date; None where there is none, or no text."""
  left, doubtful, empty = list(ORDERS), None, True
  for text in texts:
    empty = False
    moments = {name: moment(text, name) for name in left}
    left = [name for name in left if moments[name]]
    if not left:
      return None
    if doubtful is None and len({moments[name] for name in left}) > 1:
      doubtful = text
  if empty:
    return None
  return Order(left[0], doubtful if len(left) > 1 else None)


def parse(texts: Sequence[str | None], order: str) -> np.ndarray:
  """Texts `[N]` as datetime64[s], in an order that `find_order` named; None is NaT.

  Raises:
    ValueError: naming a text that is no date in this order.
  """
  moments: dict[str | None, datetime.datetime | None] = {None: None}
  for text in texts:
    if text is not None and text not in moments:
      moments[text] = moment(text, order)
      if moments[text] is None:
        raise ValueError(f"{text!r} is no date with the {order}")
  return np.array([moments[text] for text in texts], "datetime64[s]")


def resemble(texts: Iterable[str]) -> bool:
  """Whether all texts look like dates, though they may not be read as such."""
  return all(_LIKE_A_DATE.fullmatch(text) for text in texts)
