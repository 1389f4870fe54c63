"""The way in which a forward pass gets its experts: the one that took the least time here before.

A pass with many rows uses most experts of a layer. If they are read ahead, hardly any is read in
vain, and the disk is at work while attention computes. A pass with few rows uses few, and reading
others delays those that it needs; the next layer's router may tell which they will be. Beside an
accelerator, the processor may compute few rows in less time than the link takes for their expert.

Where one way begins to pay depends on the router, the disk, the link and the processor. So all ways
are timed, whole passes at a time, for each magnitude of rows, and the slower ones are tried again
from time to time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto


class Way(Enum):
    """What is read ahead of the next layer, of what is not in memory, and where experts compute."""

    NONE = auto()
    ALL = auto()
    GUESSED = auto()
    """Those that the next layer's router chooses for this layer's hidden states."""

    COMPUTED = auto()
    """None. Experts that do not stay on the accelerator compute where they lie, in main memory."""


_MOST_ROWS_COMPUTED = 255
"""Most rows of a layer, over all its experts, that the processor computes beside an accelerator. It
bounds the time of a trial, and what computing takes of main memory to some MiB."""

_TRIALS = 3
"""Passes that are timed in each way before one is chosen."""

_FIRST_INTERVAL, _LONGEST_INTERVAL = 32, 2048
"""Passes from one trial of a slower way to the next: the interval doubles while the choice holds,
so that trials take well below a hundredth of the time."""

_WEIGHT = 0.2
"""The weight of the latest pass in the mean time of a way."""

_FAILED = 60.0
"""Seconds of a row that a failed pass counts as."""


@dataclass(slots=True)
class _Magnitude:
    """What was measured for passes with about as many rows.

    Attributes:
        seconds: For each way the recent mean time of a row.
        passes: For each way the number of passes.
        others: The slower ways, the one that is tried next first.
        next_trial: Passes until it is tried.
        interval: Passes between the last trial and the next one.
    """

    seconds: dict[Way, float]
    passes: dict[Way, int]
    others: list[Way] = field(default_factory=list)
    next_trial: int = _FIRST_INTERVAL
    interval: int = _FIRST_INTERVAL

    @classmethod
    def of(cls, ways: Sequence[Way]) -> _Magnitude:
        return cls(dict.fromkeys(ways, 0.0), dict.fromkeys(ways, 0))

    @property
    def best(self) -> Way:
        """The way that takes the least time."""
        return min(self.seconds, key=self.seconds.__getitem__)

    def choose(self) -> Way:
        """Return the way of the next pass."""
        for way, count in self.passes.items():
            if count < _TRIALS:
                return way
        self.next_trial -= 1
        if self.next_trial > 0 or len(self.seconds) == 1:
            return self.best
        self.interval = min(2 * self.interval, _LONGEST_INTERVAL)
        self.next_trial = self.interval
        self.others = [way for way in self.others if way is not self.best] or [
            way for way in self.seconds if way is not self.best
        ]
        return self.others.pop(0)

    def count(self, way: Way, seconds: float) -> None:
        """Count a pass. A trial counts alone: if it was lucky, the next passes correct it."""
        mean, before = self.seconds[way], self.best
        is_trial = self.passes[way] < _TRIALS or way is not before
        self.seconds[way] = seconds if is_trial else mean + _WEIGHT * (seconds - mean)
        self.passes[way] += 1
        if self.best is not before:
            self.next_trial = self.interval = _FIRST_INTERVAL


class WayChoice:
    """Chooses a way for each pass, and learns from it.

    Attributes:
        way: The way of the present pass.
    """

    def __init__(self, ways: Sequence[Way], *, clock: Callable[[], float]) -> None:
        """Begin without a measurement.

        Args:
            ways: The ways to choose from.
            clock: Returns the time in seconds.
        """
        self.way = Way.NONE
        self._ways = ways
        self._clock = clock
        self._magnitudes: dict[int, _Magnitude] = {}
        self._rows, self._began = 0, 0.0

    def begin_pass(self, rows: int) -> None:
        """Choose for a pass with so many rows. A pass that failed counts as slow."""
        if self._rows:
            self._count(_FAILED)
        magnitude = self._magnitudes.get(rows.bit_length())
        if magnitude is None:
            magnitude = self._magnitudes[rows.bit_length()] = _Magnitude.of(self._ways_for(rows))
        self.way = magnitude.choose()
        self._rows, self._began = rows, self._clock()

    def end_pass(self) -> None:
        """Count the pass."""
        if self._rows:
            self._count((self._clock() - self._began) / self._rows)

    def _ways_for(self, rows: int) -> list[Way]:
        """Return the ways for passes of the magnitude of so many rows."""
        computes = rows.bit_length() <= _MOST_ROWS_COMPUTED.bit_length()
        return [way for way in self._ways if computes or way is not Way.COMPUTED]

    def _count(self, seconds: float) -> None:
        self._magnitudes[self._rows.bit_length()].count(self.way, seconds)
        self._rows = 0
