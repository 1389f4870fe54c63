"""OpenAI's responses: completions and chat completions, whole and in chunks."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from predictor.engine.generation.sampling_params import FinishReason
from predictor.protocol.http.error_forms import openai_error
from predictor.protocol.openai.logprobs import (
    completion_logprobs,
    message_logprobs,
    most_probable_first,
    piece_width,
    prompt_logprobs,
)
from predictor.protocol.openai.request import Call
from predictor.tasks.answers import Completion, Piece, finish_reason
from predictor.tasks.tool_calls import CallPart, ToolCall


class Format(Protocol):
    """The differences between chat completions and completions.

    Attributes:
        prefix: Of ids.
        whole: Object type of a response.
        chunk: Object type of an event.
    """

    prefix: str
    whole: str
    chunk: str

    def choice(self, completion: Completion, call: Call) -> dict[str, object]:
        """Return a choice of a response, without index and finish reason."""
        ...

    def around(self, completion: Completion, call: Call) -> dict[str, object]:
        """Return further keys of a response, of which this is the first choice."""
        ...

    def opening(self) -> dict[str, object] | None:
        """Return the beginning of a choice in a stream, or None."""
        ...

    def part(self, piece: Piece, offset: int, call: Call) -> dict[str, object]:
        """Return the next part of a choice; `offset` is where its tokens begin in the reply."""
        ...


class CompletionFormat:
    """Completions: a choice is a text."""

    prefix, whole, chunk = "cmpl-", "text_completion", "text_completion"

    def choice(self, completion: Completion, call: Call) -> dict[str, object]:
        """Return a choice of a response, without index and finish reason."""
        parameters = call.request.prompts[0].parameters
        is_echo = parameters.return_full_text and parameters.logprobs is not None
        prompt = completion.prompt if is_echo and not call.hides_logprobs else None
        logprobs = completion_logprobs(completion.tokens, 0, prompt, parameters.logprobs or 0)
        return {"text": completion.text, "logprobs": logprobs, **_prompt_scores(completion, call)}

    def around(self, completion: Completion, call: Call) -> dict[str, object]:  # noqa: ARG002
        """Return nothing: each choice has its own prompt."""
        return {}

    def opening(self) -> None:
        """Return None: a text begins with its first piece."""

    def part(self, piece: Piece, offset: int, call: Call) -> dict[str, object]:
        """Return the next part of a choice; `offset` is where its tokens begin in the reply."""
        alternatives = call.request.prompts[0].parameters.logprobs or 0
        logprobs = completion_logprobs(piece.tokens, offset, piece.prompt, alternatives)
        return {"text": piece.text, "logprobs": logprobs}


class ChatFormat:
    """Chat completions: a choice is the assistant's message."""

    prefix, whole, chunk = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    def choice(self, completion: Completion, call: Call) -> dict[str, object]:  # noqa: ARG002
        """Return a choice of a response, without index and finish reason."""
        content = None if completion.calls and not completion.text else completion.text
        message: dict[str, object] = {"role": "assistant", "content": content, "refusal": None}
        if completion.reasoning:
            message["reasoning_content"] = completion.reasoning
        if completion.calls:
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": _function(call)}
                for call in completion.calls
            ]
        return {"message": message, "logprobs": message_logprobs(completion.tokens)}

    def around(self, completion: Completion, call: Call) -> dict[str, object]:
        """Return the log probabilities of the only prompt, if they were requested."""
        return _prompt_scores(completion, call)

    def opening(self) -> dict[str, object]:
        """Return the chunk with the role of the message."""
        return {"delta": {"role": "assistant", "content": ""}, "logprobs": None}

    def part(self, piece: Piece, offset: int, call: Call) -> dict[str, object]:  # noqa: ARG002
        """Return the next part of a choice; chat has no offsets."""
        delta: dict[str, object] = {"content": piece.text} if piece.text else {}
        if piece.reasoning:
            delta["reasoning_content"] = piece.reasoning
        if piece.calls:
            delta["tool_calls"] = [_call_delta(part) for part in piece.calls]
        return {"delta": delta, "logprobs": message_logprobs(piece.tokens)}


def _prompt_scores(completion: Completion, call: Call) -> dict[str, object]:
    if call.prompt_logprobs is None or completion.prompt is None:
        return {}
    return {"prompt_logprobs": prompt_logprobs(completion.prompt, call.prompt_logprobs)}


def _function(call: ToolCall | CallPart) -> dict[str, object]:
    named = {} if call.name is None else {"name": call.name}
    return {**named, "arguments": call.arguments}


def _call_delta(part: CallPart) -> dict[str, object]:
    beginning = {} if part.id is None else {"id": part.id, "type": "function"}
    return {"index": part.index, **beginning, "function": _function(part)}


@dataclass(frozen=True, slots=True)
class Envelope:
    """The keys that a response and all chunks of a stream have in common."""

    id: str
    created: int
    model: str

    @classmethod
    def new(cls, form: Format, model: str) -> Envelope:
        """Return an envelope with a new id."""
        return cls(form.prefix + uuid.uuid4().hex, int(time.time()), model)

    def document(self, kind: str, choices: Sequence[object]) -> dict[str, object]:
        """Return a response of some object type."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }


def encode(
    form: Format, envelope: Envelope, call: Call, completions: Sequence[Completion]
) -> dict[str, object]:
    """Return the response for completions, `call.best_of` for each prompt."""
    choices = [
        {
            "index": index,
            **form.choice(each, call),
            "finish_reason": _ending(each.ending, each.calls),
        }
        for index, each in enumerate(_chosen(call, completions))
    ]
    usage = {"usage": _usage(completions, call.best_of)}
    return envelope.document(form.whole, choices) | usage | form.around(completions[0], call)


def _chosen(call: Call, completions: Sequence[Completion]) -> Sequence[Completion]:
    """Return the `call.n` most probable completions of each prompt, by their mean token."""
    if call.best_of == call.n:
        return completions
    groups = (
        completions[at : at + call.best_of] for at in range(0, len(completions), call.best_of)
    )
    best = [each for group in groups for each in most_probable_first(group)[: call.n]]
    return [replace(each, tokens=()) for each in best] if call.hides_logprobs else best


@dataclass(frozen=True, slots=True)
class ChoicesForm:
    """The form of completions or of chat completions.

    Attributes:
        form: Their differences.
    """

    form: Format

    def whole(self, call: Call, model: str, completions: Sequence[Completion]) -> object:
        """Return the response; see `encode`."""
        return encode(self.form, Envelope.new(self.form, model), call, completions)

    def events(self, call: Call, model: str) -> Chunks:
        """Return what makes the events of a stream."""
        return Chunks(self.form, Envelope.new(self.form, model), call)


@dataclass(slots=True)
class Chunks:
    """The events of one stream."""

    form: Format
    envelope: Envelope
    call: Call
    _ends: dict[int, Piece] = field(default_factory=dict)
    _offsets: dict[int, int] = field(default_factory=dict)
    _calling: set[int] = field(default_factory=set)
    _open: bool = False

    @property
    def last(self) -> str:
        """Data of the event after all others."""
        return "[DONE]"

    def opening(self) -> Iterator[object]:
        """Yield nothing: the openings of choices come with the first piece."""
        yield from ()

    def error(self, status: int, sentence: str) -> object:
        """Return the event of an error, which ends the stream."""
        return openai_error(status, sentence)

    def encode(self, piece: Piece) -> Iterator[object]:
        """Yield the events of a piece: before the first the openings, after the last the usage."""
        if not self._open:
            self._open = True
            yield from self._opening()
        offset = self._offsets.get(piece.index, 0)
        self._offsets[piece.index] = offset + piece_width(piece)
        if piece.calls:
            self._calling.add(piece.index)
        calls = piece.index in self._calling
        ending = None if piece.ending is None else _ending(piece.ending, calls)
        yield self._chunk(piece.index, self.form.part(piece, offset, self.call), ending)
        if piece.ending is not None:
            self._ends[piece.index] = piece
            if self.call.include_usage and len(self._ends) == len(self.call.request.prompts):
                yield self.envelope.document(self.form.chunk, []) | {"usage": self._total()}

    def _opening(self) -> Iterator[object]:
        opening = self.form.opening()
        if opening is not None:
            for index in range(len(self.call.request.prompts)):
                yield self._chunk(index, opening, None)

    def _chunk(self, index: int, part: Mapping[str, object], ending: str | None) -> object:
        choice = {"index": index, **part, "finish_reason": ending}
        usage = {"usage": None} if self.call.include_usage else {}
        return self.envelope.document(self.form.chunk, [choice]) | usage

    def _total(self) -> dict[str, object]:
        return _usage([self._ends[index] for index in range(len(self._ends))], self.call.n)


def _ending(ending: FinishReason, calls: object) -> str:
    """Return the finish reason of a reply, which may make calls."""
    return "tool_calls" if calls and ending != "length" else finish_reason(ending)


def _usage(replies: Sequence[Completion | Piece], n: int) -> dict[str, object]:
    """Return the tokens of replies, `n` to each prompt, which counts once.

    Of the replies to one prompt the first to be computed had the fewest tokens cached.
    """
    prompts = [replies[first : first + n] for first in range(0, len(replies), n)]
    prompt_tokens = sum(prompt[0].prompt_tokens for prompt in prompts)
    completion_tokens = sum(reply.completion_tokens for reply in replies)
    cached_tokens = sum(min(reply.cached_tokens for reply in prompt) for prompt in prompts)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
        **_reasoning_usage(replies),
    }


def _reasoning_usage(replies: Sequence[Completion | Piece]) -> dict[str, object]:
    tokens = sum(reply.reasoning_tokens for reply in replies)
    return {"completion_tokens_details": {"reasoning_tokens": tokens}} if tokens else {}
