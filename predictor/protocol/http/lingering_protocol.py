"""uvicorn's HTTP protocol, closing without a lost status.

uvicorn closes a connection whose request it has not read to the end, at which TCP sends a reset
that destroys the answer on its way. RFC 9112, section 9.6: stop to write, drop what comes until the
client closes, and then close. Both bytes and time of that are bounded here.

Written against uvicorn 0.54 (``uvicorn/protocols/http/httptools_impl.py``); its protocol and its
cycle (one request and its answer) are used as they are. Only this module and `guarded_protocol`
name their parts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from starlette.responses import Response

from predictor.private.versions import Interface, Library, check, uncalled

UVICORN = Library("uvicorn", "0.54", "0.55")

_PROTOCOL = "uvicorn.protocols.http.httptools_impl"

INTERFACES = (
    Interface(_PROTOCOL, "HttpToolsProtocol.connection_made", ("transport",)),
    Interface(_PROTOCOL, "HttpToolsProtocol.connection_lost", ("exc",)),
    Interface(_PROTOCOL, "HttpToolsProtocol.on_url", ("url",)),
    Interface(_PROTOCOL, "HttpToolsProtocol.on_header", ("name", "value")),
    Interface(_PROTOCOL, "HttpToolsProtocol.on_body", ("body",)),
    *uncalled(
        _PROTOCOL,
        "on_message_begin",
        "on_headers_complete",
        "on_message_complete",
        "on_response_complete",
        "pause_writing",
        "resume_writing",
        "shutdown",
        "timeout_keep_alive_handler",
        "_unset_keepalive_if_required",
        "_unsupported_upgrade_warning",
        of="HttpToolsProtocol",
    ),
    *uncalled(
        _PROTOCOL,
        "app",
        "cycle",
        "expect_100_continue",
        "flow",
        "headers",
        "loop",
        "parser",
        "pipeline",
        "scope",
        "server_state",
        "transport",
        of="HttpToolsProtocol",
    ),
    *uncalled(
        _PROTOCOL,
        "disconnected",
        "keep_alive",
        "message_event",
        "response_complete",
        "response_started",
        "scope",
        "transport",
        of="RequestResponseCycle",
    ),
    *uncalled(_PROTOCOL, "STATUS_LINE"),
    *uncalled("uvicorn.server", "default_headers", "total_requests", of="ServerState"),
    *uncalled(
        "uvicorn.protocols.http.flow_control", "read_paused", "resume_reading", of="FlowControl"
    ),
)

check(UVICORN, *INTERFACES)

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from predictor.errors import PredictorError
from predictor.protocol.http.error_forms import error_response

_REST_BYTES = 16 * 1024**2
"""Bytes that are dropped after an early answer. Most clients send the whole body before they read
the status; dropping this much takes some 10 ms of a processor."""

_SMALL_BODY = 64 * 1024
"""Bytes of a body whose rest is awaited, so that its connection can be kept after an early answer.
Many clients send even a small body in a packet of its own."""

_REST_SECONDS = 10.0
"""Seconds without a byte of the rest, or of an answer that is being read, before it is closed."""

_MOST_WAITS = 6
"""Such times that a client may take in all. It does no harm: of too many connections, those that
wait for their clients are closed first."""


class LingeringProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *args: Any, **options: Any) -> None:
        """Create the protocol of a connection that is not made yet; uvicorn calls this."""
        super().__init__(*args, **options)
        self._timer: asyncio.TimerHandle | None = None
        self._in_body = False
        self._keep_alive = True
        self._only_drops = self._lingers = False
        self._dropped = 0

    def on_headers_complete(self) -> None:
        """Begin the request's answer and the arrival of its body."""
        self._set_timer(None)
        super().on_headers_complete()
        self._in_body = True
        self._keep_alive = self.cycle.keep_alive
        if self.expect_100_continue or not self._has_small_body():
            # If it is answered before all of it has arrived, it is its connection's last request.
            # A client that awaits a 100 may send no body then, only its next request.
            self.cycle.keep_alive = False
        self.cycle.transport = _AnswerTransport(self.transport, self._linger)

    def on_message_complete(self) -> None:
        """End the request; from now on its connection may be kept for another."""
        self._in_body = False
        self._set_timer(None)
        if not self.cycle.response_started:
            self.cycle.keep_alive = self._keep_alive
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Go on with the next request, unless the connection is about to be closed."""
        if self._lingers:
            self.server_state.total_requests += 1
        else:
            super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._set_timer(None)
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """Close, after the answer that is being given."""
        self._keep_alive = False
        if self._lingers:
            self.transport.close()
        else:
            super().shutdown()

    def _has_small_body(self) -> bool:
        length = dict(self.headers).get(b"content-length")
        return length is not None and int(length) <= _SMALL_BODY

    def _refuse(self, error: PredictorError) -> None:
        """Answer a request whose arrival is at fault, and close."""
        cycle, is_receiving = self.cycle, self._in_body
        if is_receiving and cycle.response_complete:
            self.transport.abort()
            return
        if cycle is not None and not cycle.response_complete:
            if not is_receiving:  # it is an earlier request
                self._answer_and_close()
                return
            cycle.disconnected = True
            cycle.message_event.set()
            if self.pipeline or cycle.response_started:
                self.transport.abort()
                return
        path = self.scope.get("path", "") if is_receiving else ""  # not known yet
        self._write(error_response(path, error))
        self._linger()

    def _answer_and_close(self) -> None:
        """Drop what comes, and close after the answers that are being given."""
        self._only_drops = True
        self._keep_alive = self.cycle.keep_alive = False
        self._set_timer(None)

    def _write(self, response: Response) -> None:
        headers = [*self.server_state.default_headers, *response.raw_headers]
        lines = [name + b": " + value for name, value in (*headers, (b"connection", b"close"))]
        head = STATUS_LINE[response.status_code] + b"\r\n".join(lines) + b"\r\n\r\n"
        self.transport.write(head + bytes(response.body))

    def _linger(self) -> None:
        """Write no more, drop a bounded rest, and then close."""
        if self._lingers or self.transport.is_closing():
            return
        self._lingers = self._only_drops = True
        try:
            if self.transport.can_write_eof():
                self.transport.write_eof()
        except OSError:  # the client has reset it
            self.transport.abort()
            return
        self.flow.resume_reading()
        self._await_close(_MOST_WAITS)

    def _await_close(self, waits: int) -> None:
        late = partial(self._linger_late, waits - 1, self._progress())
        self._set_timer(_REST_SECONDS, late)

    def _linger_late(self, waits: int, progress: int) -> None:
        if waits and self._progress() > progress:
            self._await_close(waits)
        else:
            self.transport.abort()

    def _progress(self) -> int:
        """Return a number that grows with what the client sends, and with what it reads."""
        return self._dropped - int(self.transport.get_write_buffer_size())

    def _drop(self, count: int) -> None:
        self._dropped += count
        if self._dropped > _REST_BYTES:
            self.transport.abort()

    def _set_timer(self, seconds: float | None, expired: Callable[[], None] | None = None) -> None:
        """Set the one timer of the connection, in place of the one before."""
        if self._timer is not None:
            self._timer.cancel()
        waits = seconds is not None and expired is not None
        self._timer = self.loop.call_later(seconds, expired) if waits else None


class _AnswerTransport:
    """The transport as a cycle uses it: to close is to linger first."""

    def __init__(self, transport: Any, close: Callable[[], None]) -> None:
        self.write = transport.write
        self.is_closing = transport.is_closing
        self.close = close
