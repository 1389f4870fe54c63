"""A receiver of OTLP over HTTP on loopback, which decodes what an exporter sends."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

_SECONDS = 20


def export_to(url: str) -> None:
    """Have this process, a server, send its traces there."""
    os.environ |= {
        "OTEL_EXPORTER_OTLP_ENDPOINT": url,
        "OTEL_SERVICE_NAME": "bloom-service",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "OTEL_TRACES_SAMPLER": "parentbased_always_on",
    }


@dataclass(frozen=True)
class Span:
    """One span as it was received, with times in seconds."""

    name: str
    kind: int
    trace_id: str
    span_id: str
    parent_id: str
    began: float
    ended: float
    status: int
    attributes: dict[str, Any]
    events: dict[str, dict[str, Any]]
    service: str


@dataclass
class Receiver:
    """What was received so far."""

    url: str
    spans: list[Span] = field(default_factory=list)
    raw: bytes = b""

    def take(self, body: bytes) -> None:
        self.raw += body
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = _values(resource.resource.attributes)["service.name"]
            for scope in resource.scope_spans:
                self.spans += [_span(span, service) for span in scope.spans]

    def await_servers(self, count: int) -> list[Span]:
        """Wait for so many server spans, and return them in order of their end."""
        deadline = time.monotonic() + _SECONDS
        while True:
            servers = [span for span in list(self.spans) if span.kind == 2]
            if len(servers) >= count:
                return sorted(servers, key=lambda span: span.ended)
            assert time.monotonic() < deadline, self.spans
            time.sleep(0.05)

    def children(self, parent: Span) -> dict[str, Span]:
        return {span.name: span for span in self.spans if span.parent_id == parent.span_id}


@contextlib.contextmanager
def receiving() -> Iterator[Receiver]:
    """Receive until the context is left."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            receiver.take(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        receiver = Receiver("http://{}:{}".format(*server.server_address[:2]))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield receiver
        server.shutdown()


def _span(span: Any, service: str) -> Span:
    return Span(
        name=span.name,
        kind=span.kind,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        began=span.start_time_unix_nano / 1e9,
        ended=span.end_time_unix_nano / 1e9,
        status=span.status.code,
        attributes=_values(span.attributes),
        events={event.name: _values(event.attributes) for event in span.events},
        service=service,
    )


def _values(attributes: Any) -> dict[str, Any]:
    return {one.key: _value(one.value) for one in attributes}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(one) for one in value.array_value.values]
    return getattr(value, kind)
