"""The progress of loading: a bar on a terminal, log lines otherwise, and the readiness body.

This module counts bytes and blocks. The phases are named by the modules that do the work.
"""

from __future__ import annotations

import logging
import math
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from tqdm import tqdm

from predictor.quantity import format_bytes

logger = logging.getLogger(__name__)

FILLING = "filling memory"
"""The phase in which blocks that stay arrive. The model may serve already."""

_SECONDS_BETWEEN_LINES = 5.0
_SECONDS_BETWEEN_REPORTS = 0.2


class _Fetch(NamedTuple):
    """What was fetched from a source so far: since when, the bytes, and the most in all."""

    began: float
    done: int
    total: int


class Progress:
    """The bytes and blocks that the current phase has done; any thread may read them."""

    def __init__(
        self,
        *,
        report: Callable[[dict[str, object]], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start the phase ``"starting"``.

        Args:
            report: Called with the numbers of `as_json` when a phase begins, and now and then.
            clock: Returns the time in seconds.
        """
        self._report, self._clock = report, clock
        self._reported = -math.inf
        self._lock = threading.Lock()
        self._bar: tqdm[Any] | None = None
        self._phase = "starting"
        self._sizes: dict[str, int] = {}
        self._blocks: dict[str, int] = {}
        self._all_blocks = 0
        self._total = 0
        self._done = 0
        self._began = self._logged = self._clock()
        self._fetch, self._is_fetching = _Fetch(self._began, 0, 0), False

    def begin(self, phase: str, sizes: Mapping[str, int], blocks: tuple[str, ...] = ()) -> None:
        """Start a phase.

        Args:
            phase: The phase's name, for people.
            sizes: Bytes of every tensor of the phase, by name.
            blocks: The names of the blocks. Tensors of a block have its name as prefix.
        """
        self.end()
        with self._lock:
            self._phase, self._sizes, self._is_fetching = phase, dict(sizes), False
            self._total, self._done = sum(sizes.values()), 0
            self._blocks = _tensors_by_block(sizes, blocks)
            self._all_blocks = len(self._blocks)
            self._began = self._logged = self._clock()
            if sys.stderr.isatty() and self._total:
                self._bar = tqdm(total=self._total, unit="B", unit_scale=True, desc=phase)
        self._reported = -math.inf
        self._report_numbers()

    def done(self, name: str) -> None:
        """Count a tensor as done. An unknown tensor, or a second call, counts nothing."""
        with self._lock:
            self._is_fetching = False
            size = self._sizes.pop(name, 0)
            self._done += size
            block = _block_of(name, self._blocks)
            if block is not None and size:
                self._blocks[block] -= 1
        if self._bar is not None:
            self._bar.update(size)
        else:
            self._log()
        self._report_numbers()

    def fetched(self, size: int, missing: int) -> None:
        """Count bytes that were fetched within a phase; `missing` are at most to come."""
        now = self._clock()
        with self._lock:
            began, done = self._fetch.began if self._fetch.done else now, self._fetch.done + size
            self._fetch, self._is_fetching = _Fetch(began, done, done + missing), True
        self._log()
        self._report_numbers()

    def end(self) -> None:
        """End the phase."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def as_json(self) -> dict[str, object]:
        """Return the current numbers; times in seconds, sizes in bytes."""
        with self._lock:
            fetch = self._fetch if self._is_fetching else None
            done, total = (self._done, self._total) if fetch is None else (fetch.done, fetch.total)
            seconds = self._clock() - (self._began if fetch is None else fetch.began)
            rate = done / seconds if seconds > 0 else 0.0
            numbers: dict[str, object] = {
                "phase": self._phase if fetch is None else "fetching weights",
                "bytes_done": done,
                "bytes_total": total,
                "blocks_done": sum(not left for left in self._blocks.values()),
                "blocks_total": self._all_blocks,
                "bytes_per_second": round(rate),
            }
            if rate:
                numbers["seconds_left"] = round((total - done) / rate, 1)
            return numbers

    def _report_numbers(self) -> None:
        now = self._clock()
        if self._report is not None and now - self._reported >= _SECONDS_BETWEEN_REPORTS:
            self._reported = now
            self._report(self.as_json())

    def _log(self) -> None:
        now = self._clock()
        if now - self._logged < _SECONDS_BETWEEN_LINES:
            return
        self._logged = now
        numbers = self.as_json()
        logger.info(
            "%s: %s of %s, block %s of %s, %s/s, %s s left",
            numbers["phase"],
            format_bytes(int(str(numbers["bytes_done"]))),
            format_bytes(int(str(numbers["bytes_total"]))),
            numbers["blocks_done"],
            numbers["blocks_total"],
            format_bytes(int(str(numbers["bytes_per_second"]))),
            numbers.get("seconds_left", "?"),
        )


def _tensors_by_block(sizes: Mapping[str, int], blocks: tuple[str, ...]) -> dict[str, int]:
    tensors = dict.fromkeys(blocks, 0)
    for name, size in sizes.items():
        block = _block_of(name, tensors)
        if block is not None and size:
            tensors[block] += 1
    return {block: count for block, count in tensors.items() if count}


def _block_of(name: str, blocks: Mapping[str, int]) -> str | None:
    parts = name.split(".")
    prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((prefix for prefix in prefixes if prefix in blocks), None)
