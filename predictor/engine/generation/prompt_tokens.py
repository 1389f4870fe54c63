"""The log probabilities of a prompt's own tokens, as the engine passes them on; no tensors here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from predictor.errors import PredictorError


@dataclass(frozen=True, slots=True)
class PromptToken:
    """A token of a prompt, with its log probability after those before it.

    Attributes:
        id: Its id.
        logprob: Natural logarithm of its probability under the model alone.
        rank: 1 if it is the most probable token, 2 if one is more probable, and so on.
        top: The most probable tokens and their log probabilities, most probable first.
    """

    id: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """The next tokens of a prompt. The first token of all has no probability and is left out."""

    tokens: Sequence[PromptToken]


@dataclass(slots=True)
class PromptScores:
    """What a forward pass computes of the log probabilities of a prompt.

    Attributes:
        skipped: First tokens of the chunk after which none are needed.
        targets: The tokens that follow each of the next ones, whose log probabilities are needed.
        alternatives: How many most probable tokens are returned with each.
        tokens: The tokens, after the forward pass.
        error: Why there are none.
    """

    skipped: int
    targets: Sequence[int]
    alternatives: int
    tokens: list[PromptToken] = field(default_factory=list)
    error: PredictorError | None = None
