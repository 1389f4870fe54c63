"""Lets requests begin a few at a time, so that no iteration of the event loop takes long.

Hundreds of requests may arrive at one moment. If all began in one iteration, a health check that
comes with them would wait until the last has been decoded or refused.
"""

from __future__ import annotations

import asyncio
from collections import deque

_AT_ONCE = 4
"""Requests that begin in one iteration. A refusal takes half a millisecond and a short request one
or two, of which a health check waits for some three iterations."""


class Turns:
    """The turns of all connections of a server. Only its event loop may use it."""

    def __init__(self, at_once: int = _AT_ONCE) -> None:
        """Let so many requests begin in one iteration."""
        self._at_once = self._left = at_once
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._is_scheduled = False

    async def take(self) -> None:
        """Wait for a turn, in the order of the calls."""
        self._schedule()
        if self._left and not self._waiting:
            self._left -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        await turn

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._renew)

    def _renew(self) -> None:
        self._is_scheduled, self._left = False, self._at_once
        while self._left and self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # cancelled
                turn.set_result(None)
                self._left -= 1
        if self._waiting:
            self._schedule()
