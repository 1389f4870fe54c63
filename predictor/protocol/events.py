"""Replies as server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html).

Whether a request is right is known before the first byte is sent, so what is wrong with it is an
ordinary error with its status; what goes wrong later is an event with the same sentence.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import ExitStack, aclosing
from typing import Any

from starlette.responses import StreamingResponse

from predictor.protocol.errors import http_error
from predictor.tasks.request import Piece

Encode = Callable[[Piece], Iterable[object]]
"""Makes JSON values, an event for each, of a piece."""


def error_event(_status: int, sentence: str) -> object:
    """Returns an error as V1, V2 and the generate extension say it."""
    return {"error": sentence}


def event_stream(
    count: ExitStack,
    pieces: AsyncIterator[Piece],
    encode: Encode,
    *,
    encode_error: Callable[[int, str], object] = error_event,
    last: str | None = None,
) -> StreamingResponse:
    """Returns the response that sends events until the pieces end.

    Where the client hangs up before, Starlette cancels it (`StreamingResponse.__call__`).

    Args:
        count: Is closed when the stream ends, with what ended it.
        pieces: The pieces; closed whatever happens.
        encode: Makes events of a piece.
        encode_error: Makes an event of an HTTP status and a sentence.
        last: Data of an event after the last one, where nothing went wrong.
    """
    generator: Any = pieces

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
    return StreamingResponse(events(), media_type="text/event-stream", headers=headers)


def _event(data: str) -> str:
    return f"data: {data}\n\n"
