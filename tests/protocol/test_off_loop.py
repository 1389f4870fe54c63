"""What is large is done in a thread, and threads leave the event loop its turns."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator

import pytest

from predictor.protocol.http.off_loop import off_loop, take_short_turns


@pytest.fixture
def switch_interval() -> Iterator[None]:
    before = sys.getswitchinterval()
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("switch_interval")
def test_a_turn_is_far_shorter_than_a_probe_may_take():
    take_short_turns()
    assert sys.getswitchinterval() <= 0.001


def test_what_is_large_is_done_in_a_thread_and_what_is_small_is_not():
    async def threads() -> list[int]:
        return [await off_loop(size, threading.get_ident) for size in (100, 2**20)]

    small, large = asyncio.run(threads())
    assert small == threading.get_ident()
    assert large != threading.get_ident()
