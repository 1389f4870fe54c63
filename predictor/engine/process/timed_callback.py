"""The callback of a sequence in the front process whose request is traced."""

from __future__ import annotations

from dataclasses import dataclass

from predictor.engine.generation.prompt_tokens import PromptTokens
from predictor.engine.generation.sampling_params import (
    CachedPrompt,
    FinishReason,
    Queued,
    SequenceCallback,
    Token,
)
from predictor.errors import PredictorError
from predictor.sequence_times import TimesOfRequest


@dataclass(frozen=True, slots=True)
class TimedCallback:
    """Passes all calls on, and knows where the times of its sequence go.

    Attributes:
        callback: The callback.
        times: The times of the request.
        index: The index of the sequence in them.
    """

    callback: SequenceCallback
    times: TimesOfRequest
    index: int

    def on_queued(self, queued: Queued) -> None:
        """Pass it on."""
        self.callback.on_queued(queued)

    def on_cached_prompt(self, cached: CachedPrompt) -> None:
        """Pass it on."""
        self.callback.on_cached_prompt(cached)

    def on_prompt_tokens(self, tokens: PromptTokens) -> None:
        """Pass it on."""
        self.callback.on_prompt_tokens(tokens)

    def on_token(self, token: Token) -> bool:
        """Pass it on."""
        return self.callback.on_token(token)

    def on_finish(self, outcome: FinishReason | PredictorError) -> None:
        """Pass it on, and note the time of a complete reply."""
        if not isinstance(outcome, PredictorError):
            self.times.finish(self.index)
        self.callback.on_finish(outcome)
