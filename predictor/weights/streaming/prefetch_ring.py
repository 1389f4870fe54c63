"""Fetches blocks ahead of their use, in a cycle, into a fixed number of slots.

The order of blocks is that of the last pass: after each block comes the one that came after it
before, and after a pass's last block the next pass's first. A block that comes out of order is
fetched anew; that costs time and never gives another block's weights.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Slot = TypeVar("Slot")


@dataclass(slots=True)
class _Fetched(Generic[Slot]):
    block: int
    slot: Slot
    error: Exception | None


class Ring(Generic[Slot]):
    """Slots that a thread fills ahead of whoever takes them."""

    def __init__(
        self, order: Sequence[int], slots: Sequence[Slot], fetch: Callable[[int, Slot], None]
    ) -> None:
        """Starts the thread, which begins to fetch at once.

        Args:
            order: Blocks in the order in which they are expected.
            slots: Where they are fetched to; two are enough to fetch one while another is used.
            fetch: Puts a block into a slot; is called in the thread.
        """
        self._fetch = fetch
        self._after = dict(zip(order, (*order[1:], order[0]), strict=True))
        self._next, self._last = order[0], order[-1]
        self._free = deque(slots)
        self._ready: deque[_Fetched[Slot]] = deque()
        self._fetching: int | None = None
        self._round = 0  # what was begun in an earlier one is not wanted any more
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="weights", daemon=True)
        self._thread.start()

    def take(self, block: int) -> tuple[Slot, float]:
        """Returns the slot that holds a block, and the seconds that this waited.

        Raises:
            Exception: What fetching it raised; taking it again tries again.
        """
        began = time.perf_counter()
        with self._changed:
            self._after[self._last] = block
            self._last = block
            if self._coming() != block:
                self._restart(block)
            while not self._ready:
                if self._closed:
                    raise RuntimeError("the ring is closed")
                self._changed.wait()
            found = self._ready.popleft()
            if found.error is not None:
                self._free.append(found.slot)
                self._restart(block)
        if found.error is not None:
            raise found.error
        return found.slot, time.perf_counter() - began

    def give_back(self, slot: Slot) -> None:
        """Lets a slot be filled again."""
        with self._changed:
            self._free.append(slot)
            self._changed.notify_all()

    def close(self) -> None:
        """Ends the thread after what it fetches now."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _coming(self) -> int:
        """The block that the next slot will hold."""
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
                while not (self._closed or self._may_go_on()):
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

    def _may_go_on(self) -> bool:
        failed = bool(self._ready) and self._ready[-1].error is not None
        return bool(self._free) and not failed

    def _try(self, block: int, slot: Slot) -> Exception | None:
        try:
            self._fetch(block, slot)
        # Whatever went wrong is told to whoever takes the block.
        except Exception as error:
            return error
        return None
