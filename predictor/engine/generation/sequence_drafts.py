"""The drafts of one sequence: what its grammar forces, else what prompt lookup finds.

Where both have nothing, the draft model may give a draft, see `drafter`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from predictor.engine.generation.acceptance import AcceptanceRate
from predictor.engine.generation.drafts import NOTHING, Proposal
from predictor.engine.generation.prompt_lookup import PromptLookup
from predictor.engine.generation.token_mask import TokenMask

_FORCED_RATE = 0.8
"""The rate of forced drafts before any has been compared. Their text is certain; the model may
write it in other tokens."""

DraftSource = Literal["lookup", "grammar", "model"]
"""Where a draft comes from."""


class SequenceDrafts:
    """Drafts how one sequence continues.

    Attributes:
        tokens: The tokens of the last draft.
        source: Where they come from.
    """

    def __init__(self) -> None:
        """Begin with no draft."""
        self.tokens: Sequence[int] = ()
        self.source: DraftSource = "lookup"
        self._lookup = PromptLookup()
        self._forced: Sequence[int] = ()
        self._forced_rate = AcceptanceRate(_FORCED_RATE)
        self._count = 0
        self._is_stopped = False

    def stop(self) -> None:
        """Draft nothing any more."""
        self.tokens, self._is_stopped = (), True

    @property
    def is_stopped(self) -> bool:
        """Whether nothing is drafted any more."""
        return self._is_stopped

    def take(self, tokens: Sequence[int]) -> None:
        """Take a draft of the draft model."""
        self.tokens, self.source = tokens, "model"

    def propose(self, tokens: Sequence[int], most: int, mask: TokenMask | None = None) -> Proposal:
        """Propose a draft.

        Args:
            tokens: All tokens of the sequence. They begin with those of earlier calls.
            most: Most tokens of the draft.
            mask: The grammar that the sequence follows, if any.
        """
        if self._is_stopped:
            return NOTHING
        self._forced_rate.learn(self._forced, tokens[self._count :])
        self._count = len(tokens)
        self.tokens, rate = self._lookup.propose(tokens, most), self._lookup.rate
        self.source = "lookup"
        self._forced = () if mask is None else mask.forced()[:most]
        if self._forced:
            self.tokens, rate = self._forced, self._forced_rate.value
            self.source = "grammar"
        elif mask is not None:
            self.tokens = self.tokens[: mask.count_allowed(self.tokens)]
        return Proposal(len(self.tokens), rate)
