"""Descriptions of requests: what is sent to which server, and which part of the answer counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum


class Phase(Enum):
    """The state of the server when a request is sent.

    Attributes:
        IDLE: No other request is running.
        BUSY: Another request is running, and the server takes one at a time.
        DRAINING: That request is still running after SIGTERM.
    """

    IDLE = 0
    BUSY = 1
    DRAINING = 2


class Keep(Enum):
    """Which part of a REST answer is compared.

    Attributes:
        ALL: Status, headers and body.
        METRICS: The metric families: name, type, help and label names.
        SCHEMA: The paths of an OpenAPI document and their methods.
    """

    ALL = 0
    METRICS = 1
    SCHEMA = 2


@dataclass(frozen=True, slots=True)
class Rest:
    """A request over HTTP.

    Attributes:
        server: A key of `servers.SERVERS`.
        name: Unique among the requests of its server: ``protocol/case``.
        path: The path with the query.
        body: Bytes are sent as they are, another value as JSON, None as no body.
        method: The method.
        headers: Headers besides those of the client.
        keep: Which part of the answer is compared.
        interleaved: Whether events of several replies may come in any order.
        chunked: Whether the body is sent without its length.
        phase: The state of the server.
    """

    server: str
    name: str
    path: str
    body: object = None
    method: str = "POST"
    headers: Mapping[str, str] = field(default_factory=dict)
    keep: Keep = Keep.ALL
    interleaved: bool = False
    chunked: bool = False
    phase: Phase = Phase.IDLE

    @property
    def key(self) -> str:
        """Unique among all requests."""
        return f"{self.server}/{self.name}"


@dataclass(frozen=True, slots=True)
class Grpc:
    """A call over gRPC.

    Attributes:
        server: A key of `servers.SERVERS`.
        name: Unique among the requests of its server.
        method: ``ModelInfer``; ``Check`` and ``Watch`` are the health service's.
        message: The message's fields, by the names of the protocol.
        metadata: The call's metadata.
        phase: The state of the server.
    """

    server: str
    name: str
    method: str
    message: Mapping[str, object] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    phase: Phase = Phase.IDLE

    @property
    def key(self) -> str:
        """Unique among all requests."""
        return f"{self.server}/{self.name}"


Request = Rest | Grpc
