"""Replies as server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html).

A request is checked before the first byte is sent, so a mistake in it is an ordinary error with its
status. A later error is an event with the same sentence.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import ExitStack, aclosing
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from predictor.protocol.http.errors import http_error
from predictor.tasks.answers import Piece, Stream

Encode = Callable[[Piece], Iterable[object]]
"""A function from a piece to JSON values, one for each event."""

_SECONDS_TO_SAY_SO = 5.0
"""Seconds after the deadline for its error event; then the connection is closed."""


def error_event(_status: int, sentence: str) -> object:
    """Return an error in the form of V1, V2 and the generate extension."""
    return {"error": sentence}


def event_stream(
    count: ExitStack,
    stream: Stream,
    encode: Encode,
    *,
    encode_error: Callable[[int, str], object] = error_event,
    last: str | None = None,
) -> StreamingResponse:
    """Return the response that sends events until the pieces end.

    If the client hangs up before, Starlette cancels it (`StreamingResponse.__call__`).

    Args:
        count: Closed when the stream ends, with the exception that ended it.
        stream: The pieces; always closed at the end.
        encode: Returns the events of a piece.
        encode_error: Returns the event for an HTTP status and a sentence.
        last: Data of one more event at the end, unless there was an error.
    """
    generator = stream.pieces

    async def events() -> AsyncIterator[str]:
        try:
            with count:
                async with aclosing(generator):
                    async for piece in generator:
                        for value in encode(piece):
                            yield _event(json.dumps(value, ensure_ascii=False))
            if last is not None:
                yield _event(last)
        except Exception as error:
            yield _event(json.dumps(encode_error(*http_error(error))))

    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    until = stream.deadline + _SECONDS_TO_SAY_SO
    return _Events(events(), until, media_type="text/event-stream", headers=headers)


class _Events(StreamingResponse):
    """A response that ends at its deadline even if the client has stopped reading."""

    def __init__(self, events: AsyncIterator[str], until: float, **options: Any) -> None:
        super().__init__(events, **options)
        self._until = until

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events; raise `TimeoutError`, at which uvicorn closes the connection."""
        async with asyncio.timeout_at(self._until):
            await super().__call__(scope, receive, send)


def _event(data: str) -> str:
    return f"data: {data}\n\n"
