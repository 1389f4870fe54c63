"""The log probabilities of a prompt's tokens: which prompts have them, and their texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
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


class TokenTexts(dict[int, str]):
    """The texts of tokens by their ids, each decoded by itself when it is first read."""

    def __init__(self, tokenizer: Any) -> None:
        """Start with none."""
        super().__init__()
        self._tokenizer = tokenizer

    def __missing__(self, token: int) -> str:
        """Decode a token."""
        text: str = self._tokenizer.decode([token])
        self[token] = text
        return text


@dataclass(frozen=True, slots=True)
class ScoredPrompt:
    """The tokens of a prompt. They are made while they are iterated over, and not kept.

    Iterating takes a while: each token and alternative is decoded once.

    Attributes:
        first: The id of the first token, which has no probability.
        parts: Those after it, with their log probabilities.
        texts: Each token and alternative, decoded by itself when it is first read.
        special: The special tokens.
    """

    first: int
    parts: Sequence[PromptTokens]
    texts: TokenTexts
    special: frozenset[int]

    @classmethod
    def of(cls, tokenizer: Any, first: int, parts: Sequence[PromptTokens]) -> ScoredPrompt:
        """Return the tokens of a prompt, as a transformers tokenizer decodes them."""
        return cls(first, parts, TokenTexts(tokenizer), frozenset(tokenizer.all_special_ids))

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
