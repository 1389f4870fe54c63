"""Progress of an import: a bar on a terminal, or else a log line every few seconds."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

from predictor.quantity import format_bytes

logger = logging.getLogger(__name__)

_LOG_INTERVAL = 5.0
"""Seconds between two log lines."""


class CopyProgress:
    """The bytes copied so far. The bar is shown while the context is entered."""

    def __init__(self, total: int) -> None:
        """Start at zero of `total` bytes."""
        self._total = total
        self._done = 0
        self._last_logged = time.monotonic()
        self._bar: tqdm[Any] | None = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            self._bar = tqdm(total=self._total, unit="B", unit_scale=True, desc="importing")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def add(self, count: int) -> None:
        """Count bytes as copied."""
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
        elif time.monotonic() - self._last_logged >= _LOG_INTERVAL:
            self._last_logged = time.monotonic()
            logger.info("Copied %s of %s", format_bytes(self._done), format_bytes(self._total))
