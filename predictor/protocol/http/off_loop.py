"""Keeps what is large off the event loop, so that health checks do not wait for it.

A thread holds the interpreter's lock for some milliseconds at most before the event loop gets it. A
large body that was decoded on the event loop would keep it for the whole time.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")

SMALL = 16 * 1024
"""Bytes of JSON, about, that are decoded or encoded in less time than a thread's turn takes."""

_SECONDS_OF_A_TURN = 0.0005
"""Seconds for which a thread keeps the interpreter's lock while others wait. The event loop
releases it at each system call and waits for it again, some ten times for a request. With Python's
default of 5 ms, a loop beside two threads that decode took 48 ms for a turn in the median, and
1.7 ms with this (a script of just these three threads)."""


def take_short_turns() -> None:
    """Have the threads of this process hand the interpreter's lock over often."""
    sys.setswitchinterval(_SECONDS_OF_A_TURN)


async def off_loop(size: int, function: Callable[[], _T]) -> _T:
    """Return the result of a function, which a thread calls if it has much to do.

    Args:
        size: Bytes, about, that the function decodes or encodes.
        function: Called once.
    """
    if size <= SMALL:
        return function()
    return await asyncio.to_thread(function)
