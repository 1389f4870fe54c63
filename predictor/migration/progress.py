"""How far an import is: a bar on a terminal, a line of the log every few seconds otherwise."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

from predictor.quantity import format_bytes

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 5.0


class CopyProgress:
    """Bytes done of one copy, shown from entering to leaving it."""

    def __init__(self, total: int) -> None:
        """Takes the bytes that there are."""
        self._total = total
        self._done = 0
        self._said = time.monotonic()
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
        """Counts bytes as done."""
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
        elif time.monotonic() - self._said >= _SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            logger.info("Copied %s of %s", format_bytes(self._done), format_bytes(self._total))
