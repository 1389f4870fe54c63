"""Admission: bound the requests that run or wait; one too many is `Overloaded` (HTTP 429)."""

from __future__ import annotations

import math
import time

from predictor.errors import Overloaded


class AdmissionController:
    """Counts the requests that were admitted and are not answered yet.

    Attributes:
        most: The limit (`max_requests`).
        taken: Permits in use.
    """

    def __init__(self, most: int) -> None:
        """Start with every permit free."""
        self.most = most
        self.taken = 0
        self._rate = _Rate()

    def check(self) -> None:
        """Return if one more request may be admitted.

        Raises:
            Overloaded: The limit is reached; it carries the seconds after which to retry.
        """
        if self.taken >= self.most:
            raise Overloaded(
                f"{self.taken} requests are running and waiting; try again later.",
                retry_after=self._rate.seconds_to_next(),
            )

    def take(self) -> Permit:
        """Take a permit without a check: call `check` first."""
        self.taken += 1
        return Permit(self)

    def answered(self) -> None:
        """Count an answer, from which `Overloaded.retry_after` is estimated."""
        self._rate.count()

    def free(self) -> None:
        """Take back one permit; called by `Permit.release`."""
        self.taken -= 1
        if not self.taken:
            self._rate.pause()


class Permit:
    """Admits one request until it is released or garbage collected."""

    def __init__(self, admission: AdmissionController) -> None:
        self._admission: AdmissionController | None = admission

    def release(self) -> None:
        """Give the permit back; later calls do nothing."""
        if self._admission is not None:
            self._admission.free()
            self._admission = None

    def __del__(self) -> None:
        self.release()  # of a stream that is dropped before its first piece is read


class _Rate:
    """Average the seconds between two answers, exponentially."""

    _WEIGHT = 0.2

    def __init__(self) -> None:
        self._last: float | None = None
        self._interval = 1.0

    def count(self) -> None:
        now = time.monotonic()
        if self._last is not None:
            self._interval += self._WEIGHT * (now - self._last - self._interval)
        self._last = now

    def pause(self) -> None:
        """Ignore the time until the next answer: no request is running."""
        self._last = None

    def seconds_to_next(self) -> int:
        """Return whole seconds, at least 1, after which a permit is likely to be free."""
        return max(1, math.ceil(self._interval))
