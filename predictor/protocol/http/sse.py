"""Replies as server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html).

A request is checked before the first byte is sent, so a mistake in it is an ordinary error with its
status. A later error is an event with the same sentence. While nothing is said, comments keep the
connection alive.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import ExitStack, aclosing
from dataclasses import dataclass

import orjson
from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from predictor.protocol.http.errors import http_error
from predictor.protocol.http.off_loop import off_loop
from predictor.protocol.http.request_record import note_failure
from predictor.tasks.answers import Piece, Stream

Encode = Callable[[Piece], Iterable[object]]
"""A function from a piece to JSON values or `NamedEvent`s, one for each event."""

_SECONDS_TO_SAY_SO = 5.0
"""Seconds after the deadline for its error event; then the connection is closed."""

_SECONDS_OF_SILENCE = 15.0
"""Seconds after which a comment is sent. Gateways cut connections that are idle for 60 s, some for
30 s, and the prefill of an offloaded model takes longer. The HTML standard suggests 15 s."""

_TOKEN_SIZE = 256
"""Bytes of JSON of a token with its log probability, about."""

_COMMENT = b": ping\n\n"


@dataclass(frozen=True, slots=True)
class NamedEvent:
    """An event that has a name.

    Attributes:
        name: Its name.
        data: A JSON value.
    """

    name: str
    data: object


def error_event(_status: int, sentence: str) -> object:
    """Return an error in the form of V1, V2 and the generate extension."""
    return {"error": sentence}


def event_stream(
    count: ExitStack,
    stream: Stream,
    encode: Encode,
    *,
    opening: Iterable[object] = (),
    encode_error: Callable[[int, str], object] = error_event,
    last: str | None = None,
) -> StreamingResponse:
    """Return the response that sends events until the pieces end.

    If the client hangs up before, Starlette cancels it (`StreamingResponse.__call__`).

    Args:
        count: Closed when the stream ends, with the exception that ended it.
        stream: The pieces; always closed at the end.
        encode: Returns the events of a piece.
        opening: The events before the first piece.
        encode_error: Returns the event for an HTTP status and a sentence.
        last: Data of one more event at the end, unless there was an error.
    """
    generator = stream.pieces

    async def events() -> AsyncGenerator[bytes, None]:
        try:
            with count:
                async with aclosing(generator):
                    for value in opening:
                        yield _event(value)
                    async for piece in generator:
                        for data in await _encoded(piece, encode):
                            yield data
            if last is not None:
                yield _data(last.encode())
        except Exception as error:
            status, sentence = http_error(error)
            note_failure(status)
            yield _event(encode_error(status, sentence))

    return _Events(events(), count, stream)


class _Events(StreamingResponse):
    """A response that ends at its deadline even if the client has stopped reading."""

    def __init__(
        self, events: AsyncGenerator[bytes, None], count: ExitStack, stream: Stream
    ) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._events = events
        self._count = count
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events; raise `TimeoutError`, at which uvicorn closes the connection."""
        sender = _Sender(send)
        try:
            async with asyncio.timeout_at(self._stream.deadline + _SECONDS_TO_SAY_SO):
                async with sender.commenting():
                    await super().__call__(scope, receive, sender.send)
        finally:
            await self._close()

    async def _close(self) -> None:
        """Close all, also what was not begun: then no generator would do it."""
        try:
            await self._events.aclose()
        finally:
            self._count.__exit__(asyncio.CancelledError, asyncio.CancelledError(), None)
            await self._stream.close()


class _Sender:
    """Sends the messages of a response, and comments while there are none.

    A message goes out in pieces that wait for the client (`predictor.protocol.http.middleware`), so
    a message is sent under a lock: no comment may be between two pieces.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._sent = asyncio.get_running_loop().time()
        self._is_open = False
        self._lock = asyncio.Lock()

    async def send(self, message: Message) -> None:
        async with self._lock:
            is_start = message["type"] == "http.response.start"
            self._is_open = is_start or message.get("more_body", False)
            await self._pass_on(message)

    async def _pass_on(self, message: Message) -> None:
        await self._send(message)
        self._sent = asyncio.get_running_loop().time()

    @contextlib.asynccontextmanager
    async def commenting(self) -> AsyncGenerator[None, None]:
        task = asyncio.create_task(self._comment())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _comment(self) -> None:
        body = {"type": "http.response.body", "body": _COMMENT, "more_body": True}
        while True:
            await asyncio.sleep(max(0.0, self._silent_in()))
            async with self._lock:
                if not self._is_open:
                    return
                if self._silent_in() <= 0:
                    await self._pass_on(body)

    def _silent_in(self) -> float:
        """Return the seconds until a comment is due."""
        return self._sent + _SECONDS_OF_SILENCE - asyncio.get_running_loop().time()


async def _encoded(piece: Piece, encode: Encode) -> Iterable[bytes]:
    """Return the events of a piece. The tokens of a long prompt take a while."""
    if piece.prompt is None:
        return map(_event, encode(piece))
    size = _TOKEN_SIZE * len(piece.prompt)
    return await off_loop(size, lambda: list(map(_event, encode(piece))))


def _event(value: object) -> bytes:
    if isinstance(value, NamedEvent):
        return b"event: %b\n%b" % (value.name.encode(), _data(orjson.dumps(value.data)))
    return _data(orjson.dumps(value))


def _data(data: bytes) -> bytes:
    return b"data: %b\n\n" % data
