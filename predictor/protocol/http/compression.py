"""Bodies that come compressed, inflated piece by piece within the limits of a body.

An inflated body counts as one that came so: for the largest body, and for the bytes in flight.
"""

from __future__ import annotations

import asyncio
import zlib
from collections import deque

from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope

from predictor.errors import RequestError
from predictor.sentences import quote

_WINDOWS = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
"""The codings of RFC 9110, section 8.4.1, and zlib's number for each."""

_PIECE = 128 * 1024
"""Bytes that are inflated at one go, which takes less than a millisecond."""


class Inflated:
    """Receives the messages of a request whose body is compressed, with the body inflated."""

    def __init__(self, receive: Receive, coding: str) -> None:
        """Create it.

        Args:
            receive: Receives the messages as they come.
            coding: One of the codings that are supported.
        """
        self._receive = receive
        self._inflater = zlib.decompressobj(_WINDOWS[coding])
        self._left = b""
        self._has_more = True
        self._pending: deque[Message] = deque()

    async def __call__(self) -> Message:
        """Return the next message.

        Raises:
            RequestError: The body is not of its coding, or goes on after its end.
        """
        if not self._left and self._has_more:
            message = await self._receive()
            if message["type"] != "http.request":
                return message
            self._left, self._has_more = message.get("body", b""), message.get("more_body", False)
        elif not self._left:
            return await self._receive()  # the body is complete
        else:
            await asyncio.sleep(0)  # others go on
        return self._message(self._inflate())

    def _inflate(self) -> bytes:
        if self._left and self._inflater.eof:
            raise _beyond_its_end()
        try:
            piece = self._inflater.decompress(self._left, _PIECE)
        except zlib.error:
            raise RequestError("The body is not of its Content-Encoding.") from None
        if self._inflater.unused_data:
            raise _beyond_its_end()
        self._left = self._inflater.unconsumed_tail
        return piece

    def _message(self, piece: bytes) -> Message:
        is_over = not self._left and not self._has_more
        if is_over and not self._inflater.eof:
            raise RequestError("The compressed body is cut short.")
        return {"type": "http.request", "body": piece, "more_body": not is_over}


def _beyond_its_end() -> RequestError:
    return RequestError("The compressed body goes on after its end; send it as one member.")


def inflated(scope: Scope, receive: Receive) -> tuple[Scope, Receive]:
    """Return the scope and the messages of a request as if its body were not compressed.

    Raises:
        HTTPException: 415, the coding is not supported.
    """
    headers = [(name, value) for name, value in scope["headers"] if name != b"content-encoding"]
    given = [value for name, value in scope["headers"] if name == b"content-encoding"]
    codings = b",".join(given).decode("latin-1").lower().split(",")
    codings = [coding.strip() for coding in codings if coding.strip() not in ("", "identity")]
    if not codings:
        return scope, receive
    if len(codings) > 1 or codings[0] not in _WINDOWS:
        raise HTTPException(
            415,
            f"Content-Encoding {quote(', '.join(codings))} is not supported; gzip and deflate are.",
            headers={"Accept-Encoding": "gzip, deflate"},
        )
    return {**scope, "headers": headers}, Inflated(receive, codings[0])
