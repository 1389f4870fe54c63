"""Log probabilities as OpenAI's completions and chats have them."""

from __future__ import annotations

from collections.abc import Sequence

from predictor.tasks.answers import Piece, ScoredToken

_LEAST_LOGPROB = -9999.0
"""OpenAI's value for a token that is very unlikely; JSON has no infinity."""


def piece_width(piece: Piece) -> int:
    """Return the characters of a piece's tokens in a reply."""
    return sum(_width(token) for token in piece.tokens)


def _width(token: ScoredToken) -> int:
    """Return the characters of a token in a reply, which no special token is part of."""
    return 0 if token.special else len(token.text)


def completion_logprobs(tokens: Sequence[ScoredToken], offset: int) -> dict[str, object] | None:
    """Return the log probabilities of a completion; the chosen token is among the top ones."""
    if not tokens:
        return None
    offsets = [offset]
    for token in tokens[:-1]:
        offsets.append(offsets[-1] + _width(token))
    return {
        "text_offset": offsets,
        "token_logprobs": [bounded(token.logprob) for token in tokens],
        "tokens": [token.text for token in tokens],
        "top_logprobs": [_top(token) for token in tokens],
    }


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
