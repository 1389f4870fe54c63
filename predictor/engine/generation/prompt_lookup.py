"""Prompt lookup: a draft is what followed the same tokens before, in the prompt or in the reply.

It needs no second model (Saxena 2023, "Prompt Lookup Decoding"; `PromptLookupCandidateGenerator` in
transformers, ``ngram`` in vLLM). It suits replies that repeat their prompt: edited code, quotes,
summaries, JSON.

Each lookup is a test, too, whether its draft is computed or not: the next tokens show how far it
was right. So the rate at which drafts are accepted is learnt without a cost: one for each length of
a match. Until a length has been right for the first time, it has no better rate than all together.
So text that misleads every length costs no more than text that misleads one.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np

from predictor.engine.generation.acceptance import AcceptanceRate

LEAST_MATCH, MOST_MATCH = 2, 5
"""Tokens that must be equal before those of a draft, and how many are compared. Of two places the
one with the longer match is better, and of equal ones the later."""

_FIRST_RATE = 0.4
"""The rate of drafts that are right before any has been compared.

If none is ever right, it falls to 0.06 and less in 16 tokens, so that no more are computed. By then
they have cost 1.9 % of the time of a reply of 64 tokens at most, whatever a token costs beside a
forward pass. With 0.5 it would be 2.7 %, and text that repeats up to 5 % faster."""


class PromptLookup:
    """The lookups of one sequence.

    Attributes:
        draft: The tokens of the last draft.
    """

    def __init__(self) -> None:
        """Begin with no token."""
        self.draft: Sequence[int] = ()
        self._tokens = array("i")  # four bytes for each token
        self._rates = [AcceptanceRate(_FIRST_RATE) for _ in range(MOST_MATCH + 1)]
        self._common_rate = AcceptanceRate(_FIRST_RATE)
        self._match = 0

    @property
    def rate(self) -> float:
        """The fraction of drafts' tokens after such a match that were right, the latest most."""
        own = self._rates[self._match]
        return own.value if own.is_proven else min(own.value, self._common_rate.value)

    def propose(self, tokens: Sequence[int], most: int) -> Sequence[int]:
        """Return a draft.

        Args:
            tokens: All tokens of the sequence. They begin with those of earlier calls.
            most: Most tokens of the draft.
        """
        added = tokens[len(self._tokens) :]
        for rate in (self._rates[self._match], self._common_rate):
            rate.learn(self.draft, added)
        self._tokens.extend(added)
        start, self._match = self._look_up()
        self.draft = self._continuation(start, most) if start else ()
        return self.draft

    def _continuation(self, start: int, most: int) -> Sequence[int]:
        """Return the tokens from a position on. Beyond the last one they begin again."""
        period = self._tokens[start : start + most]
        return [period[index % len(period)] for index in range(most)]

    def _look_up(self) -> tuple[int, int]:
        """Return where the last tokens were followed by others, and how many are equal; else 0."""
        tokens = np.frombuffer(self._tokens, dtype=np.intc)
        ends = np.flatnonzero(tokens[:-1] == tokens[-1])
        match = 1
        while match < MOST_MATCH and len(ends):
            longer = ends[(ends >= match) & (tokens[ends - match] == tokens[-1 - match])]
            if not len(longer):
                break
            ends, match = longer, match + 1
        if match < LEAST_MATCH or not len(ends):
            return 0, 0
        return int(ends[-1]) + 1, match
