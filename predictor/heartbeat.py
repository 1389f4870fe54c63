"""Whether work goes on, or takes too long to be merely slow: arithmetic over times.

A forward pass, or a read of a block, has a cost in units: passes of one token, or bytes. The
slowest recent piece of work tells the seconds of a unit, and so what the running piece may take.
If it takes several times as long, the engine is *stalled*: the model is not ready. If it takes far
longer, the engine is *dead*: the process has to end, because a thread that hangs in a driver or in
a file system cannot be stopped. An engine that has no work is neither.

The thread that works notes the begin and the end of each piece. Any other thread may ask for the
health at any time: a note is one assignment of an immutable value, and nothing is locked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

STALL_FACTOR, HANG_FACTOR = 10, 30
"""How many times as long as expected a piece may take. A busy node slows a forward pass by up to 16
times, but short passes have the floors of `Timeouts` besides."""

_DECAY = 0.98
"""What is left of the slowest pace after each later piece: half after 34 of them."""

State = Literal["ok", "stalled", "dead"]

SECONDS_BETWEEN_BEATS = 1.0
"""Seconds between two reports of the health of an engine process. A report takes microseconds."""

_ORDER: tuple[State, ...] = ("ok", "stalled", "dead")


@dataclass(frozen=True, slots=True)
class Timeouts:
    """The least bounds, in seconds, whatever was measured.

    Attributes:
        stall: Until an engine is stalled.
        hang: Until it is dead.
    """

    stall: float = 20.0
    hang: float = 300.0


@dataclass(frozen=True, slots=True)
class Health:
    """The state of an engine.

    Attributes:
        state: ``"ok"``, ``"stalled"`` or ``"dead"``.
        sentence: The reason, for the log; empty if all is well.
    """

    state: State = "ok"
    sentence: str = ""


def worst_of(states: Iterable[Health]) -> Health:
    """Return the worst of some states, the first of those that are equally bad."""
    return max(states, key=lambda health: _ORDER.index(health.state), default=Health())


@dataclass(frozen=True, slots=True)
class _Piece:
    began: float
    units: float
    name: str


class Activity:
    """Work of one kind that one thread does, piece by piece."""

    def __init__(
        self, noun: str, *, pace: float = 0.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin without work.

        Args:
            noun: The begin of a sentence about a piece, such as ``"A forward pass"``.
            pace: Seconds of a unit, until one is measured.
            clock: Returns the time in seconds.
        """
        self._noun = noun
        self._pace = pace
        self._is_measured = False
        self._clock = clock
        self._piece: _Piece | None = None

    def expect(self, pace: float) -> None:
        """Set the seconds of a unit, as measured elsewhere."""
        self._pace = pace
        self._is_measured = True

    def begin(self, units: float, name: str = "") -> None:
        """Note the begin of a piece.

        Args:
            units: Its cost; 0 if it should take no time at all.
            name: The end of a sentence about it.
        """
        self._piece = _Piece(self._clock(), units, name)

    def end(self) -> None:
        """Note the end of the piece, whose pace counts from now on."""
        piece, self._piece = self._piece, None
        if piece is None or not piece.units:
            return
        pace = (self._clock() - piece.began) / piece.units
        self._pace = max(pace, self._pace * _DECAY if self._is_measured else 0.0)
        self._is_measured = True

    def rest(self) -> None:
        """Note that nothing is under way; an unfinished piece does not count."""
        self._piece = None

    def pause(self) -> tuple[float, str] | None:
        """Stop watching the running piece, which waits for other work that is watched itself.

        Returns:
            The piece, for `resume`; None without one.
        """
        piece, self._piece = self._piece, None
        return None if piece is None else (piece.units, piece.name)

    def resume(self, piece: tuple[float, str] | None) -> None:
        """Watch a piece as if it began now."""
        if piece is not None:
            self.begin(*piece)

    @property
    def progress(self) -> str:
        """A sentence about the running piece; empty without one."""
        piece = self._piece
        return "" if piece is None else self._sentence(piece)

    def health(self, timeouts: Timeouts) -> Health:
        """Return whether the running piece takes too long."""
        piece = self._piece
        if piece is None:
            return Health()
        taken, expected = self._clock() - piece.began, self._pace * piece.units
        if taken > max(timeouts.hang, HANG_FACTOR * expected):
            return Health("dead", self._sentence(piece))
        if taken > max(timeouts.stall, STALL_FACTOR * expected):
            return Health("stalled", self._sentence(piece))
        return Health()

    def _sentence(self, piece: _Piece) -> str:
        taken, expected = self._clock() - piece.began, self._pace * piece.units
        usual = f", where {expected:.2g} s are usual" if expected else ""
        return f"{self._noun}{piece.name} has taken {taken:.0f} s{usual}"


class ReadActivities:
    """The reads of several threads, taken as one."""

    def __init__(self, activities: Sequence[Activity | ReadActivities]) -> None:
        """Keep the activities.

        Args:
            activities: The reads of each thread.
        """
        self._activities = activities

    @property
    def progress(self) -> str:
        """A sentence about one of the running reads; empty without one."""
        return next(filter(None, (one.progress for one in self._activities)), "")

    def health(self, timeouts: Timeouts) -> Health:
        """Return the worst state of the reads."""
        return worst_of(one.health(timeouts) for one in self._activities)


class Heartbeat:
    """The health of an engine and of the reader of its streamed blocks.

    Attributes:
        passes: The work of the model thread. A unit is a forward pass of one token.
        breakeven_tokens: Tokens that take as long to compute as one forward pass over the weights.
    """

    def __init__(
        self,
        timeouts: Timeouts | None = None,
        read_activity: Activity | ReadActivities | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin without work.

        Args:
            timeouts: The least bounds.
            read_activity: The reads of streamed blocks; None if none are read.
            clock: Returns the time in seconds.
        """
        self.passes = Activity("A forward pass", clock=clock)
        self.breakeven_tokens = 1
        self._read_activity = read_activity
        self._timeouts = timeouts or Timeouts()

    def begin_pass(self, tokens: int) -> None:
        """Note the begin of a forward pass that computes so many tokens."""
        self.passes.begin(1 + tokens / max(1, self.breakeven_tokens))

    def health(self) -> Health:
        """Return the worse state of the passes and the reads. Any thread may call this."""
        passes = self.passes.health(self._timeouts)
        if self._read_activity is None:
            return passes
        read_activity = self._read_activity.health(self._timeouts)
        state = max(passes.state, read_activity.state, key=_ORDER.index)
        if state == "ok":
            return Health()
        sentences = (passes.sentence, self._read_activity.progress)
        return Health(state, ". ".join(filter(None, sentences)))


class ReportedHealth:
    """The health of an engine process, by its reports and by the time since the last one.

    Attributes:
        last: The last report.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin without a report.

        Args:
            clock: Returns the time in seconds.
        """
        self.last = Health()
        noun = "The engine process says nothing, which"
        self._silence = Activity(noun, pace=SECONDS_BETWEEN_BEATS, clock=clock)
        self.hear()

    def hear(self) -> None:
        """Note that the process says something."""
        self._silence.begin(1)

    def health(self, timeouts: Timeouts) -> Health:
        """Return what was last reported, or that nothing is said, if that is worse."""
        return worst_of((self.last, self._silence.health(timeouts)))
