"""The drafts of all sequences of an engine: where their tokens come from.

What a grammar forces and what prompt lookup finds costs nothing to propose, so its tokens are there
at once. Those of the draft model are computed once it is decided how many pay, before the forward
pass that verifies them. No failure of a draft is one of a request.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from predictor.engine.generation.draft_model import DraftModel, WantedDraft
from predictor.engine.generation.draft_trials import DraftTrials
from predictor.engine.generation.drafts import NOTHING, Proposal
from predictor.engine.generation.forward_passes import Chunk
from predictor.engine.generation.generated_sequence import GeneratedSequence
from predictor.engine.generation.sequence_drafts import DraftSource

logger = logging.getLogger(__name__)

_MOST_FAILURES = 3
"""Failures of the draft model one after the other, after which it is not used any more."""

_POOR = 0.5
"""The rate of a lookup's drafts, as a fraction of the model's, below which the model drafts."""


class Drafter:
    """Proposes drafts, see `drafts.Drafts`, and keeps their tokens until the next proposal."""

    def __init__(
        self,
        sequences: Mapping[int, GeneratedSequence],
        model: DraftModel | None = None,
        lookup_tokens: int | None = None,
        trials: DraftTrials | None = None,
    ) -> None:
        """Propose for sequences.

        Args:
            sequences: The sequences by key, as they come and go.
            model: The draft model, if there is one.
            lookup_tokens: Most tokens of a draft by lookup or a grammar; None for no bound.
            trials: Measures in place if drafts pay; None if they do by their costs.
        """
        self._sequences, self._model, self._lookup_tokens = sequences, model, lookup_tokens
        self._trials = trials
        self._failures = 0

    def allows(self, rows: int) -> bool:
        """Begin a step of so many sequences, and return whether it may have drafts."""
        return self._trials is None or self._trials.allows(rows)

    def note(self, rows: Sequence[Chunk], tokens: int, seconds: float) -> None:
        """Note a forward pass, which gave tokens; one with prompts says nothing of drafts."""
        if self._trials is not None and all(chunk.known_part.count == 1 for chunk in rows):
            has_drafts = any(chunk.drafts and self.tokens(chunk.key) for chunk in rows)
            self._trials.note(len(rows), tokens=tokens, seconds=seconds, has_drafts=has_drafts)

    def propose(self, key: int, most: int) -> Proposal:
        """Propose a draft of a sequence, of so many tokens at most, and keep its tokens."""
        sequence = self._sequences[key]
        most = min(most, sequence.tokens_left - 1)  # one more comes after the last of the draft
        if most < 1:
            return NOTHING
        tokens = sequence.known_tokens
        looked_up = most if self._lookup_tokens is None else min(most, self._lookup_tokens)
        try:
            proposal = sequence.drafts.propose(tokens, looked_up, sequence.sampler.mask)
        # A grammar that cannot look ahead costs its own sequence its drafts, and nobody else.
        except Exception:
            logger.exception("No tokens can be drafted for a sequence, which goes on without")
            sequence.drafts.stop()
            return NOTHING
        if self._model is None or sequence.drafts.is_stopped:
            return proposal
        other = self._model.propose(key, tokens, most)
        is_poor = proposal.rate < _POOR * other.rate
        if not other.count or (proposal.count and not is_poor):
            return proposal
        sequence.drafts.take(())
        return other

    def compute(self, rows: Sequence[Chunk]) -> None:
        """Have the draft model compute the drafts of a forward pass that have no tokens yet."""
        drafted = [chunk for chunk in rows if chunk.drafts and self.source(chunk.key) == "model"]
        wanted = [
            WantedDraft(chunk.key, self._sequences[chunk.key].known_tokens, chunk.drafts)
            for chunk in drafted
        ]
        if self._model is None or not wanted:
            return
        try:
            drafts = self._model.compute(wanted)
            self._failures = 0
        # Models raise errors of any type; without drafts, the requests go on.
        except Exception:
            self._fail(self._model)
            return
        for key, tokens in drafts.items():
            self._take(self._sequences[key], tokens)

    def tokens(self, key: int) -> Sequence[int]:
        """Return the tokens of the last draft of a sequence."""
        return self._sequences[key].drafts.tokens

    def source(self, key: int) -> DraftSource:
        """Return where these come from."""
        return self._sequences[key].drafts.source

    def release(self, key: int) -> None:
        """Free what the draft model keeps of a sequence, which was preempted."""
        if self._model is not None:
            self._model.release(key)

    def end(self, key: int) -> None:
        """Forget a sequence."""
        if self._model is not None:
            self._model.end(key)

    def _take(self, sequence: GeneratedSequence, tokens: Sequence[int]) -> None:
        """Give a sequence its draft, as far as its grammar allows the tokens."""
        mask = sequence.sampler.mask
        try:
            allowed = len(tokens) if mask is None else mask.count_allowed(tokens)
        # As in `propose`.
        except Exception:
            logger.exception("No tokens can be drafted for a sequence, which goes on without")
            sequence.drafts.stop()
            return
        sequence.drafts.take(tokens[:allowed])

    def _fail(self, model: DraftModel) -> None:
        """Note that the draft model failed; the last of several failures ends its use."""
        logger.exception("The draft model failed; the replies go on without its drafts")
        model.release_all()
        self._failures += 1
        if self._failures == _MOST_FAILURES:
            logger.error(
                "The draft model failed %d times, and is not used any more", _MOST_FAILURES
            )
            self._model = None
