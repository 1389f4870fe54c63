"""Which of the waiting texts share a forward pass: arithmetic over their lengths.

A batch is padded to its longest text, so texts of like lengths go together. Another forward pass
costs one pass over the weights. So a text is left to another forward pass if the padding that it
causes costs more than that.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

from predictor.engine.fair_queue import Entry
from predictor.engine.priority_queue import PriorityQueue
from predictor.shape_buckets import bucket_new_tokens, bucket_rows

_ByLength = tuple[int, tuple[int, int, int], Entry]
"""A text in order of tokens, then of its place among those of all requests."""


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """The limits of a forward pass.

    Attributes:
        tokens: Most tokens, padding included; a text is never longer.
        rows: Most texts.
        breakeven_tokens: Tokens that take as long to compute as one forward pass over the weights.
        delay: Seconds that the oldest text waits for others to fill its forward pass.
        bucket_shapes: Whether to add rows and columns of padding, see `shape_buckets`.
    """

    tokens: int
    rows: int
    breakeven_tokens: int = 0
    delay: float = 0.0
    bucket_shapes: bool = False

    def columns(self, longest: int) -> int:
        """Return how many tokens each row has if the longest text has so many."""
        return min(bucket_new_tokens(longest), self.tokens) if self.bucket_shapes else longest

    def rows_of(self, texts: int) -> int:
        """Return how many rows a forward pass over so many texts has."""
        return min(bucket_rows(texts), self.rows) if self.bucket_shapes else texts


class TextQueue:
    """The texts that wait, in a fair order (`fair_queue`) and by length.

    Attributes:
        tokens: Tokens of all texts that wait.
    """

    def __init__(self, limits: BatchLimits) -> None:
        """Begin empty, under the limits of a forward pass."""
        self.tokens = 0
        self._limits = limits
        self._waiting: PriorityQueue[Entry] = PriorityQueue()
        self._by_length: list[_ByLength] = []

    def __len__(self) -> int:
        """Return how many texts wait."""
        return len(self._waiting)

    @property
    def bulk(self) -> int:
        """How many of them are bulk work."""
        return self._waiting.bulk

    @property
    def oldest(self) -> int | None:
        """The text that waits longest; None if none waits."""
        oldest = self._waiting.oldest
        return None if oldest is None else oldest.key

    def add(
        self, key: int, tokens: int, request: int | None = None, *, is_bulk: bool = False
    ) -> None:
        """Put a text in line.

        Args:
            key: Its key.
            tokens: How many tokens it has.
            request: The request that it belongs to; None if it is the only one of its request.
            is_bulk: Whether it is first only while nothing else waits.
        """
        text = Entry(key, key if request is None else request, tokens, is_bulk)
        self._waiting.add(text)
        bisect.insort(self._by_length, _by_length(text))
        self.tokens += tokens

    def remove(self, key: int) -> None:
        """Forget a text, if it waits."""
        text = self._waiting.remove(key)
        if text is not None:
            del self._by_length[bisect.bisect_left(self._by_length, _by_length(text))]
            self.tokens -= text.tokens

    def take_batch(self) -> list[int]:
        """Remove and return the texts that share the next forward pass, the shortest first.

        The first in line is among them. Then its neighbours by length follow, nearest first, as
        long as they fit. Of texts of one length, each request's first ones are the nearest.

        Raises:
            LookupError: No text waits.
        """
        first = self._waiting.first
        if first is None:
            raise LookupError("no text waits")
        index = bisect.bisect_left(self._by_length, _by_length(first))
        low, high = _neighbours(self._by_length, index, self._limits)
        texts = [text for _, _, text in self._by_length[low:high]]
        del self._by_length[low:high]
        self._waiting.take(texts)
        self.tokens -= sum(text.tokens for text in texts)
        return [text.key for text in texts]


def _by_length(text: Entry) -> _ByLength:
    return (text.tokens, text.place, text)


def _neighbours(by_length: Sequence[_ByLength], index: int, limits: BatchLimits) -> tuple[int, int]:
    """The slice of texts that share a forward pass with one of them."""
    low, high, tokens = index, index + 1, by_length[index][0]
    chosen, padding = (low, high), _padding(1, tokens, tokens, limits)
    while True:
        wider = [
            (
                _padding(end - start, by_length[end - 1][0], tokens + by_length[new][0], limits),
                start,
                end,
            )
            for start, end, new in ((low - 1, high, low - 1), (low, high + 1, high))
            if start >= 0
            and end <= len(by_length)
            and _fits(end - start, by_length[end - 1][0], limits)
        ]
        if not wider:
            return chosen
        more, start, end = min(wider)
        tokens += by_length[start if start < low else end - 1][0]
        low, high = start, end
        if more - padding <= limits.breakeven_tokens:
            chosen, padding = (low, high), more


def _fits(texts: int, longest: int, limits: BatchLimits) -> bool:
    if texts > limits.rows:
        return False
    return limits.rows_of(texts) * limits.columns(longest) <= limits.tokens


def _padding(texts: int, longest: int, tokens: int, limits: BatchLimits) -> int:
    """Tokens of padding in a batch of so many texts and tokens."""
    return limits.rows_of(texts) * limits.columns(longest) - tokens
