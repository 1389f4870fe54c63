"""Which of the waiting texts share a forward pass: arithmetic over their lengths.

A batch is padded to its longest text, so texts of like lengths go together. Another forward pass
costs one pass over the weights. So a text is left to another forward pass if the padding that it
causes costs more than that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from predictor.engine.shape_buckets import bucket_new_tokens, bucket_rows


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


def choose_batch(lengths: Sequence[int], limits: BatchLimits) -> list[int]:
    """Return the indices of the texts that share the next forward pass, the shortest first.

    The oldest is among them, so that no text waits for ever. Then its neighbours by length follow,
    nearest first, as long as they fit.

    Args:
        lengths: Tokens of each text that waits, the oldest first; at least one.
        limits: The limits of a forward pass.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    first = last = order.index(0)
    chosen, padding = (first, last), _padding(lengths[0:1], limits)
    while True:
        wider = [
            (_padding([lengths[row] for row in order[low : high + 1]], limits), low, high)
            for low, high in ((first - 1, last), (first, last + 1))
            if low >= 0
            and high < len(order)
            and _fits(high - low + 1, lengths[order[high]], limits)
        ]
        if not wider:
            return order[chosen[0] : chosen[1] + 1]
        more, first, last = min(wider)
        if more - padding <= limits.breakeven_tokens:
            chosen, padding = (first, last), more


def _fits(texts: int, longest: int, limits: BatchLimits) -> bool:
    if texts > limits.rows:
        return False
    return limits.rows_of(texts) * limits.columns(longest) <= limits.tokens


def _padding(lengths: Sequence[int], limits: BatchLimits) -> int:
    """Tokens of padding in a batch of texts of these lengths."""
    return limits.rows_of(len(lengths)) * limits.columns(max(lengths)) - sum(lengths)
