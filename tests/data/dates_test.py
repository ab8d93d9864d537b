import numpy as np
import pytest

from nasjax.data import dates


@pytest.mark.parametrize(
  "texts, order, doubtful",
  [
    (["2024/12/31", "2024/1/2"], "year first", None),
    (["2024-1-5", "2024-11-5 18:30"], "year first", None),
    (["31.12.2024", "1.2.2024"], "day first", None),
    (["03.04.2024"], "day first", None),
    (["12/31/2024", "03/04/2024"], "month first", None),
    (["03/04/2024", "31/12/2024 06:00:01.5"], "day first", None),
    ([" 31-12-2024 "], "day first", None),
    (["05/05/2024", "03/04/2024"], "month first", "03/04/2024"),
    (["05/05/2024"], "month first", None),
  ],
)
def test_one_order_for_the_whole_column(texts, order, doubtful):
  assert dates.find_order(texts) == (order, doubtful)


@pytest.mark.parametrize(
  "texts",
  [
    [],
    ["31/12/2024", "12/31/2024"],
    ["2024/12/31", "31.12.2024"],
    ["12.31.2024"],
    ["31.2.2024"],
    ["12/31/24"],
    ["12/31-2024"],
    ["1.2.4711"],
    ["12/31/2024 25:00"],
    ["31.12.2024", "soon"],
    ["1.5"],
    ["192.168.0.1"],
    ["\u0661/2/2024"],
  ],
)
def test_what_is_not_dates_in_one_order_stays_text(texts):
  assert dates.find_order(texts) is None


def test_texts_become_seconds_and_none_is_missing():
  texts = ["03/04/2024", None, "03/04/2024 18:30:59"]
  parsed = dates.parse(texts, "day first")
  np.testing.assert_array_equal(
    parsed,
    np.array(["2024-04-03", "NaT", "2024-04-03T18:30:59"], "datetime64[s]"),
  )
  assert dates.parse(["03/04/2024"], "month first") == np.datetime64("2024-03-04")
  with pytest.raises(ValueError, match="'13/31/2024' is no date with the day first"):
    dates.parse([*texts, "13/31/2024"], "day first")


def test_what_looks_like_dates():
  assert dates.resemble(["12/31/24", "31 Dec 2024", "Dec 31, 2024 5 pm", "1-Jan-24"])
  assert not dates.resemble(["12/31/24", "12 apples"])
