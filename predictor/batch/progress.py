"""The progress of a batch: lines, rates, and the time that is left, as a line in the log."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

SECONDS_BETWEEN_REPORTS = 10.0


@dataclass(slots=True)
class Progress:
    """What a run has done so far.

    Attributes:
        total_bytes: Bytes of the lines that the run is about, nearly until `end`.
        earlier_lines: Lines that an earlier run has done.
        earlier_bytes: Their bytes.
        lines: Lines that this run has done.
        bytes: Their bytes.
        failed: Lines of this run that have an error.
        began: When it began, on `clock`.
        clock: Seconds that never go back.
    """

    total_bytes: int
    earlier_lines: int = 0
    earlier_bytes: int = 0
    lines: int = 0
    bytes: int = 0
    failed: int = 0
    clock: Callable[[], float] = time.monotonic
    began: float = 0.0

    def start(self) -> None:
        """Begin to count the time."""
        self.began = self.clock()

    def end(self) -> None:
        """Note that every line has a result; what is left of the bytes were no lines."""
        self.total_bytes = self.earlier_bytes + self.bytes

    def skip(self, size: int) -> None:
        """Count a line of so many bytes that an earlier run has done."""
        self.earlier_lines += 1
        self.earlier_bytes += size

    def count(self, size: int, *, is_ok: bool) -> None:
        """Count a line of so many bytes that has a result."""
        self.lines += 1
        self.bytes += size
        self.failed += not is_ok

    def sentence(self, prompt_tokens: int, completion_tokens: int) -> str:
        """Return the progress as a sentence.

        Args:
            prompt_tokens: Tokens of the prompts of this run.
            completion_tokens: Tokens of its replies.
        """
        seconds = max(self.clock() - self.began, 1e-9)
        done = self.earlier_bytes + self.bytes
        share = 100 * min(1.0, done / self.total_bytes) if self.total_bytes else 100.0
        rates = (
            f"{self.lines / seconds:.3g} lines/s, {prompt_tokens / seconds:.4g} prompt tokens/s, "
            f"{completion_tokens / seconds:.4g} reply tokens/s"
        )
        return (
            f"{self.earlier_lines + self.lines} lines are done ({share:.0f} %), {self.failed} with "
            f"an error; {rates}; {_duration(self._left(seconds))} left"
        )

    def _left(self, seconds: float) -> float | None:
        """Return the seconds that the rest takes if it goes on like this; None if unknown."""
        if not self.bytes:
            return None
        rest = max(0, self.total_bytes - self.earlier_bytes - self.bytes)
        return rest * seconds / self.bytes


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "an unknown time is"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} is"
