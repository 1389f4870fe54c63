"""Admission: bound what is in flight; what is too much is `Overloaded` (HTTP 429).

Two gates. The first decides before a body is read, by requests and by bytes of bodies. The second
decides before anything is tokenised, by sequences and tokens. No more is held than the two allow,
but for one request alone, which is always admitted if its own limits allow it.

This module is arithmetic: no I/O and no event loop. The event loop's thread alone may use it.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from predictor.errors import Overloaded

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """What may be in flight at one time.

    Attributes:
        requests: Most requests.
        body_bytes: Most bytes of their bodies.
        sequences: Most sequences that wait or run.
        tokens: Most tokens of their prompts, of which each character may be one.
    """

    requests: int
    body_bytes: int
    sequences: int
    tokens: int


class AdmissionController:
    """Counts what is in flight.

    Attributes:
        limits: What may be.
        requests: Requests that have passed the first gate.
        body_bytes: Bytes of their bodies.
        running: Requests that have passed the second gate.
        sequences: Their sequences.
        tokens: Most tokens that their prompts may have.
    """

    def __init__(
        self,
        limits: AdmissionLimits,
        *,
        clock: Clock = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Start with nothing in flight.

        Args:
            limits: What may be in flight.
            clock: Seconds that never go back.
            jitter: A number from 0 to 1, each time another.
        """
        self.limits = limits
        self.requests = self.body_bytes = 0
        self.running = self.sequences = self.tokens = 0
        self._is_draining = False
        self._turns = _Turns(clock, jitter)

    def admit(self, body_bytes: int) -> RequestPermit:
        """Admit a request at the first gate.

        Args:
            body_bytes: Bytes of its body, or the most that it may have.

        Raises:
            Overloaded: There are too many; it carries the seconds after which to retry.
        """
        self.check(body_bytes)
        self._turns.work()
        self.requests += 1
        self.body_bytes += body_bytes
        return RequestPermit(self, body_bytes)

    def check(self, body_bytes: int) -> None:
        """Return if a request would be admitted at the first gate; raises the errors of `admit`."""
        if self.requests >= self.limits.requests and not self._is_draining:
            raise self._overloaded(f"{self.requests} requests are running and waiting")
        self._check_bytes(body_bytes, self.requests, self.body_bytes)

    def drain(self) -> None:
        """Admit any number of requests from now on. The model refuses them, so none waits."""
        self._is_draining = True

    def enter(self, sequences: int, tokens: int) -> Permit:
        """Admit a decoded request at the second gate.

        Args:
            sequences: Replies that it asks for, or texts to be encoded.
            tokens: Most tokens that its prompts may have.

        Raises:
            Overloaded: There are too many; it carries the seconds after which to retry.
        """
        limits = self.limits
        if self.running and self.sequences + sequences > limits.sequences:
            raise self._overloaded(
                f"{self.sequences} sequences are running and waiting, and this request has "
                f"{sequences}; {limits.sequences} may be in flight"
            )
        if self.running and self.tokens + tokens > limits.tokens:
            raise self._overloaded(
                f"The texts in flight may have {self.tokens} tokens, and those of this request "
                f"{tokens}; {limits.tokens} may be in flight"
            )
        self._turns.work()
        self._count(1, sequences, tokens)
        return Permit(lambda: self._count(-1, -sequences, -tokens))

    def _check_bytes(self, body_bytes: int, others: int, other_bytes: int) -> None:
        if others and other_bytes + body_bytes > self.limits.body_bytes:
            raise self._overloaded(
                f"The requests in flight have {other_bytes} bytes, and this one {body_bytes} "
                f"of the {self.limits.body_bytes} that they may have together"
            )

    def _count(self, requests: int, sequences: int, tokens: int) -> None:
        self.running += requests
        self.sequences += sequences
        self.tokens += tokens
        self._rest()

    def _rest(self) -> None:
        if not self.requests and not self.running:
            self._turns.rest()

    def _overloaded(self, reason: str) -> Overloaded:
        in_flight = max(1, self.requests, self.running)
        return Overloaded(f"{reason}; try again later.", retry_after=self._turns.next(in_flight))


class Permit:
    """Holds a share of a gate until it is released, which its holder must do in every case."""

    def __init__(self, give_back: Callable[[], None]) -> None:
        """Create the permit of a share; called by `AdmissionController`."""
        self._give_back: Callable[[], None] | None = give_back

    def release(self) -> None:
        """Give the share back; later calls do nothing."""
        if self._give_back is not None:
            give_back, self._give_back = self._give_back, None
            give_back()


class RequestPermit(Permit):
    """A permit of the first gate."""

    def __init__(self, admission: AdmissionController, body_bytes: int) -> None:
        """Create the permit of a request that is counted; called by `AdmissionController`."""
        super().__init__(self._leave)
        self._admission = admission
        self._body_bytes = body_bytes

    def resize(self, body_bytes: int) -> None:
        """Correct the bytes of the body, now that it is read."""
        if self._give_back is not None:
            self._admission.body_bytes += body_bytes - self._body_bytes
            self._body_bytes = body_bytes

    def covers(self, body_bytes: int) -> bool:
        """Return whether so many bytes need no further claim."""
        return self._give_back is None or body_bytes <= self._body_bytes

    def claim(self, body_bytes: int) -> None:
        """Take at least so many bytes in all for a body whose size was not known before.

        Raises:
            Overloaded: There are too many.
        """
        if self.covers(body_bytes):
            return
        admission = self._admission
        others = admission.body_bytes - self._body_bytes
        admission._check_bytes(body_bytes, admission.requests - 1, others)
        self.resize(body_bytes)

    def _leave(self) -> None:
        self._admission.requests -= 1
        self._admission.body_bytes -= self._body_bytes
        self._admission._turns.count()
        self._admission._rest()


class _Turns:
    """Estimates when the turn of a refused request comes.

    Requests leave at some rate, answered or not. The first that is refused gets the next place, the
    second the one after that, and so on: so they come back as fast as places become free. But many
    never come back. So nobody is told more than the time in which all that is in flight has left
    twice.
    """

    _MEMORY = 30.0
    """Seconds after which the weight of a request that left has fallen to a third: some passes of a
    batch, whose requests may all be answered at once."""

    _LONGEST = 60.0
    """Seconds that nobody is told to exceed, unless a single place takes longer. Clients, such as
    OpenAI's, do not follow a longer time."""

    _ROUNDS = 2

    _JITTER = 0.2

    def __init__(self, clock: Clock, jitter: Callable[[], float]) -> None:
        self._clock = clock
        self._jitter = jitter
        self._left = self._seconds = 1.0  # one request in a second, until there is a measurement
        self._since: float | None = None  # when the last request left, or work began
        self._promised = -math.inf

    def work(self) -> None:
        if self._since is None:
            self._since = self._clock()

    def count(self) -> None:
        now = self._clock()
        passed = now - (now if self._since is None else self._since)
        weight = math.exp(-passed / self._MEMORY)
        self._left = self._left * weight + 1
        self._seconds = self._seconds * weight + passed
        self._since = now

    def rest(self) -> None:
        """Ignore the time until the next request: none is running, and every place is free."""
        self._since = None
        self._promised = -math.inf

    def next(self, in_flight: int) -> int:
        """Return the whole seconds, at least 1, to the turn of a request that is refused now.

        Args:
            in_flight: Requests that are in flight, at least 1.
        """
        now = self._clock()
        passed = now - (now if self._since is None else self._since)
        measured = self._seconds / self._left
        interval = max(measured, (self._seconds + passed) / (self._left + 1))
        longest = max(min(self._LONGEST, self._ROUNDS * in_flight * interval), interval)
        self._promised = min(max(self._promised, now) + interval, now + longest)
        seconds = (self._promised - now) * (1 - self._JITTER * self._jitter())
        return max(1, math.ceil(seconds))
