"""The order in which a model calls its blocks, learned from forward pass to forward pass.

Some models call a block several times in a pass: ALBERT all of its layers, Zamba one between
others. What follows a block then depends on what came before it. So the calls so far are kept, and
the next ones are expected to be those that followed the same calls one pass ago.
"""

from __future__ import annotations

from collections.abc import Sequence

_KEPT = 8192
"""Most calls that are kept: several passes of the models with the most modules."""

_CONTEXT = 64
"""Most calls before a block that are compared with those before an earlier call of it."""


class CallOrder:
    """The calls so far, and where in them the present pass has its like."""

    def __init__(self, order: Sequence[int]) -> None:
        """Begin with an expected order.

        Args:
            order: The blocks of a pass, each at least once.
        """
        self._first = list(order)
        self._calls = list(order)
        self._cursor = 0

    @property
    def period(self) -> int:
        """How many calls ago the present pass has its like."""
        return len(self._calls) - self._cursor

    def expected(self, ahead: int = 0) -> int:
        """Return the block of the next call, or of a later one.

        Args:
            ahead: The number of calls before that one.
        """
        return self._calls[self._cursor + ahead % self.period]

    def advance(self) -> None:
        """Take the expected call for made."""
        self._calls.append(self.expected())
        self._cursor += 1
        if len(self._calls) > 2 * _KEPT:
            surplus = min(len(self._calls) - _KEPT, self._cursor)
            del self._calls[:surplus]
            self._cursor -= surplus

    def jump_to(self, block: int) -> None:
        """Expect another block next, and then what followed it after the calls most like these."""
        positions = [position for position, each in enumerate(self._calls) if each == block]
        if not positions:
            self._calls[:0] = self._first
            self._cursor = self._first.index(block)
            return
        self._cursor = max(positions, key=lambda position: (self._alike(position), position))

    def _alike(self, position: int) -> int:
        """Return how many calls before a position are those that were made last."""
        calls, count = self._calls, 0
        while count < min(position, _CONTEXT) and calls[position - 1 - count] == calls[-1 - count]:
            count += 1
        return count
