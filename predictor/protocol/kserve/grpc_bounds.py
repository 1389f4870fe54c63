"""The bounds of the gRPC server."""

from __future__ import annotations

from dataclasses import dataclass

from predictor.admission import AdmissionController
from predictor.protocol.kserve.grpc_calls import MessageReader

_MOST_STREAMS = 64
"""Calls of one connection at one time; a client's further ones wait in the client."""

_WINDOW_BYTES = 64 * 1024
"""Bytes of a call that are taken before its message is read."""

_FEWEST_READ, _MOST_READ = 2, 16
_READ_BYTES = 16 * 1024**2
"""Messages that are read at one time: as many as have so many bytes if each has the largest size.
They are counted among what is in flight once they are read."""

_STATUS_BYTES = 64 * 1024
_STATUS_CALLS = 128
_STATUS_SECONDS = 5.0
"""The bounds of unread calls of other methods than inference. Their messages are names, which come
in one packet with their calls."""

_IDLE_MS = 30_000
"""Milliseconds after which a connection without calls is closed; clients connect again."""


@dataclass(frozen=True, slots=True)
class GrpcBounds:
    """The bounds of the gRPC server.

    Attributes:
        admission: Counts what is in flight, over all protocols.
        message_bytes: Largest message either way; a larger one is ``RESOURCE_EXHAUSTED``.
        connections: Most open connections.
        header_bytes: Most bytes of a call's metadata.
        timeout: Seconds for a message to arrive after its headers.
        body_rate: Bytes per second at which the largest message may take longer than `timeout`.
    """

    admission: AdmissionController
    message_bytes: int
    connections: int = 1024
    header_bytes: int = 32 * 1024
    timeout: float = 20.0
    body_rate: int = 16 * 1024

    def options(self) -> list[tuple[str, int]]:
        """Return the options of gRPC's server."""
        return [
            ("grpc.max_receive_message_length", self.message_bytes),
            ("grpc.max_send_message_length", self.message_bytes),
            ("grpc.max_metadata_size", self.header_bytes),
            ("grpc.max_allowed_incoming_connections", self.connections),
            ("grpc.max_concurrent_streams", _MOST_STREAMS),
            ("grpc.max_connection_idle_ms", _IDLE_MS),
            ("grpc.server_handshake_timeout_ms", round(1000 * self.timeout)),
            # Windows grow with the bandwidth otherwise, and every unread call may fill one.
            ("grpc.http2.bdp_probe", 0),
            ("grpc.http2.lookahead_bytes", _WINDOW_BYTES),
            # gRPC's default lets a second server share the port in silence.
            ("grpc.so_reuseport", 0),
        ]

    def inference_reader(self) -> MessageReader:
        """Return the reader of messages of any size."""
        together = min(_MOST_READ, _READ_BYTES // self.message_bytes)
        seconds = self.timeout + self.message_bytes / self.body_rate
        return MessageReader(seconds=seconds, at_once=max(_FEWEST_READ, together))

    def status_reader(self) -> MessageReader:
        """Return the reader of small messages, which wait for no other."""
        return MessageReader(
            seconds=min(self.timeout, _STATUS_SECONDS),
            at_once=_STATUS_CALLS,
            unread=_STATUS_CALLS,
            most_bytes=_STATUS_BYTES,
        )
