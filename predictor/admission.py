"""How many requests a model has accepted: each takes a place, and one too many is refused."""

from __future__ import annotations

import math
import time

from predictor.errors import Overloaded


class AdmissionController:
    """The places of requests that run or wait.

    Attributes:
        most: How many there are.
        taken: How many are taken now.
    """

    def __init__(self, most: int) -> None:
        """Begins with all of them free."""
        self.most = most
        self.taken = 0
        self._rate = _Rate()

    def check(self) -> None:
        """Returns if there is one more.

        Raises:
            Overloaded: There is none, and when one is likely to come free.
        """
        if self.taken >= self.most:
            raise Overloaded(
                f"{self.taken} requests are running and waiting; try again later.",
                retry_after=self._rate.seconds_to_next(),
            )

    def take(self) -> Permit:
        """Takes one, whether there is one or not: `check` has been asked."""
        self.taken += 1
        return Permit(self)

    def answered(self) -> None:
        """Notes that a request has been answered now."""
        self._rate.count()

    def free(self) -> None:
        """Is told by a place that it is given up."""
        self.taken -= 1
        if not self.taken:
            self._rate.rest()


class Permit:
    """A request's place, until it is given up or forgotten."""

    def __init__(self, places: AdmissionController) -> None:
        self._places: AdmissionController | None = places

    def release(self) -> None:
        """Lets another request have it."""
        if self._places is not None:
            self._places.free()
            self._places = None

    def __del__(self) -> None:
        self.release()  # of pieces that nobody has begun to read


class _Rate:
    """How often requests are answered: a moving average of the time between two answers."""

    _WEIGHT = 0.2

    def __init__(self) -> None:
        self._last: float | None = None
        self._interval = 1.0

    def count(self) -> None:
        now = time.monotonic()
        if self._last is not None:
            self._interval += self._WEIGHT * (now - self._last - self._interval)
        self._last = now

    def rest(self) -> None:
        """Notes that nobody waits: the time to the next answer tells nothing."""
        self._last = None

    def seconds_to_next(self) -> int:
        """Returns whole seconds, at least 1, in which a place is likely to come free."""
        return max(1, math.ceil(self._interval))
