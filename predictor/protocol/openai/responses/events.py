"""The events of a streamed response, in OpenAI's order.

The source is ``openai.types.responses.response_stream_event`` and what the client's stream helper
accepts (``openai.lib.streaming.responses``): an item is added, then its part, then the part's text
in deltas; then text, part and item are done, and at last the response is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from predictor.protocol.http.sse import NamedEvent
from predictor.protocol.openai.reply_items import (
    Closed,
    Extended,
    Item,
    ItemChange,
    Kind,
    Opened,
    StreamedItems,
)
from predictor.protocol.openai.responses.output import (
    Envelope,
    Status,
    delta_logprobs,
    encode,
    item_document,
    new_id,
    part_document,
    status_of,
    usage_of,
)
from predictor.protocol.openai.responses.request import PLAIN_ECHO, ResponseCall
from predictor.tasks.answers import Completion, Piece

_NAMES = {
    "reasoning": "response.reasoning_text",
    "text": "response.output_text",
    "call": "response.function_call_arguments",
}


@dataclass(frozen=True, slots=True)
class ResponseForm:
    """The form of responses."""

    def whole(self, call: ResponseCall, model: str, completions: Sequence[Completion]) -> object:
        """Return the response for the only reply."""
        (completion,) = completions
        return encode(call, model, completion)

    def events(self, call: ResponseCall, model: str) -> ResponseEvents:
        """Return what makes the events of a stream."""
        return ResponseEvents(Envelope.new(call, model))


@dataclass(slots=True)
class ResponseEvents:
    """The events of one stream.

    Attributes:
        envelope: The keys of the response.
    """

    envelope: Envelope
    _items: StreamedItems = field(default_factory=StreamedItems)
    _ids: list[str] = field(default_factory=list)
    _output: list[dict[str, object]] = field(default_factory=list)
    _number: int = 0

    @property
    def last(self) -> None:
        """None: the response's own last event ends the stream."""
        return

    def opening(self) -> Iterator[NamedEvent]:
        """Yield the events before the reply begins."""
        for name in ("response.created", "response.in_progress"):
            yield self._event(name, response=self.envelope.document("in_progress"))

    def encode(self, piece: Piece) -> Iterator[NamedEvent]:
        """Yield the events of a piece; after the last one the response is complete."""
        changes = list(self._items.feed(piece))
        for change in changes:
            is_cut = piece.ending == "length" and change is changes[-1]
            yield from self._changed(change, "incomplete" if is_cut else "completed")
        if piece.ending is not None:
            status = status_of(piece.ending)
            document = self.envelope.document(status, self._output, usage=usage_of(piece))
            yield self._event(f"response.{status}", response=document)

    def error(self, status: int, sentence: str) -> NamedEvent:
        """Return the event of an error, which ends the stream."""
        code = "rate_limit_exceeded" if status == 429 else "server_error"
        error = {"code": code, "message": sentence}
        envelope = replace(self.envelope, echo=PLAIN_ECHO)  # whatever failed, this can be written
        document = envelope.document("failed", self._output, error=error)
        return self._event("response.failed", response=document)

    def _changed(self, change: ItemChange, status: Status) -> Iterator[NamedEvent]:
        if isinstance(change, Opened):
            yield from self._opened(change)
        elif isinstance(change, Extended):
            more = {"logprobs": delta_logprobs(change.tokens)} if change.kind == "text" else {}
            name = f"{_NAMES[change.kind]}.delta"
            where = self._place(change.index, change.kind)
            yield self._event(name, **where, delta=change.text, **more)
        else:
            yield from self._closed(change, status)

    def _opened(self, change: Opened) -> Iterator[NamedEvent]:
        index, item = change.index, change.item
        self._ids.append(new_id(item.kind))
        document = item_document(item, self._ids[index], "in_progress")
        yield self._event("response.output_item.added", output_index=index, item=document)
        if item.kind != "call":
            where = self._place(index, item.kind)
            yield self._event("response.content_part.added", **where, part=part_document(item))

    def _closed(self, change: Closed, status: Status) -> Iterator[NamedEvent]:
        index, item = change.index, change.item
        where = self._place(index, item.kind)
        yield self._event(f"{_NAMES[item.kind]}.done", **where, **_whole(item))
        if item.kind != "call":
            yield self._event("response.content_part.done", **where, part=part_document(item))
        document = item_document(item, self._ids[index], status)
        self._output.append(document)
        yield self._event("response.output_item.done", output_index=index, item=document)

    def _place(self, index: int, kind: Kind) -> dict[str, object]:
        part = {} if kind == "call" else {"content_index": 0}
        return {"item_id": self._ids[index], "output_index": index, **part}

    def _event(self, name: str, /, **values: object) -> NamedEvent:
        number, self._number = self._number, self._number + 1
        return NamedEvent(name, {"type": name, "sequence_number": number, **values})


def _whole(item: Item) -> dict[str, object]:
    if item.kind == "call":
        return {"name": item.function, "arguments": item.text}
    if item.kind == "reasoning":
        return {"text": item.text}
    return {"text": item.text, "logprobs": delta_logprobs(item.tokens)}
