"""The tokens of a prompt as text, with their log probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from predictor.engine.generation.prompt_tokens import PromptToken


@dataclass(frozen=True, slots=True)
class ScoredPromptToken:
    """A token of a prompt as text, with its log probability.

    Attributes:
        token: The token, its alternatives and their log probabilities; None for the first token of
            a prompt, before which there is nothing.
        id: The token id.
        text: The token decoded by itself.
        special: Whether it is a special token.
        texts: The alternatives, decoded.
    """

    token: PromptToken | None
    id: int
    text: str
    special: bool = False
    texts: tuple[str, ...] = ()


def scored_prompt(
    tokenizer: Any, ids: Sequence[int], tokens: Sequence[PromptToken]
) -> tuple[ScoredPromptToken, ...]:
    """Return the tokens of a prompt. Takes a while: each alternative is decoded.

    Args:
        tokenizer: The model's tokenizer.
        ids: The tokens of the prompt.
        tokens: Those after the first, with their log probabilities.
    """
    special = frozenset(tokenizer.all_special_ids)

    @cache
    def text_of(token: int) -> str:
        text: str = tokenizer.decode([token])
        return text

    first = ScoredPromptToken(None, ids[0], text_of(ids[0]), ids[0] in special)
    others = (
        ScoredPromptToken(
            token,
            token.id,
            text_of(token.id),
            token.id in special,
            tuple(text_of(alternative) for alternative, _ in token.top),
        )
        for token in tokens
    )
    return (first, *others)
