"""The HTTP protocol with bounds: connections, headers, pipelining, and the time of each part.

uvicorn's own, with httptools, has none of them. The body's size and the number of requests are the
middleware's to bound (`predictor.protocol.http.middleware`).
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from functools import partial
from types import SimpleNamespace
from typing import Any

import httptools
from starlette.types import ASGIApp, Receive, Scope, Send

from predictor.errors import (
    HeadersTooLarge,
    PredictorError,
    RequestError,
    RequestTimeout,
    UriTooLong,
)
from predictor.protocol.http.connections import ConnectionLimits, Connections
from predictor.protocol.http.gate import WITHOUT_BODY
from predictor.protocol.http.lingering_protocol import LingeringProtocol
from predictor.protocol.http.tls_protocol import TlsProtocol
from predictor.protocol.http.turns import Turns

_READ_BYTES = 64 * 1024
"""Bytes of one read (asyncio's default is four times as many). What a thousand connections send in
one turn of the event loop is held until their requests are refused."""

_MOST_PIPELINED = 8
"""Requests of one connection that wait for the one before. No known client sends even two."""

_FRAMING = 8
"""Bytes of framing for each byte of a chunked body; chunks of one byte need five."""


def guarded_protocol(limits: ConnectionLimits, context: ssl.SSLContext | None = None) -> Any:
    """Return the factory of protocols for ``uvicorn.Config.http``; all share the limits.

    Args:
        limits: The bounds.
        context: Serves TLS; None serves without it.
    """
    connections, turns = Connections(limits.connections), Turns()
    plain = partial(GuardedProtocol, limits=limits, connections=connections, turns=turns)
    if context is None:
        return plain
    return lambda **options: TlsProtocol(plain(**options), context, limits, connections)


class GuardedProtocol(LingeringProtocol):
    """One connection within its bounds."""

    app: ASGIApp  # uvicorn runs it for each request

    def __init__(
        self,
        *args: Any,
        limits: ConnectionLimits,
        connections: Connections,
        turns: Turns,
        **options: Any,
    ) -> None:
        """Create the protocol of a connection that is not made yet; uvicorn calls this."""
        super().__init__(*args, **options)
        self._limits = limits
        self._others = connections
        self._turns = turns
        self._app, self.app = self.app, self._begin
        self._refusal: PredictorError | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._in_head = False
        self._head_count = self._head_bytes = 0
        self._raw_bytes = self._body_bytes = 0
        self._body_began = 0.0

    # Of the transport

    def connection_made(self, transport: Any) -> None:
        """Admit the connection, and give its client some time to send headers."""
        if not self._others.add(self):
            self.transport = transport
            transport.abort()
            return
        super().connection_made(transport)
        with contextlib.suppress(AttributeError):  # uvloop's is fixed
            transport.max_size = _READ_BYTES
        self._others.wait(self, transport.abort)
        self._set_timer(self._limits.timeout, self._head_late)

    def connection_lost(self, exc: Exception | None) -> None:
        """Make room for another connection."""
        self._others.remove(self)
        self._read_on()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse the data; refuse what is over a bound."""
        if self._only_drops:
            self._drop(len(data))
            return
        self._raw_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            refusal, self._refusal = self._refusal, None
            self._refuse(refusal or RequestError("The request is not valid HTTP/1.1."))
        else:
            self._check_arrived()

    def pause_writing(self) -> None:
        """Give a client that has stopped reading some time: its answer is held in memory."""
        super().pause_writing()
        self._others.wait(self, self.transport.abort)
        self._stalled = self.loop.call_later(self._limits.timeout, self.transport.abort)

    def resume_writing(self) -> None:
        """Note that the client reads on."""
        self._read_on()
        super().resume_writing()
        if self.cycle is not None and not self.cycle.response_complete and not self._lingers:
            self._others.work(self)

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection that is not used, even if its client does not read."""
        super().timeout_keep_alive_handler()
        self._set_timer(self._limits.timeout, self.transport.abort)

    # Of the parser and the answer

    def on_message_begin(self) -> None:
        """Begin the headers of a request."""
        self._unset_keepalive_if_required()
        if len(self.pipeline) >= _MOST_PIPELINED:
            self._raise(RequestError("Too many requests are pipelined."))
        super().on_message_begin()
        self._in_head = True
        self._head_count = self._head_bytes = self._raw_bytes = 0

    def on_url(self, url: bytes) -> None:
        """Take a part of the request's target."""
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; trailers are counted and dropped."""
        self._head_count += 1
        self._count_head(len(name) + len(value) + len(b": \r\n"))
        most = self._limits.header_count
        if self._head_count > most:
            self._raise(HeadersTooLarge(f"A request has at most {most} headers."))
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Begin the answer: the connection is not idle any more."""
        self._in_head = False
        self._raw_bytes = self._body_bytes = 0
        if self._stalled is None:
            self._others.work(self)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End the request, unless the parser leaves its body out, because of an upgrade."""
        if not (self.parser.should_upgrade() and self._framing()):
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """Note that the connection waits for its client again."""
        super().on_response_complete()
        if self.cycle.response_complete:
            self._others.wait(self, self.transport.abort)

    async def _begin(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request in its turn, unless its client has hung up meanwhile."""
        if scope["method"] not in WITHOUT_BODY:
            await self._turns.take()
        if not (self.cycle.scope is scope and self.cycle.disconnected):
            await self._app(scope, receive, send)

    def _unsupported_upgrade_warning(self) -> None:
        """Log nothing: any client may ask for an upgrade."""

    def _framing(self) -> list[bytes]:
        """Return the headers that say how the body is framed; none if there is no body."""
        names = (b"content-length", b"transfer-encoding")
        return [b"%s: %s" % header for header in self.headers if header[0] in names]

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Answer in HTTP/1.1, for no other protocol is offered, and close.

        The parser has stopped at the end of the headers. Another one takes the body.
        """
        if not self._in_body:
            self._answer_and_close()
            return
        callbacks = SimpleNamespace(on_body=self.on_body, on_message_complete=self._end_body)
        self.parser = httptools.HttpRequestParser(callbacks)
        head = (b"POST / HTTP/1.1", b"connection: close", *self._framing(), b"", b"")
        data = b"\r\n".join(head) + rest
        self._raw_bytes -= len(data)
        self.data_received(data)

    def _end_body(self) -> None:
        self.on_message_complete()
        self._answer_and_close()

    # The bounds

    def _check_arrived(self) -> None:
        """Check what has arrived of a request, and set the time for the rest."""
        if self._in_head:
            if self._raw_bytes > self._limits.header_bytes:
                self._refuse(self._too_large())
            elif self._timer is None:
                self._set_timer(self._limits.timeout, self._head_late)
        elif self._in_body:
            framing = self._raw_bytes - (1 + _FRAMING) * self._body_bytes
            if framing > self._limits.header_bytes + _READ_BYTES:
                self._refuse(RequestError("The chunks of the body are too small."))
            elif self._timer is None:
                self._body_began = self.loop.time()
                self._set_timer(self._limits.timeout, self._body_late)

    def _count_head(self, count: int) -> None:
        self._head_bytes += count
        if self._head_bytes > self._limits.header_bytes:
            self._raise(self._too_large())

    def _too_large(self) -> PredictorError:
        most = self._limits.header_bytes
        if self._head_count or self._head_bytes <= most:
            return HeadersTooLarge(f"The headers are larger than the limit of {most} bytes.")
        return UriTooLong(f"The request line is longer than the limit of {most} bytes.")

    def _raise(self, error: PredictorError) -> None:
        """Stop the parser, which raises an error of its own."""
        self._refusal = error
        raise error

    def _head_late(self) -> None:
        if self._in_head:
            seconds = self._limits.timeout
            self._refuse(RequestTimeout(f"The headers did not arrive within {seconds:g} seconds."))
        else:
            self.transport.abort()  # nothing was sent

    def _body_late(self) -> None:
        rate = self._limits.body_rate
        if self.flow.read_paused:  # by the server, which has yet to take what is there
            self._body_began = self.loop.time()
        allowed = self._limits.timeout + self._body_bytes / rate
        left = self._body_began + allowed - self.loop.time()
        if left > 0:
            self._set_timer(left, self._body_late)
        else:
            self._refuse(RequestTimeout(f"The body arrived at less than {rate} bytes per second."))

    def _linger(self) -> None:
        super()._linger()
        self._others.wait(self, self.transport.abort)

    def _read_on(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
