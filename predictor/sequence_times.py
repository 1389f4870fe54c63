"""When a sequence was in which phase, for the trace of its request.

The engine process notes the times, and the front process puts them into spans. Both read the
system's monotonic clock, which is one for all processes. A context variable says which request a
sequence belongs to, so that no layer between has to pass it on.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class SequenceTimes:
    """The phases of one sequence so far.

    Attributes:
        arrived: When it was submitted, in seconds of the monotonic clock, as all below.
        started: When its first forward pass began; None while it waits.
        first_token: When its first token was there; None before.
        last_token: When its last token so far was there; None before the first one.
        prefill_stall: Seconds between `started` and `first_token` in which the engine waited for
            weights.
        decode_stall: The same between `first_token` and `last_token`.
        finished: When its reply was complete; None before, and if it failed or was cancelled.
    """

    arrived: float
    started: float | None = None
    first_token: float | None = None
    last_token: float | None = None
    prefill_stall: float = 0.0
    decode_stall: float = 0.0
    finished: float | None = None


class TimesOfRequest:
    """The times of the sequences of one request, in order of their submission.

    Attributes:
        sequences: The latest times of each sequence.
    """

    def __init__(self) -> None:
        self.sequences: list[SequenceTimes] = []

    def add_sequence(self) -> int:
        """Return the index of a sequence that is submitted now."""
        self.sequences.append(SequenceTimes(time.monotonic()))
        return len(self.sequences) - 1

    def update(self, index: int, times: SequenceTimes) -> None:
        """Take the latest times of a sequence; any thread may call it."""
        self.sequences[index] = times

    def finish(self, index: int) -> None:
        """Note that the reply of a sequence is complete; any thread may call it."""
        self.sequences[index] = replace(self.sequences[index], finished=time.monotonic())


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
