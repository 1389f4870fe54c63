"""The drafts of all sequences of an engine: where their tokens come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from predictor.engine.generation.drafts import Proposal
from predictor.engine.generation.generated_sequence import GeneratedSequence


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
        draft = sequence.lookup.propose(sequence.known_tokens, most)
        # One more token comes with the last of the draft.
        count = min(len(draft), sequence.tokens_left - 1)
        return Proposal(max(0, count), sequence.lookup.rate)

    def tokens(self, key: int) -> Sequence[int]:
        """Return the tokens of the last draft of a sequence."""
        return self._sequences[key].lookup.draft
