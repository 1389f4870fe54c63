"""How far loading is: kept here, shown as a bar on a terminal, as log lines otherwise.

The same numbers go into the body of the readiness answer.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

from predictor.quantity import format_bytes

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 5.0


class Progress:
    """Bytes and blocks done in the present phase; may be read from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bar: tqdm[Any] | None = None
        self._phase = "starting"
        self._sizes: dict[str, int] = {}
        self._blocks: dict[str, int] = {}
        self._all_blocks = 0
        self._total = 0
        self._done = 0
        self._began = self._said = time.monotonic()

    def begin(self, phase: str, sizes: Mapping[str, int], blocks: tuple[str, ...] = ()) -> None:
        """Starts a phase.

        Args:
            phase: What is done, for people.
            sizes: Bytes of every tensor that is to be done, by name.
            blocks: The names of the blocks, whose tensors' names begin with them.
        """
        self.end()
        with self._lock:
            self._phase, self._sizes = phase, dict(sizes)
            self._total, self._done = sum(sizes.values()), 0
            self._blocks = _tensors_by_block(sizes, blocks)
            self._all_blocks = len(self._blocks)
            self._began = self._said = time.monotonic()
            if sys.stderr.isatty() and self._total:
                self._bar = tqdm(total=self._total, unit="B", unit_scale=True, desc=phase)

    def done(self, name: str) -> None:
        """Counts a tensor as done; one that is unknown or was counted already is no matter."""
        with self._lock:
            size = self._sizes.pop(name, 0)
            self._done += size
            block = _block_of(name, self._blocks)
            if block is not None and size:
                self._blocks[block] -= 1
        if self._bar is not None:
            self._bar.update(size)
        else:
            self._say()

    def end(self) -> None:
        """Ends the phase."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def as_json(self) -> dict[str, object]:
        """Returns the present numbers; times are seconds, sizes bytes."""
        with self._lock:
            seconds = time.monotonic() - self._began
            rate = self._done / seconds if seconds > 0 else 0.0
            found: dict[str, object] = {
                "phase": self._phase,
                "bytes_done": self._done,
                "bytes_total": self._total,
                "blocks_done": sum(not left for left in self._blocks.values()),
                "blocks_total": self._all_blocks,
                "bytes_per_second": round(rate),
            }
            if rate:
                found["seconds_left"] = round((self._total - self._done) / rate, 1)
            return found

    def _say(self) -> None:
        now = time.monotonic()
        if now - self._said < _SECONDS_BETWEEN_LINES:
            return
        self._said = now
        seen = self.as_json()
        logger.info(
            "%s: %s of %s, block %s of %s, %s/s, %s s left",
            seen["phase"],
            format_bytes(self._done),
            format_bytes(self._total),
            seen["blocks_done"],
            seen["blocks_total"],
            format_bytes(int(str(seen["bytes_per_second"]))),
            seen.get("seconds_left", "?"),
        )


def _tensors_by_block(sizes: Mapping[str, int], blocks: tuple[str, ...]) -> dict[str, int]:
    found = dict.fromkeys(blocks, 0)
    for name, size in sizes.items():
        block = _block_of(name, found)
        if block is not None and size:
            found[block] += 1
    return {block: count for block, count in found.items() if count}


def _block_of(name: str, blocks: Mapping[str, int]) -> str | None:
    parts = name.split(".")
    prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((prefix for prefix in prefixes if prefix in blocks), None)
