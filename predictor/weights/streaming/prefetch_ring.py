"""Fetches blocks ahead of their use, in a cycle, into a fixed number of slots.

The ring expects blocks in the order of the last forward pass: after each block the one that
followed it before, and after the last block the first one of the next pass. If another block is
requested, the ring fetches that block anew. This costs time, and never returns another block's
weights. How a block gets into a slot is left to the caller.

A fetch may hang with its disk. Then `acquire` waits on and says so in the log; what follows from it
is decided in `predictor.heartbeat`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

logger = logging.getLogger(__name__)

Slot = TypeVar("Slot")

_SECONDS_TO_LOG = 10.0
"""Seconds after which a call of `acquire` logs what it waits for. Slow volumes take less for a
block of some GiB, and a hung one is named before anybody looks for it."""


@dataclass(slots=True)
class _Fetched(Generic[Slot]):
    block: int
    slot: Slot
    error: Exception | None


class PrefetchRing(Generic[Slot]):
    """Slots that a thread fills ahead of their use."""

    def __init__(
        self,
        order: Sequence[int],
        slots: Sequence[Slot],
        fetch: Callable[[int, Slot], None],
        *,
        progress: Callable[[], str] = str,
        seconds_to_log: float = _SECONDS_TO_LOG,
    ) -> None:
        """Start the thread, which begins to fetch at once.

        Args:
            order: Blocks in the expected order.
            slots: The slots. With two, one block is fetched while another is in use.
            fetch: Puts a block into a slot; called in the thread.
            progress: Returns a sentence about the fetch under way for the log, or nothing.
            seconds_to_log: Seconds of waiting after which it is logged.
        """
        self._fetch = fetch
        self._progress, self._seconds_to_log = progress, seconds_to_log
        self._after = dict(zip(order, (*order[1:], order[0]), strict=True))
        self._next, self._last = order[0], order[-1]
        self._free = deque(slots)
        self._ready: deque[_Fetched[Slot]] = deque()
        self._fetching: int | None = None
        self._round = 0  # a restart begins a new round; fetches of earlier rounds are discarded
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="weights", daemon=True)
        self._thread.start()

    def acquire(self, block: int) -> tuple[Slot, float]:
        """Return the slot that holds a block, and the seconds that this call waited.

        Raises:
            Exception: The error of the fetch. The next call for this block fetches it again.
        """
        began = time.perf_counter()
        with self._changed:
            self._after[self._last] = block
            self._last = block
            if self._upcoming() != block:
                self._restart(block)
            self._await_ready()
            fetched = self._ready.popleft()
            if fetched.error is not None:
                self._free.append(fetched.slot)
                self._restart(block)
        if fetched.error is not None:
            raise fetched.error
        return fetched.slot, time.perf_counter() - began

    def release(self, slot: Slot) -> None:
        """Let a slot be filled again."""
        with self._changed:
            self._free.append(slot)
            self._changed.notify_all()

    def close(self) -> None:
        """End the thread after its current fetch."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _await_ready(self) -> None:
        """Wait for a fetched block; once, log a fetch that takes long."""
        timeout: float | None = self._seconds_to_log
        while not self._ready:
            if self._closed:
                raise RuntimeError("the ring is closed")
            if not self._changed.wait(timeout):
                timeout = None
                if sentence := self._progress():
                    logger.warning("%s", sentence)

    def _upcoming(self) -> int:
        """Return the block of the next slot."""
        if self._ready:
            return self._ready[0].block
        return self._next if self._fetching is None else self._fetching

    def _restart(self, block: int) -> None:
        self._round += 1
        self._free.extend(fetched.slot for fetched in self._ready)
        self._ready.clear()
        self._fetching, self._next = None, block
        self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._closed or self._may_fetch()):
                    self._changed.wait()
                if self._closed:
                    return
                block, slot, round_ = self._next, self._free.popleft(), self._round
                self._fetching, self._next = block, self._after[block]
            error = self._try(block, slot)
            with self._changed:
                if round_ != self._round:
                    self._free.append(slot)
                else:
                    self._fetching = None
                    self._ready.append(_Fetched(block, slot, error))
                self._changed.notify_all()

    def _may_fetch(self) -> bool:
        failed = bool(self._ready) and self._ready[-1].error is not None
        return bool(self._free) and not failed

    def _try(self, block: int, slot: Slot) -> Exception | None:
        try:
            self._fetch(block, slot)
        # `acquire` raises any error of the fetch in the thread that needs the block.
        except Exception as error:
            return error
        return None
