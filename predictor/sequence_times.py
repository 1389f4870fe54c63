"""When a sequence was in which phase, for the trace of its request.

The engine process notes the times, and the front process puts them into spans. Both read the
system's monotonic clock, which is one for all processes. A context variable says which request a
sequence belongs to, so that no layer between has to pass it on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SequenceTimes:
    """The phases of one sequence so far.

    Attributes:
        arrived: When the engine got it, in seconds of the monotonic clock, as all below.
        started: When its first forward pass began.
        first_token: When its first token was there.
        last_token: When its last token so far was there.
        prefill_stall: Seconds between `started` and `first_token` in which the engine waited for
            weights.
        decode_stall: The same between `first_token` and `last_token`.
    """

    arrived: float
    started: float
    first_token: float
    last_token: float
    prefill_stall: float = 0.0
    decode_stall: float = 0.0


class TimesOfRequest:
    """The times of the sequences of one request, in order of their submission."""

    def __init__(self) -> None:
        self._times: list[SequenceTimes | None] = []

    def add_sequence(self) -> int:
        """Return the index of a new sequence, which has no times yet."""
        self._times.append(None)
        return len(self._times) - 1

    def update(self, index: int, times: SequenceTimes) -> None:
        """Take the latest times of a sequence; any thread may call it."""
        self._times[index] = times

    @property
    def measured(self) -> list[SequenceTimes]:
        """The times of all sequences that have a token."""
        return [times for times in self._times if times is not None]


_current: ContextVar[TimesOfRequest | None] = ContextVar("sequence_times", default=None)


def current_times() -> TimesOfRequest | None:
    """Return where the times of the current request's sequences go; None if nobody wants them."""
    return _current.get()


@contextmanager
def collected_times() -> Iterator[TimesOfRequest]:
    """Collect the times of the sequences that are submitted in the context."""
    times = TimesOfRequest()
    token = _current.set(times)
    try:
        yield times
    finally:
        _current.reset(token)
