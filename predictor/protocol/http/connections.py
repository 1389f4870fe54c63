"""The bounds of HTTP connections, and which of them is closed when there are too many.

Knows no socket. A connection that waits for its client (for the next request, for the rest of the
headers, for the client to read its answer, or to close) can be closed at no loss of the server's
work; the one that has waited longest goes first, as in nginx. So a flood of silent connections
closes its own, and a probe that connects and asks at once is always answered.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """The bounds of one HTTP server.

    Attributes:
        connections: Most open connections.
        header_bytes: Most bytes of a request line and headers, and of trailers.
        header_count: Most headers of a request.
        timeout: Seconds for a request's headers, or for its body, to arrive, and for a client that
            has stopped reading to read on.
        body_rate: Bytes per second at which a body may take longer than `timeout`.
    """

    connections: int = 1024
    header_bytes: int = 32 * 1024
    header_count: int = 100
    timeout: float = 20.0
    body_rate: int = 16 * 1024


class Connections:
    """The open connections of one server."""

    def __init__(self, most: int) -> None:
        """Start with none.

        Args:
            most: Most open connections.
        """
        self._most = most
        self._open: set[Hashable] = set()
        self._waiting: dict[Hashable, Callable[[], None]] = {}  # in the order of their waits

    def __len__(self) -> int:
        """Return the number of open connections."""
        return len(self._open)

    def add(self, connection: Hashable) -> bool:
        """Add a connection, unless it is open already; return whether it may stay.

        If there are too many, the one that has waited longest for its client is closed instead. If
        none waits, the new one may not stay.
        """
        if connection not in self._open and len(self._open) >= self._most:
            if not self._waiting:
                return False
            oldest = next(iter(self._waiting))
            close = self._waiting[oldest]
            self.remove(oldest)
            close()
        self._open.add(connection)
        return True

    def wait(self, connection: Hashable, close: Callable[[], None]) -> None:
        """Note that a connection waits for its client from now on.

        Args:
            connection: The connection; one that is not open is ignored.
            close: Closes it at once.
        """
        self._waiting.pop(connection, None)
        if connection in self._open:
            self._waiting[connection] = close

    def work(self, connection: Hashable) -> None:
        """Note that the server works for a connection, which is not to be closed now."""
        self._waiting.pop(connection, None)

    def remove(self, connection: Hashable) -> None:
        """Remove a connection that is closed, or about to be."""
        self._open.discard(connection)
        self._waiting.pop(connection, None)
