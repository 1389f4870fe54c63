"""How one sequence is continued, in tokens, and what comes of it; nothing of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from predictor.errors import PredictorError

FinishReason = Literal["eos_token", "stop_sequence", "length"]
"""Why a sequence ended: the model said so, its listener did, or its tokens ran out."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """The whole recipe, with nothing left to a model's own defaults.

    Attributes:
        max_new_tokens: Most tokens to generate, at least 1.
        temperature: 0 is greedy decoding.
        top_p: Probability mass to sample from; 1 is all of it.
        top_k: Tokens to sample from; 0 is all of them.
        repetition_penalty: Divides the logits of tokens of prompt and reply; 1 is none.
        presence_penalty: Is taken from the logits of tokens that are in the reply; 0 is none.
        frequency_penalty: Is taken once for each time that a token is in the reply; 0 is none.
        logit_bias: Is added to the logits of these tokens.
        seed: Makes sampling repeatable, in any company.
        logprobs: How many most probable tokens are told with each token and its own log
            probability; None tells neither.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token.

    Attributes:
        id: Its number in the vocabulary.
        logprob: Natural logarithm of its probability under the model alone, before the recipe;
            None where it was not asked for.
        top: The most probable tokens and their log probabilities, most probable first.
    """

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Listener(Protocol):
    """Who a sequence is generated for; called in the engine's thread, so it must not wait.

    What it raises fails its own sequence and no other.
    """

    def token(self, token: Token) -> bool:
        """Takes the next token; returns whether the sequence ends with it."""
        ...

    def end(self, outcome: FinishReason | PredictorError) -> None:
        """Is called once, when no more tokens come, unless the sequence was cancelled."""
        ...
