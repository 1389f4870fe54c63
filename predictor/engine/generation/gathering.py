"""How long a first sequence waits for those that come with it, while nothing is computed.

Requests that are sent at one time arrive one after the other. If the first alone began a forward
pass, all others would wait for its end. So an idle engine waits a small part of a forward pass,
where passes are long, as those over offloaded weights are.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

_LONG = 0.05
"""Seconds of a forward pass from which on it is worth to wait."""

_MOST, _GAP = 0.05, 0.02
"""Most of a forward pass that the first waits in all, and after each arrival."""

_SECONDS = 0.2
"""Most seconds in all: a pass may have waited for weights that arrive only once."""

_PASSES = 8
"""Forward passes of which the shortest is taken: that of a token of each sequence, usually."""


class Gathering:
    """The wait of one engine's first sequence."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Wait for nothing before passes have been timed.

        Args:
            clock: Returns the time in seconds.
        """
        self._clock = clock
        self._passes: deque[float] = deque(maxlen=_PASSES)
        self._first = self._last = 0.0

    def note_pass(self, seconds: float) -> None:
        """Note how long a forward pass took."""
        self._passes.append(seconds)

    def note_arrival(self, *, is_first: bool) -> None:
        """Note the arrival of a sequence.

        Args:
            is_first: Whether there is no other.
        """
        self._last = self._clock()
        if is_first:
            self._first = self._last

    @property
    def seconds_left(self) -> float:
        """Seconds to wait for further sequences, if nothing is computed."""
        shortest = min(self._passes, default=0.0)
        if shortest < _LONG:
            return 0.0
        most = min(_MOST * shortest, _SECONDS)
        end = min(self._first + most, self._last + _GAP * shortest)
        return max(0.0, end - self._clock())
