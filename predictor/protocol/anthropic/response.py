"""A message as a JSON object, and the events of one that is streamed.

The source is Anthropic's API reference as its Python client has it (``anthropic.types.message``,
``anthropic.types.raw_message_stream_event``).
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from predictor.errors import RequestError
from predictor.protocol.anthropic.request import MessageCall
from predictor.protocol.http.error_forms import anthropic_error
from predictor.protocol.http.json_body import is_writable, parse_json
from predictor.protocol.http.sse import NamedEvent
from predictor.protocol.openai.reply_items import (
    Extended,
    Item,
    ItemChange,
    Opened,
    StreamedItems,
    items_of,
)
from predictor.tasks.answers import Completion, Piece

_DELTAS = {
    "reasoning": ("thinking_delta", "thinking"),
    "text": ("text_delta", "text"),
    "call": ("input_json_delta", "partial_json"),
}


@dataclass(frozen=True, slots=True)
class MessageForm:
    """The form of messages."""

    def whole(self, call: MessageCall, model: str, completions: Sequence[Completion]) -> object:  # noqa: ARG002
        """Return the message of the only reply."""
        (completion,) = completions
        items = items_of(completion)
        content = [_block(item) for item in items if item.text or item.kind == "call"]
        return _message(model, content, _stop(completion, items), _usage(completion))

    def events(self, call: MessageCall, model: str) -> MessageEvents:  # noqa: ARG002
        """Return what makes the events of a stream."""
        return MessageEvents(model)


@dataclass(slots=True)
class MessageEvents:
    """The events of one stream.

    Attributes:
        model: The model that answers.
    """

    model: str
    _items: StreamedItems = field(default_factory=StreamedItems)
    _is_open: bool = False

    @property
    def last(self) -> None:
        """None: the message's own last event ends the stream."""
        return

    def opening(self) -> Iterator[NamedEvent]:
        """Yield nothing: the first event has the tokens of the prompt."""
        yield from ()

    def encode(self, piece: Piece) -> Iterator[NamedEvent]:
        """Yield the events of a piece; after the last one the message is complete."""
        if not self._is_open:
            self._is_open = True
            usage = {**_usage(piece), "output_tokens": 0}
            message = _message(self.model, [], (None, None), usage)
            yield _event("message_start", message=message)
        for change in self._items.feed(piece):
            yield from _changed(change)
        if piece.ending is not None:
            reason, stop = _stop(piece, self._items.items)
            delta = {"stop_reason": reason, "stop_sequence": stop}
            yield _event("message_delta", delta=delta, usage=_usage(piece))
            yield _event("message_stop")

    def error(self, status: int, sentence: str) -> NamedEvent:
        """Return the event of an error, which ends the stream."""
        return NamedEvent("error", anthropic_error(status, sentence))


def _message(
    model: str,
    content: Sequence[object],
    stop: tuple[str | None, str | None],
    usage: object,
) -> dict[str, object]:
    reason, sequence = stop
    return {
        "id": f"msg_{uuid.uuid4().hex}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": reason,
        "stop_sequence": sequence,
        "usage": usage,
    }


def _block(item: Item) -> dict[str, object]:
    if item.kind == "reasoning":
        return {"type": "thinking", "thinking": item.text, "signature": ""}
    if item.kind == "text":
        return {"type": "text", "text": item.text}
    return {
        "type": "tool_use",
        "id": item.call_id,
        "name": item.function,
        "input": _arguments(item.text),
    }


def _arguments(text: str) -> dict[str, object]:
    """Return the arguments of a call as an object; what is none, as models may write, in one.

    Such a text may also have numbers, levels or half a surrogate pair that no answer can have.
    """
    try:
        value = parse_json(text.encode()) if text.strip() else {}
    except (RequestError, UnicodeEncodeError):
        value = None
    return value if isinstance(value, dict) and is_writable(value) else {"arguments": text}


def _stop(reply: Completion | Piece, items: Sequence[Item]) -> tuple[str, str | None]:
    """Return why a reply ended, and the stop sequence that ended it."""
    if reply.ending == "length":
        return "max_tokens", None
    if any(item.kind == "call" for item in items):
        return "tool_use", None
    if reply.stop:
        return "stop_sequence", reply.stop
    return "end_turn", None


def _usage(reply: Completion | Piece) -> dict[str, object]:
    """Return the tokens: those of the prompt that were cached are not among the input's."""
    return {
        "input_tokens": reply.prompt_tokens - reply.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": reply.cached_tokens,
        "output_tokens": reply.completion_tokens,
    }


def _changed(change: ItemChange) -> Iterator[NamedEvent]:
    if isinstance(change, Opened):
        block = _block(change.item)
        yield _event("content_block_start", index=change.index, content_block=block)
    elif isinstance(change, Extended):
        sort, key = _DELTAS[change.kind]
        delta = {"type": sort, key: change.text}
        yield _event("content_block_delta", index=change.index, delta=delta)
    else:
        if change.item.kind == "reasoning":
            delta = {"type": "signature_delta", "signature": ""}
            yield _event("content_block_delta", index=change.index, delta=delta)
        yield _event("content_block_stop", index=change.index)


def _event(name: str, /, **values: object) -> NamedEvent:
    return NamedEvent(name, {"type": name, **values})
