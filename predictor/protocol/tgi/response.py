"""The responses of Text Generation Inference: whole ones, and the events of a stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from predictor.protocol.http.error_forms import tgi_error
from predictor.protocol.openai.logprobs import bounded, most_probable_first
from predictor.protocol.tgi.request import Call
from predictor.tasks.answers import Completion, Piece, ScoredToken
from predictor.tasks.prompt_scores import ScoredPromptToken


def whole(call: Call, completions: Sequence[Completion]) -> dict[str, object]:
    """Return the response with the most probable of the whole replies."""
    best, *others = most_probable_first(completions)
    answer: dict[str, object] = {"generated_text": best.text}
    if call.details:
        rest = [{"generated_text": each.text, **_details(call, each)} for each in others]
        best_of = {"best_of_sequences": rest} if rest else {}
        answer["details"] = _details(call, best) | best_of
    return answer


def _details(call: Call, completion: Completion) -> dict[str, object]:
    return {
        "finish_reason": completion.ending,
        "generated_tokens": completion.completion_tokens,
        "seed": call.parameters.seed,
        "prefill": list(map(_prefill, completion.prompt or ())),
        "tokens": [_token(token, token.text) for token in completion.tokens],
    } | ({"top_tokens": list(map(_top, completion.tokens))} if call.top_tokens else {})


def _prefill(each: ScoredPromptToken) -> dict[str, object]:
    """Return a token of the prompt; the first one has no probability."""
    logprob = None if each.token is None else bounded(each.token.logprob)
    return {"id": each.id, "text": each.text, "logprob": logprob}


def stream_error(status: int, sentence: str) -> object:
    """Return the event of an error in a stream."""
    return tgi_error(status, sentence)


@dataclass(slots=True)
class Events:
    """The events of one stream, one for each token; the last has the whole text.

    That a token is the last is known when the reply ends. So one that may be the last waits for
    what follows: a special token, or the one with which the reply has as many as requested.
    """

    call: Call
    _text: str = ""
    _index: int = 0
    _waiting: Piece | None = None
    _latest: ScoredToken | None = field(default=None)

    def encode(self, piece: Piece) -> Iterator[object]:
        """Yield the events of a piece."""
        self._text += piece.text
        if piece.ending is None and not piece.tokens:  # the prompt, or text without a token
            return
        if self._waiting is not None:
            piece = _joined(self._waiting, piece)
            self._waiting = None
        if piece.ending is None and self._may_be_last(piece):
            self._waiting = piece
            return
        yield from self._events(piece)

    def _may_be_last(self, piece: Piece) -> bool:
        most = self.call.parameters.max_new_tokens
        return piece.tokens[-1].special or piece.completion_tokens == most

    def _events(self, piece: Piece) -> Iterator[object]:
        tokens = piece.tokens or ((self._latest,) if self._latest is not None else ())
        for position, token in enumerate(tokens):
            is_last = position == len(tokens) - 1
            text = piece.text if is_last else ""
            event = self._event(token, text or (token.text if token.special else ""))
            if is_last and piece.ending is not None:
                event |= self._end(piece)
            yield event
        self._latest = tokens[-1] if tokens else None

    def _event(self, token: ScoredToken, text: str) -> dict[str, object]:
        self._index += 1
        event: dict[str, object] = {"index": self._index, "token": _token(token, text)}
        if self.call.top_tokens:
            event["top_tokens"] = _top(token)
        return event | {"generated_text": None, "details": None}

    def _end(self, piece: Piece) -> dict[str, object]:
        details = {
            "finish_reason": piece.ending,
            "generated_tokens": piece.completion_tokens,
            "seed": self.call.parameters.seed,
            "input_length": piece.prompt_tokens,
        }
        return {"generated_text": self._text, "details": details}


def _joined(earlier: Piece, later: Piece) -> Piece:
    return replace(later, text=earlier.text + later.text, tokens=earlier.tokens + later.tokens)


def _token(token: ScoredToken, text: str) -> dict[str, object]:
    return {"id": token.id, "text": text, "logprob": token.logprob, "special": token.special}


def _top(token: ScoredToken) -> Sequence[dict[str, object]]:
    """Return the most probable tokens at a token's position, best first."""
    alternatives = zip(token.top_ids, token.top, token.top_special, strict=True)
    return [
        {"id": number, "text": text, "logprob": logprob, "special": special}
        for number, (text, logprob), special in alternatives
    ]
