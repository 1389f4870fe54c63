"""Replies as server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html).

Whether a request is right is known before the first byte is sent, so what is wrong with it is an
ordinary error with its status; what goes wrong later is an event with the same sentence.
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
from predictor.tasks.request import Piece, Stream

Encode = Callable[[Piece], Iterable[object]]
"""Makes JSON values, an event for each, of a piece."""


_SECONDS_TO_SAY_SO = 5.0
"""After the deadline, for the event that tells of it; then a client that does not read is left."""


def error_event(_status: int, sentence: str) -> object:
    """Returns an error as V1, V2 and the generate extension say it."""
    return {"error": sentence}


def event_stream(
    count: ExitStack,
    stream: Stream,
    encode: Encode,
    *,
    encode_error: Callable[[int, str], object] = error_event,
    last: str | None = None,
) -> StreamingResponse:
    """Returns the response that sends events until the pieces end.

    Where the client hangs up before, Starlette cancels it (`StreamingResponse.__call__`).

    Args:
        count: Is closed when the stream ends, with what ended it.
        stream: The pieces; closed whatever happens.
        encode: Makes events of a piece.
        encode_error: Makes an event of an HTTP status and a sentence.
        last: Data of an event after the last one, where nothing went wrong.
    """
    generator: Any = stream.pieces

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
    """Is given up at its deadline even where the client has stopped to read."""

    def __init__(self, events: AsyncIterator[str], until: float, **options: Any) -> None:
        super().__init__(events, **options)
        self._until = until

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the events; raises `TimeoutError`, and uvicorn closes the connection."""
        async with asyncio.timeout_at(self._until):
            await super().__call__(scope, receive, send)


def _event(data: str) -> str:
    return f"data: {data}\n\n"
