"""TLS of a connection, within the bounds that it has as plain text.

With a context, asyncio's server reports a connection when its handshake has ended. So none counts
before, each has 60 seconds for it, and takes 0.7 MiB. Its own protocol is used as it is, but for
these three.
"""

from __future__ import annotations

import asyncio
import math
import ssl
from asyncio.sslproto import SSLProtocol
from typing import Any

from predictor.protocol.http.connections import ConnectionLimits, Connections

_READ_BYTES = 16 * 1024
"""Bytes of one read, and of a buffer of each connection: a record of TLS has no more. The plan has
`TLS_BYTES` for each connection."""


class TlsProtocol(SSLProtocol):
    """The TLS of one connection, which is open from the time at which it is accepted."""

    max_size = _READ_BYTES

    def __init__(
        self,
        http: asyncio.Protocol,
        context: ssl.SSLContext,
        limits: ConnectionLimits,
        connections: Connections,
    ) -> None:
        """Create the protocol of a connection that is not made yet.

        Args:
            http: Takes the plain text. The connection counts as this object.
            context: The context, with a certificate.
            limits: The bounds. A handshake, or closing, may take `timeout` seconds.
            connections: All open connections.
        """
        waiter: Any = None  # nobody waits for the handshake
        seconds = math.ceil(limits.timeout)
        super().__init__(
            asyncio.get_running_loop(),
            http,
            context,
            waiter,
            server_side=True,
            ssl_handshake_timeout=seconds,
            ssl_shutdown_timeout=seconds,
        )
        self._http = http
        self._others = connections

    def connection_made(self, transport: Any) -> None:
        """Admit the connection, and begin its handshake."""
        if not self._others.add(self._http):
            transport.abort()
            return
        self._others.wait(self._http, transport.abort)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Make room for another connection, even if the handshake has not ended."""
        self._others.remove(self._http)
        super().connection_lost(exc)
