"""How many of the drafts of one kind were right, the latest ones most."""

from __future__ import annotations

from collections.abc import Sequence

_WEIGHT = 0.125
"""The weight of a token in the rate."""

_FORGOTTEN = 1 / 256
"""The part of the way back to a guess for a token of which nothing was drafted. So a draft that
costs a tenth of a forward pass is tried again after some ten tokens at the earliest, for 1 % of the
time."""


class AcceptanceRate:
    """The fraction of a sequence's draft tokens that were right, each if those before it were.

    Attributes:
        value: The fraction, the latest tokens most.
        is_proven: Whether any was right.
    """

    def __init__(self, value: float) -> None:
        """Begin with a guess."""
        self.value, self.is_proven = value, False

    def learn(self, draft: Sequence[int], tokens: Sequence[int]) -> None:
        """Compare a draft with the tokens that came, up to the first that differs."""
        for drafted, token in zip(draft, tokens, strict=False):
            self.value += _WEIGHT * ((drafted == token) - self.value)
            self.is_proven |= drafted == token
            if drafted != token:
                return

    def forget(self, value: float, tokens: int) -> None:
        """Go back towards a guess, as tokens come of which nothing was drafted."""
        self.value = value + (self.value - value) * (1 - _FORGOTTEN) ** tokens
