"""OpenAI's responses: completions and chat completions, whole and in chunks."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from predictor.protocol.openai.request import Asked
from predictor.tasks.request import Completion, Piece, ScoredToken, finish_reason

_LEAST_LOGPROB = -9999.0
"""OpenAI's word for a token that is very unlikely; JSON has no infinity."""


class Style(Protocol):
    """What tells chat completions from completions.

    Attributes:
        prefix: Of ids.
        whole: Object type of a response.
        chunk: Object type of an event.
    """

    prefix: str
    whole: str
    chunk: str

    def choice(self, completion: Completion) -> dict[str, object]:
        """Returns a choice of a response, without index and finish reason."""
        ...

    def opening(self) -> dict[str, object] | None:
        """Returns what a choice begins with in a stream, if there is such a thing."""
        ...

    def part(self, piece: Piece, offset: int) -> dict[str, object]:
        """Returns the next part of a choice; `offset` is where its tokens begin in the reply."""
        ...


class CompletionStyle:
    """Completions: a choice is a text."""

    prefix, whole, chunk = "cmpl-", "text_completion", "text_completion"

    def choice(self, completion: Completion) -> dict[str, object]:
        """Returns a choice of a response, without index and finish reason."""
        return {"text": completion.text, "logprobs": _lists(completion.tokens, 0)}

    def opening(self) -> None:
        """Returns None: a text begins with its first piece."""

    def part(self, piece: Piece, offset: int) -> dict[str, object]:
        """Returns the next part of a choice; `offset` is where its tokens begin in the reply."""
        return {"text": piece.text, "logprobs": _lists(piece.tokens, offset)}


class ChatStyle:
    """Chat completions: a choice is the assistant's message."""

    prefix, whole, chunk = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    def choice(self, completion: Completion) -> dict[str, object]:
        """Returns a choice of a response, without index and finish reason."""
        message = {"role": "assistant", "content": completion.text, "refusal": None}
        return {"message": message, "logprobs": _content(completion.tokens)}

    def opening(self) -> dict[str, object]:
        """Returns the chunk that says whose message it is."""
        return {"delta": {"role": "assistant", "content": ""}, "logprobs": None}

    def part(self, piece: Piece, offset: int) -> dict[str, object]:  # noqa: ARG002
        """Returns the next part of a choice; chat has no offsets."""
        delta = {"content": piece.text} if piece.text else {}
        return {"delta": delta, "logprobs": _content(piece.tokens)}


@dataclass(frozen=True, slots=True)
class Head:
    """What a response and all chunks of a stream begin with."""

    id: str
    created: int
    model: str

    @classmethod
    def new(cls, style: Style, model: str) -> Head:
        """Returns a head with a new id."""
        return cls(style.prefix + uuid.uuid4().hex, int(time.time()), model)

    def document(self, kind: str, choices: Sequence[object]) -> dict[str, object]:
        """Returns a response of some object type."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }


def encode(
    style: Style, head: Head, asked: Asked, completions: Sequence[Completion]
) -> dict[str, object]:
    """Returns the response for completions, `asked.n` for each prompt."""
    choices = [
        {"index": index, **style.choice(each), "finish_reason": each.finish_reason}
        for index, each in enumerate(completions)
    ]
    prompt_tokens = sum(each.prompt_tokens for each in completions[:: asked.n])
    completion_tokens = sum(each.completion_tokens for each in completions)
    return head.document(style.whole, choices) | {"usage": _usage(prompt_tokens, completion_tokens)}


@dataclass(slots=True)
class Chunks:
    """Makes the events of one stream."""

    style: Style
    head: Head
    asked: Asked
    _ends: dict[int, Piece] = field(default_factory=dict)
    _offsets: dict[int, int] = field(default_factory=dict)
    _open: bool = False

    def encode(self, piece: Piece) -> Iterator[object]:
        """Yields the events of a piece; before the first what opens the choices, at last usage."""
        if not self._open:
            self._open = True
            yield from self._opening()
        offset = self._offsets.get(piece.index, 0)
        self._offsets[piece.index] = offset + _length(piece)
        ending = None if piece.ending is None else finish_reason(piece.ending)
        yield self._chunk(piece.index, self.style.part(piece, offset), ending)
        if piece.ending is not None:
            self._ends[piece.index] = piece
            if self.asked.include_usage and len(self._ends) == len(self.asked.request.prompts):
                yield self.head.document(self.style.chunk, []) | {"usage": self._total()}

    def _opening(self) -> Iterator[object]:
        opening = self.style.opening()
        if opening is not None:
            for index in range(len(self.asked.request.prompts)):
                yield self._chunk(index, opening, None)

    def _chunk(self, index: int, part: Mapping[str, object], ending: str | None) -> object:
        choice = {"index": index, **part, "finish_reason": ending}
        usage = {"usage": None} if self.asked.include_usage else {}
        return self.head.document(self.style.chunk, [choice]) | usage

    def _total(self) -> dict[str, int]:
        prompts = range(0, len(self._ends), self.asked.n)
        return _usage(
            sum(self._ends[index].prompt_tokens for index in prompts),
            sum(piece.completion_tokens for piece in self._ends.values()),
        )


def _usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def _length(piece: Piece) -> int:
    return sum(_width(token) for token in piece.tokens)


def _width(token: ScoredToken) -> int:
    """Returns how far a token moves the offset: a special one is in no reply."""
    return 0 if token.special else len(token.text)


def _lists(tokens: Sequence[ScoredToken], offset: int) -> dict[str, object] | None:
    """Returns the log probabilities of a completion; the chosen token is among the top ones."""
    if not tokens:
        return None
    offsets = [offset]
    for token in tokens[:-1]:
        offsets.append(offsets[-1] + _width(token))
    return {
        "text_offset": offsets,
        "token_logprobs": [_bounded(token.logprob) for token in tokens],
        "tokens": [token.text for token in tokens],
        "top_logprobs": [_top(token) for token in tokens],
    }


def _top(token: ScoredToken) -> dict[str, float]:
    """Returns the alternatives by text; of several tokens with one text the most probable."""
    found: dict[str, float] = {}
    for text, logprob in (*token.top, (token.text, token.logprob)):
        found.setdefault(text, _bounded(logprob))
    return found


def _content(tokens: Sequence[ScoredToken]) -> dict[str, object] | None:
    """Returns the log probabilities of a message."""
    if not tokens:
        return None
    content = [
        _token(token.text, token.logprob)
        | {"top_logprobs": [_token(text, logprob) for text, logprob in token.top]}
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def _token(text: str, logprob: float) -> dict[str, object]:
    # A token that is part of a character shows as U+FFFD; its own bytes are not known here.
    octets = None if "\N{REPLACEMENT CHARACTER}" in text else list(text.encode())
    return {"token": text, "logprob": _bounded(logprob), "bytes": octets}


def _bounded(logprob: float) -> float:
    return max(logprob, _LEAST_LOGPROB)
