"""The free pages of a pool, as runs of consecutive ones.

Attention reads consecutive pages without a copy. So a sequence continues on the page after its last
one if that is free. If not, it continues within the largest run: in the middle, because the
sequence that ends before the run may grow into its first half.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from itertools import pairwise

import torch

NO_PAGE = -1
"""The last page of a sequence that has none."""


class FreePages:
    """The free pages of a pool.

    Attributes:
        count: How many pages are free.
    """

    def __init__(self, first: int, count: int) -> None:
        """Begin with one run.

        Args:
            first: The first page.
            count: Pages of the pool; there may be none.
        """
        self.count = count
        self._first = first
        self._starts: list[int] = [first] if count else []
        self._ends: dict[int, int] = {first: first + count} if count else {}

    def take(self, count: int, after: int) -> torch.Tensor:
        """Return pages that are free no longer, of shape (pages,).

        Args:
            count: How many; at most as many as are free.
            after: The last page of the sequence that takes them, or `NO_PAGE`.
        """
        taken: list[torch.Tensor] = []
        while count:
            run = self._choose(count, after)
            self._remove(run)
            taken.append(torch.arange(run.start, run.stop))
            count, after = count - len(run), run.stop - 1
        return torch.cat(taken) if taken else torch.empty(0, dtype=torch.long)

    def put_back(self, pages: torch.Tensor) -> None:
        """Take pages back.

        Args:
            pages: Pages of any order, of shape (pages,).
        """
        for run in runs_of(pages.sort().values):
            self._add(run)

    def _choose(self, count: int, after: int) -> range:
        """Return the run to take next, of at most so many pages."""
        if after + 1 in self._ends:
            start = after + 1
            return range(start, min(self._ends[start], start + count))
        start, end = max(self._ends.items(), key=lambda run: run[1] - run[0])
        if start > self._first:
            start += max(0, min((end - start) // 2, end - start - count))
        return range(start, min(end, start + count))

    def _remove(self, run: range) -> None:
        start = self._starts[bisect_right(self._starts, run.start) - 1]
        end = self._ends[start]
        self._delete(start)
        if start < run.start:
            self._insert(start, run.start)
        if run.stop < end:
            self._insert(run.stop, end)
        self.count -= len(run)

    def _add(self, run: range) -> None:
        start, end = run.start, run.stop
        if end in self._ends:
            joined = self._ends[end]
            self._delete(end)
            end = joined
        index = bisect_left(self._starts, start) - 1
        if index >= 0 and self._ends[self._starts[index]] == start:
            start = self._starts[index]
            self._delete(start)
        self._insert(start, end)
        self.count += len(run)

    def _insert(self, start: int, end: int) -> None:
        insort(self._starts, start)
        self._ends[start] = end

    def _delete(self, start: int) -> None:
        del self._starts[bisect_left(self._starts, start)]
        del self._ends[start]


def runs_of(pages: torch.Tensor) -> list[range]:
    """Return the runs of consecutive pages in a sequence of pages.

    Args:
        pages: Pages on the host, of shape (pages,).
    """
    if not len(pages):
        return []
    breaks = ((pages[1:] - pages[:-1] != 1).nonzero().flatten() + 1).tolist()
    bounds = [0, *breaks, len(pages)]
    firsts: list[int] = pages[bounds[:-1]].tolist()
    lengths = (end - start for start, end in pairwise(bounds))
    return [range(first, first + length) for first, length in zip(firsts, lengths, strict=True)]
