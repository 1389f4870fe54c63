"""Integers in order of their ranks, which may change: a heap that replaces entries lazily."""

from __future__ import annotations

import heapq

Rank = tuple[int, ...]

_SLACK = 64
"""Replaced entries that are kept before the heap is built anew, whatever its size."""


class UpdatableHeap:
    """Items with a rank each; every operation takes O(log n) time on average.

    An item that is removed or ranked anew leaves its old entry behind until that comes to the top,
    or until such entries are the majority.
    """

    def __init__(self) -> None:
        """Begin without items."""
        self._heap: list[tuple[Rank, int]] = []
        self._current: dict[int, tuple[Rank, int]] = {}

    def __len__(self) -> int:
        """Return how many items there are."""
        return len(self._current)

    def push(self, item: int, rank: Rank) -> None:
        """Insert an item, or change its rank."""
        entry = self._current[item] = (rank, item)
        heapq.heappush(self._heap, entry)
        self._compact()

    def discard(self, item: int) -> None:
        """Remove an item if it is there."""
        if self._current.pop(item, None) is not None:
            self._compact()

    def first(self) -> int | None:
        """Return the item of the lowest rank; None if there is no item."""
        heap, current = self._heap, self._current
        while heap:
            entry = heap[0]
            if current.get(entry[1]) is entry:
                return entry[1]
            heapq.heappop(heap)
        return None

    def _compact(self) -> None:
        if len(self._heap) > 2 * len(self._current) + _SLACK:
            self._heap = list(self._current.values())
            heapq.heapify(self._heap)
