from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from hypothesis import settings

from tests.protocol.stub import Served, serve

# The same examples on every run, and no clock: the machines that run this are shared.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def running() -> Iterator[Served]:
    """One server for the whole session; tests take `served`, which puts its model right again."""
    with serve() as served:
        yield served


@pytest.fixture
def served(running: Served) -> Iterator[Served]:
    yield running
    running.model.ready = True
    running.model.failure = None
    running.model.loading = {}
    running.model.heat = ()
    running.model.placement = None
    running.model.held = False
    running.model.requests.clear()


@pytest.fixture
def client(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=30) as client:
        yield client
