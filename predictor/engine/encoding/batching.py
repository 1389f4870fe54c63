"""Which of the texts that wait are read together: arithmetic over their lengths.

A batch is padded to its longest text, so texts of like lengths go together. One more pass costs
what reading the weights does; so a text is left to another pass where the padding that it causes
costs more than that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from predictor.engine.shape_buckets import bucket_new_tokens, bucket_rows


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What a pass is held to.

    Attributes:
        tokens: Most tokens, padding included; a text is never longer.
        rows: Most texts.
        breakeven_tokens: Tokens whose computation takes as long as one pass over the weights.
        delay: Seconds that the oldest text waits for others while a pass would not be full.
        bucket_shapes: Whether there are rows and columns besides, see `shapes`.
    """

    tokens: int
    rows: int
    breakeven_tokens: int = 0
    delay: float = 0.0
    bucket_shapes: bool = False

    def columns(self, longest: int) -> int:
        """Returns how many tokens each row has where the longest text has so many."""
        return min(bucket_new_tokens(longest), self.tokens) if self.bucket_shapes else longest

    def rows_of(self, texts: int) -> int:
        """Returns how many rows a pass over so many texts has."""
        return min(bucket_rows(texts), self.rows) if self.bucket_shapes else texts


def choose(lengths: Sequence[int], limits: BatchLimits) -> list[int]:
    """Returns the places of those texts that are read next, the shortest first.

    The oldest is among them, so that none waits for ever; then its neighbours by length, nearest
    first, as long as they fit.

    Args:
        lengths: Tokens of each text that waits, the oldest first; at least one.
        limits: What a pass is held to.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    first = last = order.index(0)
    chosen, padding = (first, last), _padding(lengths[0:1], limits)
    while True:
        grown = [
            (_padding([lengths[row] for row in order[low : high + 1]], limits), low, high)
            for low, high in ((first - 1, last), (first, last + 1))
            if low >= 0
            and high < len(order)
            and _fits(high - low + 1, lengths[order[high]], limits)
        ]
        if not grown:
            return order[chosen[0] : chosen[1] + 1]
        found, first, last = min(grown)
        if found - padding <= limits.breakeven_tokens:
            chosen, padding = (first, last), found


def _fits(texts: int, longest: int, limits: BatchLimits) -> bool:
    if texts > limits.rows:
        return False
    return limits.rows_of(texts) * limits.columns(longest) <= limits.tokens


def _padding(lengths: Sequence[int], limits: BatchLimits) -> int:
    """Tokens of padding in a batch of texts of these lengths."""
    return limits.rows_of(len(lengths)) * limits.columns(max(lengths)) - sum(lengths)
