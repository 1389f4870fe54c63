"""One server for the tests that only ask."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import Checkpoints
from tests.server.process import Served, serve


@pytest.fixture(scope="package")
def served(checkpoints: Checkpoints) -> Iterator[Served]:
    """A BLOOM with half of its blocks on disk."""
    with serve(
        checkpoints("bloom"),
        '--max_memory={"cpu": "1500KiB"}',
        "--max_model_len=128",
        "--prefill_chunk=16",
    ) as server:
        yield server.await_ready()
