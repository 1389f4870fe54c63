"""A line a minute in the log: the throughput, and what streaming costs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from predictor.quantity import format_bytes

if TYPE_CHECKING:
    from predictor.metrics import WeightMetrics

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 60.0


class Pace:
    """Logs the throughput once a minute; called by one thread."""

    def __init__(
        self,
        weights: WeightMetrics | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin the first minute.

        Args:
            weights: The metrics of streaming; None if nothing is streamed.
            clock: Returns the time in seconds.
        """
        self._weights = weights
        self._clock = clock
        self._start()

    def count_step(self, seconds: float, tokens: int) -> None:
        """Count a forward pass, and log the minute if it is over.

        Args:
            seconds: The duration of the forward pass.
            tokens: The tokens that it generated.
        """
        self._busy += seconds
        self._tokens += tokens
        if self._clock() - self._began >= _SECONDS_BETWEEN_LINES:
            logger.info("%s", self._sentence())
            self._start()

    def _start(self) -> None:
        self._began = self._clock()
        self._busy, self._tokens = 0.0, 0
        self._before = self._weight_counts()

    def _weight_counts(self) -> tuple[float, ...]:
        counts = self._weights
        if counts is None:
            return (0, 0, 0, 0, 0, 0)
        return (
            *(counts.bytes_read, counts.bytes_copied, counts.read_seconds, counts.stall_seconds),
            *(counts.expert_hits, counts.expert_misses),
        )

    def _sentence(self) -> str:
        seconds = self._clock() - self._began
        text = (
            f"{self._tokens / seconds:.1f} tokens/s in the last {seconds:.0f} s, "
            f"{100 * self._busy / seconds:.0f} % of them in passes"
        )
        size, copied, read_seconds, stalls, hits, misses = (
            now - then for now, then in zip(self._weight_counts(), self._before, strict=True)
        )
        if size or copied:
            text += f"; {100 * stalls / max(self._busy, 1e-9):.0f} % of these waiting for blocks"
        if size:
            text += f", which were read at {format_bytes(int(size / max(read_seconds, 1e-9)))}/s"
        if hits or misses:
            text += f"; {100 * hits / (hits + misses):.0f} % of the experts were in memory"
        return text
