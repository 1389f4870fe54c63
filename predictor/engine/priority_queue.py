"""Two fair queues, of which one goes first: nobody waits for bulk work.

Bulk work is next only while nothing else waits, not even something that has no room yet.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Generic

from predictor.engine.fair_queue import AnyEntry, FairQueue


class PriorityQueue(Generic[AnyEntry]):
    """All that wait, with the interface of a `FairQueue`."""

    def __init__(self) -> None:
        """Begin empty."""
        self._urgent: FairQueue[AnyEntry] = FairQueue()
        self._bulk: FairQueue[AnyEntry] = FairQueue()

    def __len__(self) -> int:
        """Return how many wait."""
        return len(self._urgent) + len(self._bulk)

    @property
    def bulk(self) -> int:
        """How many of them are bulk work."""
        return len(self._bulk)

    @property
    def aside(self) -> int:
        """How many requests are set aside."""
        return self._urgent.aside + self._bulk.aside

    @property
    def oldest(self) -> AnyEntry | None:
        """The first to have arrived; one of bulk work only if nothing else waits."""
        return self._urgent.oldest if self._urgent else self._bulk.oldest

    @property
    def first(self) -> AnyEntry | None:
        """The one that goes next, see `FairQueue.first`."""
        return self._urgent.first if self._urgent else self._bulk.first

    def add(self, entry: AnyEntry) -> None:
        """Put a newcomer behind the others of its request."""
        self._queue_of(entry).add(entry)

    def put_back(self, entry: AnyEntry) -> None:
        """Put one that was taken back to its place."""
        self._queue_of(entry).put_back(entry)

    def remove(self, key: int) -> AnyEntry | None:
        """Remove one that waits and return it; None if it does not wait."""
        return self._urgent.remove(key) or self._bulk.remove(key)

    def take(self, entries: Collection[AnyEntry]) -> None:
        """Remove those that go together now, and note whom they overtake."""
        for queue, is_bulk in ((self._urgent, False), (self._bulk, True)):
            if taken := [entry for entry in entries if entry.is_bulk == is_bulk]:
                queue.take(taken)

    def set_aside(self, entry: AnyEntry) -> None:
        """Leave out a request, whose first entry this is, until `restore`."""
        self._queue_of(entry).set_aside(entry)

    def restore(self) -> None:
        """Take those that were set aside in again."""
        self._urgent.restore()
        self._bulk.restore()

    def _queue_of(self, entry: AnyEntry) -> FairQueue[AnyEntry]:
        return self._bulk if entry.is_bulk else self._urgent
