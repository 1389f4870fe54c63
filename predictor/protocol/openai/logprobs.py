"""Log probabilities as OpenAI's completions and chats have them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from orjson import Fragment

from predictor.protocol.http.json_body import dump_json
from predictor.tasks.answers import Completion, Piece, ScoredToken
from predictor.tasks.prompt_scores import ScoredPrompt, ScoredPromptToken

_LEAST_LOGPROB = -9999.0
"""OpenAI's value for a token that is very unlikely; JSON has no infinity."""


def piece_width(piece: Piece) -> int:
    """Return the characters of a piece's tokens in a reply."""
    return sum(map(_width, (*piece.tokens, *(piece.prompt or ()))))


def most_probable_first(completions: Sequence[Completion]) -> list[Completion]:
    """Return replies to one prompt by the mean log probability of their tokens."""
    return sorted(completions, key=_mean, reverse=True)


def _mean(completion: Completion) -> float:
    logprobs = [token.logprob for token in completion.tokens]
    return sum(logprobs) / len(logprobs) if logprobs else -math.inf


def _width(token: ScoredToken | ScoredPromptToken) -> int:
    """Return the characters of a token in a reply, which no special token is part of."""
    return 0 if token.special else len(token.text)


def completion_logprobs(
    tokens: Sequence[ScoredToken],
    offset: int,
    prompt: ScoredPrompt | None = None,
    alternatives: int = 0,
) -> dict[str, object] | None:
    """Return the log probabilities of a completion; the chosen token is among the top ones.

    Args:
        tokens: The tokens of the reply.
        offset: Where they begin in the text.
        prompt: The tokens of the prompt, if they are before those of the reply.
        alternatives: How many most probable tokens are beside each of those.
    """
    if not tokens and prompt is None:
        return None
    columns = _Columns(offset)
    for each in prompt or ():
        columns.add(_shown(each, alternatives), has_logprob=each.token is not None)
    for token in tokens:
        columns.add(token)
    return {
        "text_offset": columns.offsets,
        "token_logprobs": columns.logprobs,
        "tokens": columns.texts,
        "top_logprobs": columns.top.written(),
    }


@dataclass(slots=True)
class _Columns:
    """The lists of a completion's log probabilities, which have an element for each token."""

    offset: int
    offsets: list[int] = field(default_factory=list)
    logprobs: list[float | None] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    top: _Written = field(default_factory=lambda: _Written())

    def add(self, token: ScoredToken, *, has_logprob: bool = True) -> None:
        """Add a token, and its alternatives."""
        self.offsets.append(self.offset)
        self.offset += _width(token)
        self.logprobs.append(bounded(token.logprob) if has_logprob else None)
        self.texts.append(token.text)
        self.top.add(_top(token) if has_logprob else None)


class _Written:
    """A list that is written as JSON while it grows: its objects would take several times that."""

    def __init__(self) -> None:
        self._json = bytearray()

    def add(self, value: object) -> None:
        self._json += b"," if self._json else b"["
        self._json += dump_json(value)

    def written(self) -> Fragment:
        return Fragment(bytes(self._json or b"[") + b"]")


def prompt_logprobs(prompt: ScoredPrompt, alternatives: int) -> Fragment:
    """Return the log probabilities of a prompt's tokens in vLLM's form, by token ids, as JSON.

    Args:
        prompt: The tokens.
        alternatives: How many most probable tokens are beside each.
    """
    rows = _Written()
    for each in prompt:
        rows.add(_by_id(each, alternatives))
    return rows.written()


def _by_id(each: ScoredPromptToken, alternatives: int) -> dict[str, object] | None:
    if each.token is None:
        return None
    rows = {each.id: _ranked(each.token.logprob, each.token.rank, each.text)}
    for rank, (top, text) in enumerate(zip(each.token.top, each.texts, strict=True), 1):
        if rank <= alternatives:
            rows.setdefault(top[0], _ranked(top[1], rank, text))
    return {str(token): row for token, row in rows.items()}


def _ranked(logprob: float, rank: int, text: str) -> dict[str, object]:
    return {"logprob": bounded(logprob), "rank": rank, "decoded_token": text}


def _shown(each: ScoredPromptToken, alternatives: int) -> ScoredToken:
    """Return a token of a prompt as one of a reply; the first one has no probability."""
    if each.token is None:
        return ScoredToken(each.id, each.text, 0.0, each.special)
    logprobs = (logprob for _, logprob in each.token.top)
    top = tuple(zip(each.texts, logprobs, strict=True))[:alternatives]
    return ScoredToken(each.id, each.text, each.token.logprob, each.special, top)


def _top(token: ScoredToken) -> dict[str, float]:
    """Return the alternatives by text; of several tokens with one text the most probable."""
    alternatives: dict[str, float] = {}
    for text, logprob in (*token.top, (token.text, token.logprob)):
        alternatives.setdefault(text, bounded(logprob))
    return alternatives


def message_logprobs(tokens: Sequence[ScoredToken]) -> dict[str, object] | None:
    """Return the log probabilities of a message."""
    if not tokens:
        return None
    content = [
        _token(token.text, token.logprob)
        | {"top_logprobs": [_token(text, logprob) for text, logprob in token.top]}
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def _token(text: str, logprob: float) -> dict[str, object]:
    return {"token": text, "logprob": bounded(logprob), "bytes": token_bytes(text)}


def token_bytes(text: str) -> list[int] | None:
    """Return the bytes of a token.

    One that is part of a character shows as U+FFFD; its own bytes are not known here.
    """
    return None if "\N{REPLACEMENT CHARACTER}" in text else list(text.encode())


def bounded(logprob: float) -> float:
    """Return a log probability that JSON has."""
    return max(logprob, _LEAST_LOGPROB)
