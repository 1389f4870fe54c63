"""How one sequence is continued, in tokens, with nothing left to a model's own defaults."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sampling:
    """The whole recipe.

    Attributes:
        max_new_tokens: Most tokens to generate, at least 1.
        temperature: 0 is greedy decoding.
        top_p: Probability mass to sample from; 1 is all of it.
        top_k: Tokens to sample from; 0 is all of them.
        repetition_penalty: 1 is none.
        seed: Makes sampling repeatable.
        stopped: Says of the tokens generated so far whether the reply ends there.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stopped: Callable[[Sequence[int]], bool] | None = None


@dataclass(frozen=True, slots=True)
class Generated:
    """What came of it.

    Attributes:
        tokens: The new tokens, the end-of-sequence token included.
        finish_reason: ``"stop"`` after an end-of-sequence token or where `stopped` said so,
            ``"length"`` otherwise.
    """

    tokens: tuple[int, ...]
    finish_reason: str
