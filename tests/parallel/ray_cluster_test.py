"""What is said when there is no Ray, or no cluster."""

import importlib.util

import pytest

from nasjax.core.types import InputError
from nasjax.parallel import ray_cluster


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:99999", "auto"])
def test_an_address_where_nothing_is(address):
  pytest.importorskip("ray")
  there = ray_cluster.connected(address)
  with pytest.raises(InputError, match="no Ray cluster at"), there:
    pass


def test_what_needs_ray_says_what_to_install(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  assert not ray_cluster.installed()
  with pytest.raises(InputError, match="cluster"):
    ray_cluster.check()
