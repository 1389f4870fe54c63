"""Whether a forward pass reads the next layer's experts ahead: what took less time here before.

A pass with many rows uses most experts of a layer, so that hardly any is read ahead in vain, and
the disk is at work while attention computes. A pass with few rows uses few, and reading others
delays those that it needs. Where one begins to pay depends on the router, the disk and the
processor. So both ways are timed, whole passes at a time, for each magnitude of rows, and the
slower one is tried again from time to time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

_TRIALS = 3
"""Passes that are timed in each way before one is chosen."""

_FIRST_INTERVAL, _LONGEST_INTERVAL = 32, 2048
"""Passes from one trial of the slower way to the next: the interval doubles while the choice holds,
so that trials take well below a hundredth of the time."""

_WEIGHT = 0.2
"""The weight of the latest pass in the mean time of a way."""


@dataclass(slots=True)
class _Magnitude:
    """What was measured for passes with about as many rows.

    Attributes:
        seconds: For each way (without and with reading ahead) the recent mean time of a row.
        passes: For each way the number of passes.
        next_trial: Passes until the slower way is tried.
        interval: Passes between the last trial and the next one.
    """

    seconds: list[float] = field(default_factory=lambda: [0.0, 0.0])
    passes: list[int] = field(default_factory=lambda: [0, 0])
    next_trial: int = _FIRST_INTERVAL
    interval: int = _FIRST_INTERVAL

    @property
    def best(self) -> int:
        """The way that takes less time."""
        return int(self.seconds[1] < self.seconds[0])

    def choose(self) -> int:
        """Return the way of the next pass."""
        for way in (0, 1):
            if self.passes[way] < _TRIALS:
                return way
        self.next_trial -= 1
        if self.next_trial > 0:
            return self.best
        self.interval = min(2 * self.interval, _LONGEST_INTERVAL)
        self.next_trial = self.interval
        return 1 - self.best

    def count(self, way: int, seconds: float) -> None:
        """Count a pass. A trial counts alone: if it was lucky, the next passes correct it."""
        mean, before = self.seconds[way], self.best
        is_trial = self.passes[way] < _TRIALS or way != before
        self.seconds[way] = seconds if is_trial else mean + _WEIGHT * (seconds - mean)
        self.passes[way] += 1
        if self.best != before:
            self.next_trial = self.interval = _FIRST_INTERVAL


class ReadAhead:
    """Chooses for each pass, and learns from it.

    Attributes:
        is_on: Whether the present pass reads ahead.
    """

    def __init__(self, *, clock: Callable[[], float]) -> None:
        """Begin without a measurement.

        Args:
            clock: Returns the time in seconds.
        """
        self.is_on = False
        self._clock = clock
        self._magnitudes: dict[int, _Magnitude] = {}
        self._rows, self._began = 0, 0.0

    def begin_pass(self, rows: int) -> None:
        """Choose for a pass with so many rows."""
        magnitude = self._magnitudes.setdefault(rows.bit_length(), _Magnitude())
        self.is_on = bool(magnitude.choose())
        self._rows, self._began = rows, self._clock()

    def end_pass(self) -> None:
        """Count the pass."""
        if self._rows:
            seconds = (self._clock() - self._began) / self._rows
            self._magnitudes[self._rows.bit_length()].count(int(self.is_on), seconds)
        self._rows = 0
