"""gRPC calls on their way in: admitted before their message is read, and parsed in our own words.

A unary handler of gRPC is called when the message is in memory, and a message that is no protobuf
is a traceback in the log. So every method is served as one that takes a stream of messages, of
which the first is read here: on the wire the two are the same. An unread call holds at most its
flow-control window.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from predictor.errors import RequestError, RequestTimeout
from predictor.protocol.http.errors import error_headers, grpc_error

Calls = AsyncIterator[bytes]
"""The messages of one call as they come."""

Method = Callable[[Calls, Any], Awaitable[Any]]
"""A method of a service: takes the messages and gRPC's context, returns the response."""


class MessageReader:
    """Reads messages, some at a time, each within some time."""

    def __init__(self, *, at_once: int, seconds: float) -> None:
        """Create it.

        Args:
            at_once: Most messages that are read at one time; others wait for their turn.
            seconds: Seconds for a message to arrive, after its turn has come.
        """
        self._turns = asyncio.Semaphore(at_once)
        self._seconds = seconds

    async def read(self, calls: Calls) -> bytes:
        """Return the one message of a unary call.

        Raises:
            RequestTimeout: It did not arrive in time.
            RequestError: There is none.
        """
        async with self._turns:
            try:
                async with asyncio.timeout(self._seconds):
                    return await anext(calls)
            except TimeoutError:
                raise RequestTimeout(
                    f"The message did not arrive within {self._seconds:g} seconds."
                ) from None
            except StopAsyncIteration:
                raise RequestError("The call has no message.") from None


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

    @functools.wraps(method)
    async def answer(calls: Calls, context: Any) -> Any:
        try:
            return await method(calls, context)
        except Exception as error:
            code, sentence = grpc_error(error)
            headers = error_headers(error) or {}
            context.set_trailing_metadata(tuple((name.lower(), v) for name, v in headers.items()))
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


def unary(method: Method) -> Any:
    """Return gRPC's handler of a method with one response."""
    return grpc.stream_unary_rpc_method_handler(method, response_serializer=serialized)
