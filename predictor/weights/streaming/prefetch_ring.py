"""Fetches blocks ahead of their use, in a cycle, into a fixed number of slots.

The ring expects blocks in the order of the last forward pass, see `call_order`. If another block is
requested, the ring fetches that block anew. This costs time, and never returns another block's
weights. A block that is called several times running stays in its slot, and is fetched once. How a
block gets into a slot is left to the caller.

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

from predictor.weights.streaming.call_order import CallOrder

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
            slots: The slots. With two, one block is fetched while another is in use; with one, each
                is fetched when the one before it is released.
            fetch: Puts a block into a slot; called in the thread.
            progress: Returns a sentence about the fetch under way for the log, or nothing.
            seconds_to_log: Seconds of waiting after which it is logged.
        """
        self._fetch = fetch
        self._progress, self._seconds_to_log = progress, seconds_to_log
        self._order = CallOrder(order)
        self._free = deque(slots)
        self._ready: deque[_Fetched[Slot]] = deque()
        self._fetching: int | None = None
        self._ahead = 0  # calls from the next one on whose blocks are fetched or being fetched
        self._held: int | None = None  # the block of the slot that was acquired last, if it is kept
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
            if self._order.expected() != block:
                self._order.jump_to(block)
                self._restart()
            fetched = self._await_ready()
            while fetched.block != block:  # whatever is expected, never another block's weights
                self._free.append(fetched.slot)
                self._restart()
                fetched = self._await_ready()
            if fetched.error is not None:
                self._free.append(fetched.slot)
                self._restart()
            else:
                self._order.advance()
                self._held, self._ahead = block, max(0, self._ahead - 1)
                self._changed.notify_all()
        if fetched.error is not None:
            raise fetched.error
        return fetched.slot, time.perf_counter() - began

    def release(self, slot: Slot) -> None:
        """Let a slot be filled again, or keep its block if that is the next one."""
        with self._changed:
            if self._held is not None and self._order.expected() == self._held:
                self._ready.appendleft(_Fetched(self._held, slot, None))
                self._ahead = max(1, self._ahead)
            else:
                self._held = None
                self._free.append(slot)
            self._changed.notify_all()

    def close(self) -> None:
        """End the thread after its current fetch."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _await_ready(self) -> _Fetched[Slot]:
        """Wait for the next fetched block and return it; once, log a fetch that takes long."""
        timeout: float | None = self._seconds_to_log
        while not self._ready:
            if self._closed:
                raise RuntimeError("the ring is closed")
            if not self._changed.wait(timeout):
                timeout = None
                if sentence := self._progress():
                    logger.warning("%s", sentence)
        return self._ready.popleft()

    def _restart(self) -> None:
        self._round += 1
        self._free.extend(fetched.slot for fetched in self._ready)
        self._ready.clear()
        self._fetching, self._held, self._ahead = None, None, 0
        self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._closed or self._may_fetch()):
                    self._changed.wait()
                if self._closed:
                    return
                ahead = self._calls_ahead()
                block, slot, round_ = self._order.expected(ahead), self._free.popleft(), self._round
                self._fetching, self._ahead = block, ahead + 1
            error = self._try(block, slot)
            with self._changed:
                if round_ != self._round:
                    self._free.append(slot)
                else:
                    self._fetching = None
                    self._ready.append(_Fetched(block, slot, error))
                self._changed.notify_all()

    def _calls_ahead(self) -> int:
        """Return how many calls are served by what is fetched, or by a block that stays for them.

        A block stays in its slot for all of its calls that follow each other.
        """
        ahead, expected = self._ahead, self._order.expected
        while ahead < self._order.period:
            before = expected(ahead - 1) if ahead else self._held
            if expected(ahead) != before:
                break
            ahead += 1
        return ahead

    def _may_fetch(self) -> bool:
        failed = bool(self._ready) and self._ready[-1].error is not None
        return bool(self._free) and not failed and self._calls_ahead() < self._order.period

    def _try(self, block: int, slot: Slot) -> Exception | None:
        try:
            self._fetch(block, slot)
        # `acquire` raises any error of the fetch in the thread that needs the block.
        except Exception as error:
            return error
        return None
