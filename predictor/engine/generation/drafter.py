"""The drafts of all sequences of an engine: where their tokens come from."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from predictor.engine.generation.drafts import Proposal
from predictor.engine.generation.generated_sequence import GeneratedSequence

logger = logging.getLogger(__name__)


class Drafter:
    """Proposes drafts, see `drafts.Drafts`, and keeps their tokens until the next proposal."""

    def __init__(self, sequences: Mapping[int, GeneratedSequence]) -> None:
        """Propose for sequences.

        Args:
            sequences: The sequences by key, as they come and go.
        """
        self._sequences = sequences

    def propose(self, key: int, most: int) -> Proposal:
        """Propose a draft of a sequence, of so many tokens at most, and keep its tokens."""
        sequence = self._sequences[key]
        most = min(most, sequence.tokens_left - 1)  # one more comes after the last of the draft
        if most < 1:
            return Proposal(0, 0.0)
        try:
            return sequence.drafts.propose(sequence.known_tokens, most, sequence.sampler.mask)
        # A grammar that cannot look ahead costs its own sequence its drafts, and nobody else.
        except Exception:
            logger.exception("No tokens can be drafted for a sequence, which goes on without")
            sequence.drafts.stop()
            return Proposal(0, 0.0)

    def tokens(self, key: int) -> Sequence[int]:
        """Return the tokens of the last draft of a sequence."""
        return self._sequences[key].drafts.tokens
