"""Fixtures of the tests of results: one finished run, shared."""

import pytest
from synthetic_run import make_records, make_run, make_summary


@pytest.fixture(scope="session")
def search_records():
  return make_records(0, improving=True)


@pytest.fixture(scope="session")
def control_records():
  return make_records(1, improving=False)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory, search_records, control_records):
  folder = tmp_path_factory.mktemp("runs") / "wine"
  return make_run(folder, make_summary(), search_records, control_records)
