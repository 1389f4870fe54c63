"""The log probabilities of a prompt's tokens: which prompts have them, and their texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from predictor.engine.generation.prompt_tokens import PromptToken, PromptTokens
from predictor.errors import RequestError
from predictor.tasks.request import GenerationParameters


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


@dataclass(frozen=True, slots=True)
class ScoredPrompt:
    """The tokens of a prompt. They are made while they are iterated over, and not kept.

    Attributes:
        first: The id of the first token, which has no probability.
        parts: Those after it.
        texts: Each token and alternative, decoded by itself.
        special: The special tokens.
    """

    first: int
    parts: Sequence[PromptTokens]
    texts: Mapping[int, str]
    special: frozenset[int]

    def __len__(self) -> int:
        """Return how many tokens there are."""
        return 1 + sum(map(len, self.parts))

    def __iter__(self) -> Iterator[ScoredPromptToken]:
        """Yield the tokens."""
        yield self._scored(self.first, None)
        for part in self.parts:
            for token in part:
                yield self._scored(token.id, token)

    def _scored(self, number: int, token: PromptToken | None) -> ScoredPromptToken:
        top = () if token is None else token.top
        texts = tuple(self.texts[alternative] for alternative, _ in top)
        return ScoredPromptToken(token, number, self.texts[number], number in self.special, texts)


def scored_prompt(tokenizer: Any, first: int, parts: Sequence[PromptTokens]) -> ScoredPrompt:
    """Return the tokens of a prompt. Takes a while: each alternative is decoded once.

    Args:
        tokenizer: The model's tokenizer.
        first: The first token of the prompt.
        parts: Those after the first, with their log probabilities.
    """
    texts: dict[int, str] = {first: tokenizer.decode([first])}
    for number in chain.from_iterable((*part.ids, *part.top_ids) for part in parts):
        if number not in texts:
            texts[number] = tokenizer.decode([number])
    return ScoredPrompt(first, parts, texts, frozenset(tokenizer.all_special_ids))


@dataclass(slots=True)
class PromptScoring:
    """Decides which prompts of one request are scored.

    Attributes:
        most_tokens: Most tokens of all that are scored, with the alternatives that count as some;
            see `GenerationParameters.prompt_weight`.
        has_encoder: Whether an encoder reads the model's prompts.
    """

    most_tokens: int
    has_encoder: bool
    _tokens: int = 0
    _scored: set[int] = field(default_factory=set)

    def alternatives(self, requested: GenerationParameters, ids: tuple[int, ...]) -> int | None:
        """Return with how many alternatives the engine scores the prompt of a reply, or None.

        Of the replies to one prompt, which share its tokens, the first alone scores it.

        Args:
            requested: The parameters of the reply.
            ids: The tokens of its prompt.

        Raises:
            RequestError: An encoder reads the prompt, or the request scores too many tokens.
        """
        if requested.prompt_logprobs is None:
            return None
        if self.has_encoder:
            raise RequestError(
                "An encoder reads this model's prompts, so their tokens have no log probabilities."
            )
        self._tokens += requested.prompt_weight * len(ids)
        if self._tokens > self.most_tokens:
            raise RequestError(
                "The log probabilities of the prompts are too many: each counts for "
                f"{requested.prompt_weight} tokens with its alternatives, and a request has at "
                f"most {self.most_tokens} (max_tokens_in_flight)."
            )
        if id(ids) in self._scored:
            return None
        self._scored.add(id(ids))
        return requested.prompt_logprobs
