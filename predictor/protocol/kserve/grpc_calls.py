"""gRPC calls on their way in: their messages are read within bounds, and parsed in our own words.

A unary handler of gRPC is called when the message is in memory, and a message that is no protobuf
is a traceback in the log. So every method is served as one that takes a stream of messages, of
which the first is read here: on the wire the two are the same. An unread call holds at most its
flow-control window.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from predictor.errors import (
    BodyTooLarge,
    Overloaded,
    PredictorError,
    RequestError,
    RequestTimeout,
)
from predictor.protocol.http.errors import error_headers, grpc_error
from predictor.protocol.http.turns import Turns

Calls = AsyncIterator[bytes]
"""The messages of one call as they come."""

Method = Callable[[Calls, Any], Awaitable[Any]]
"""A method of a service: takes the messages and gRPC's context, returns the response."""

_MOST_UNREAD = 256
"""Calls whose message has not arrived; an honest message comes right behind its call."""

_STEPS_AT_ONCE = 2
"""Messages whose read begins, or calls that are refused, in one iteration of the event loop. gRPC
works for about a millisecond on the former and a third on the latter, with the interpreter's lock
held, so that of a hundred calls in one iteration a health check would wait for all."""

_TURN_SECONDS = 1.0
"""Seconds of a turn after which a call whose message does not come gives way to one that waits."""


class MessageReader:
    """Reads messages, each within some time of its call's begin.

    A silent call must not keep others from being read. So one that has had its turn for some time
    gives way to those that wait, and of too many unread calls the oldest is refused.
    """

    def __init__(
        self,
        *,
        seconds: float,
        at_once: int,
        unread: int = _MOST_UNREAD,
        most_bytes: int | None = None,
    ) -> None:
        """Create it.

        Args:
            seconds: Seconds for a message to arrive after its call.
            at_once: Most messages that are read at one time; others wait for their turn.
            unread: Most calls that wait for their turn or are read.
            most_bytes: Most bytes of a message; None if gRPC's own limit is enough.
        """
        self._seconds = seconds
        self._turns = asyncio.Semaphore(at_once)
        self._steps = Turns(_STEPS_AT_ONCE)
        self._most_unread = unread
        self._most_bytes = most_bytes
        self._unread: dict[asyncio.Timeout, None] = {}  # in the order in which they came
        self._began: dict[asyncio.Timeout, float] = {}  # their turns, in order

    async def read(self, calls: Calls) -> bytes:
        """Return the one message of a unary call.

        Raises:
            RequestTimeout: It did not arrive in time.
            Overloaded: It did not arrive before too many other calls came.
            BodyTooLarge: It is too large.
            RequestError: There is none.
        """
        if len(self._unread) >= self._most_unread:
            self._cut_off(next(iter(self._unread)))
        limit = asyncio.timeout(self._seconds)
        try:
            async with limit:
                self._unread[limit] = None
                raw = await self._in_turn(calls, limit)
        except TimeoutError:
            raise self._late(limit) from None
        except StopAsyncIteration:
            raise RequestError("The call has no message.") from None
        finally:
            self._unread.pop(limit, None)
        if self._most_bytes is not None and len(raw) > self._most_bytes:
            raise BodyTooLarge(f"The message is larger than the limit of {self._most_bytes} bytes.")
        return raw

    async def _in_turn(self, calls: Calls, limit: asyncio.Timeout) -> bytes:
        await self._take_turn()
        try:
            await self._steps.take()
            self._began[limit] = asyncio.get_running_loop().time()
            message = await anext(calls)
            if isinstance(calls, AsyncGenerator):
                await calls.aclose()  # gRPC's is part of a cycle, and keeps its last message
            return message
        finally:
            self._began.pop(limit, None)
            self._turns.release()

    async def _take_turn(self) -> None:
        while True:
            try:
                async with asyncio.timeout(_TURN_SECONDS):
                    await self._turns.acquire()
                    return
            except TimeoutError:
                self._end_turn()

    def _end_turn(self) -> None:
        """Cut the call off that is being read for the longest time, if that is long."""
        oldest = next(iter(self._began), None)
        now = asyncio.get_running_loop().time()
        if oldest is not None and now - self._began[oldest] >= _TURN_SECONDS:
            self._cut_off(oldest)

    def _cut_off(self, oldest: asyncio.Timeout) -> None:
        self._unread.pop(oldest, None)
        self._began.pop(oldest, None)
        if not oldest.expired():
            oldest.reschedule(asyncio.get_running_loop().time())

    def _late(self, limit: asyncio.Timeout) -> PredictorError:
        if limit not in self._unread:
            sentence = "The message did not arrive before those of other calls; try again later."
            return Overloaded(sentence, retry_after=1)
        return RequestTimeout(f"The message did not arrive within {self._seconds:g} seconds.")


def parse(message_type: Any, raw: bytes) -> Any:
    """Return a message.

    Raises:
        RequestError: The bytes are no such message.
    """
    try:
        return message_type.FromString(raw)
    except DecodeError:
        name = message_type.DESCRIPTOR.name
        raise RequestError(f"The message is not a valid protobuf of {name}.") from None


def answering(method: Method) -> Method:
    """Return a method that answers exceptions with their status, sentence and headers."""
    steps = Turns(_STEPS_AT_ONCE)

    @functools.wraps(method)
    async def answer(calls: Calls, context: Any) -> Any:
        try:
            return await method(calls, context)
        except grpc.aio.AbortError:  # it is answered
            raise
        except Exception as error:
            code, sentence = grpc_error(error)
            headers = error_headers(error) or {}
            added = ((name.lower(), value) for name, value in headers.items())
            context.set_trailing_metadata((*(context.trailing_metadata() or ()), *added))
        await steps.take()
        return await context.abort(code, sentence)  # raises

    return answer


def with_message(method: Method, message_type: Any, reader: MessageReader) -> Method:
    """Return a method that reads and parses its message first.

    Args:
        method: Takes the parsed message and the context.
        message_type: The protobuf of the message.
        reader: Reads it.
    """

    @functools.wraps(method)
    async def read_first(calls: Calls, context: Any) -> Any:
        return await method(parse(message_type, await reader.read(aiter(calls))), context)

    return answering(read_first)


def serialized(message: Any) -> bytes:
    """Return a response as bytes."""
    data: bytes = message.SerializeToString()
    return data


def unary(method: Method, serializer: Callable[[Any], bytes] | None = serialized) -> Any:
    """Return gRPC's handler of a method with one response; without a serializer, it is bytes."""
    return grpc.stream_unary_rpc_method_handler(method, response_serializer=serializer)
