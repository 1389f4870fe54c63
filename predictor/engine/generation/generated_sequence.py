"""A sequence that the engine generates: its tokens, and how it is continued and ends."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from predictor.engine.generation.prompt_tokens import PromptScores, PromptTokens
from predictor.engine.generation.sampler import Sampler
from predictor.engine.generation.sampling_params import (
    CachedPrompt,
    FinishReason,
    SamplingParams,
    SequenceCallback,
    StartCallback,
    Token,
)
from predictor.engine.generation.sequence_drafts import SequenceDrafts
from predictor.engine.model_thread import request_failed
from predictor.errors import PredictorError

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class GeneratedSequence:
    """One sequence, from its arrival to its end.

    Attributes:
        prompt: Tokens of its prompt.
        params: How it is continued.
        sampler: Samples its tokens.
        callback: Called with its tokens and its end.
        request: The request that it belongs to; None if it is the only one.
        scope: Sequences of equal scopes share what is computed of equal prefixes.
        is_bulk: Whether it yields to sequences that are not.
        arrived: When it arrived, in seconds.
        last_token: When its last token came, in seconds; 0 before the first.
        cached_prompt: Tokens of the prompt that were cached before its first forward pass.
        tokens: All known tokens. Empty until the first forward pass: many may wait with the same
            prompt.
        drafts: Drafts how it continues.
        scored: Tokens of the prompt whose log probabilities were passed on; the first has none.
        scores: Those that a forward pass computes.
    """

    prompt: Sequence[int]
    params: SamplingParams
    sampler: Sampler
    callback: SequenceCallback
    request: int | None
    scope: bytes
    is_bulk: bool
    arrived: float
    last_token: float = 0.0
    cached_prompt: int = 0
    tokens: list[int] = field(default_factory=list)
    drafts: SequenceDrafts = field(default_factory=SequenceDrafts)
    scored: int = 0
    scores: PromptScores | None = None

    @property
    def is_prompt_only(self) -> bool:
        """Whether it ends with its prompt."""
        return self.params.max_new_tokens == 0

    @property
    def known_tokens(self) -> Sequence[int]:
        """The tokens of the prompt and of the reply so far."""
        return self.tokens or self.prompt

    @property
    def tokens_left(self) -> int:
        """How many tokens it may still get."""
        return self.params.max_new_tokens - (len(self.known_tokens) - len(self.prompt))

    def begin_scores(self, start: int, end: int) -> PromptScores | None:
        """Return what takes the log probabilities that a chunk gives; None if none are needed.

        Args:
            start: The position of the chunk's first token.
            end: The position after its last.
        """
        alternatives, first = self.params.prompt_logprobs, max(start, self.scored) + 1
        self.scores = None
        if alternatives is not None and first <= min(end, len(self.prompt) - 1):
            targets = self.prompt[first : end + 1]
            self.scores = PromptScores(first - 1 - start, targets, alternatives)
        return self.scores

    def pass_scores(self) -> PredictorError | None:
        """Pass on the log probabilities of a chunk; return why there are none."""
        scores, self.scores = self.scores, None
        if scores is None or scores.error is not None:
            return None if scores is None else scores.error
        self.scored += len(scores.tokens)
        try:
            self.callback.on_prompt_tokens(PromptTokens.of(scores.tokens))
        # A callback's failure is its own sequence's.
        except Exception:
            logger.exception("A callback failed")
            return request_failed()
        return None

    @property
    def prefix_scope(self) -> bytes:
        """The scope of its prefixes, which are computed by its adapter."""
        adapter = self.params.adapter
        return self.scope if adapter is None else b"%s adapter %s" % (self.scope, adapter.encode())

    def begin(self, cached: int) -> None:
        """Note that the first forward pass begins, with so many tokens of the prompt cached."""
        self.tokens, self.cached_prompt = list(self.prompt), cached
        if isinstance(self.callback, StartCallback):
            self.callback.on_start()

    def take(self, token: Token) -> bool:
        """Append a token and pass it on; return whether the callback ends the sequence with it.

        Lets the callback's exceptions pass.
        """
        if self.cached_prompt and len(self.tokens) == len(self.prompt):
            self.callback.on_cached_prompt(CachedPrompt(self.cached_prompt))
        self.tokens.append(token.id)
        return self.callback.on_token(token)

    def finish(self, outcome: FinishReason | PredictorError) -> bool:
        """Call the callback with the end of the sequence; return whether it took that."""
        try:
            self.callback.on_finish(outcome)
        except Exception:
            logger.exception("A callback failed at its end")
            return False
        return True
