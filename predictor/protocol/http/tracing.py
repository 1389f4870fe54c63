"""Spans of requests for OpenTelemetry, if its usual environment variables say so.

One server span for each request, with a span for each phase of each of its sequences: queue,
prefill, decode. A phase that the request's end cuts off ends with it. Attributes follow the
semantic conventions for generative AI, or begin with ``predictor.``. They have numbers and names
alone: no prompt and no reply. The packages are imported only if traces are sent.

The tracer provider is not made global. What libraries would trace by themselves, such as FastAPI,
stays off.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from predictor.protocol.http.gate import WITHOUT_BODY
from predictor.protocol.http.request_record import CLIENT_CLOSED, RECORD, RequestRecord
from predictor.sentences import MAX_NAME, shorten
from predictor.sequence_times import SequenceTimes, TimesOfRequest, collected_times

logger = logging.getLogger(__name__)

SERVICE = "accelerate-predictor"
"""The service's name, unless the environment has one."""

CANCELLED = "cancelled"
"""The ``error.type`` of a phase that ended because the client hung up."""

_SCOPE = "predictor"
_MOST_SEQUENCES = 16
"""Sequences of one request whose phases become spans; a request may have hundreds."""

_SECONDS_TO_FLUSH = 0.5
"""Seconds at the end of the process for the last spans; a collector that is away loses them."""

_PROTOCOL = "http/protobuf"
"""The protocol of OTLP whose exporter the extra ``tracing`` installs."""


class RequestTracer:
    """Makes the spans of requests."""

    def __init__(self, provider: Any) -> None:
        """Take the SDK's tracer provider."""
        self._provider = provider
        self._tracer = provider.get_tracer(_SCOPE)

    @contextmanager
    def span(
        self, headers: Mapping[str, str], name: str, attributes: Mapping[str, Any]
    ) -> Iterator[RequestSpan | None]:
        """Span a request, as a part of the trace in its headers; None if it is not sampled.

        Args:
            headers: Its headers, with lower-case names.
            name: The span's name until the model is known.
            attributes: What is known of the request when it comes.
        """
        from opentelemetry import propagate, trace

        span = self._tracer.start_span(
            name,
            context=propagate.extract(headers),
            kind=trace.SpanKind.SERVER,
            attributes=attributes,
        )
        if not span.is_recording():
            yield None
            return
        with collected_times() as times:
            request = RequestSpan(self._tracer, span, times)
            try:
                yield request
            finally:
                request.end()

    def close(self) -> None:
        """Send the last spans, unless that takes long."""
        flushing = threading.Thread(target=self._provider.shutdown, daemon=True)
        flushing.start()
        flushing.join(_SECONDS_TO_FLUSH)


class RequestSpan:
    """The span of one request."""

    def __init__(self, tracer: Any, span: Any, times: TimesOfRequest) -> None:
        self._tracer, self._span, self._times = tracer, span, times
        self._error_type: str | None = None
        self._is_fault = False
        self._offset = time.time_ns() - time.monotonic_ns()

    def note(self, record: RequestRecord, **attributes: Any) -> None:
        """Take what is known of the request at its end."""
        if record.model:
            self._span.update_name(f"{record.operation} {record.model}")
        firsts = (times.first_token for times in self._times.sequences)
        first = min((time for time in firsts if time is not None), default=None)
        self._span.set_attributes({**_attributes(record, first), **attributes})

    def fail(self, error_type: str, *, is_fault: bool) -> None:
        """Note the error that ends the request.

        Args:
            error_type: Its status or code.
            is_fault: Whether it is the server's, and so marks the spans as failed.
        """
        self._error_type, self._is_fault = error_type, is_fault
        if is_fault:
            _mark(self._span, error_type, is_fault=True)

    def end(self) -> None:
        """End the span, with its sequences' phases as children."""
        now = time.monotonic()
        for index, times in enumerate(self._times.sequences[:_MOST_SEQUENCES]):
            self._add_phases(index, times, now)
        self._span.end()

    def _add_phases(self, index: int, times: SequenceTimes, now: float) -> None:
        """Add the phases that have begun. One that was cut off lasts until the request ends."""
        phases = (
            ("queue", times.arrived, times.started, None),
            ("prefill", times.started, times.first_token, times.prefill_stall),
            ("decode", times.first_token, times.last_token, times.decode_stall),
        )
        for name, began, ended, stall in phases:
            if began is None:
                return
            phase = self._begin_phase(name, index, began)
            if ended is None and times.finished is None:
                _mark(phase, self._error_type or CANCELLED, is_fault=self._is_fault)
            end = self._offset + int((ended or times.finished or now) * 1e9)
            if ended is not None and stall is not None:
                seconds = {"predictor.weights_stall.seconds": stall}
                phase.set_attributes(seconds)
                if stall:
                    phase.add_event("weights stall", seconds, timestamp=end)
            phase.end(end)

    def _begin_phase(self, name: str, index: int, began: float) -> Any:
        from opentelemetry.trace import set_span_in_context

        return self._tracer.start_span(
            name,
            context=set_span_in_context(self._span),
            start_time=self._offset + int(began * 1e9),
            attributes={"predictor.sequence.index": index},
        )


def _mark(span: Any, error_type: str, *, is_fault: bool) -> None:
    from opentelemetry.trace import StatusCode

    span.set_attribute("error.type", error_type)
    if is_fault:
        span.set_status(StatusCode.ERROR)


def _attributes(record: RequestRecord, first_token: float | None) -> dict[str, Any]:
    attributes = {
        "gen_ai.operation.name": record.operation,
        "gen_ai.provider.name": SERVICE,
        "gen_ai.request.model": record.model,
        "gen_ai.response.model": record.model,
        "gen_ai.response.id": record.id,
        "gen_ai.response.finish_reasons": tuple(record.finish_reasons) or None,
        "gen_ai.usage.input_tokens": record.prompt_tokens,
        "gen_ai.usage.output_tokens": record.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": record.cached_tokens or None,
        "predictor.first_token.seconds": first_token and first_token - record.began,
        "predictor.request.seconds": time.monotonic() - record.began,
        **{f"gen_ai.request.{name}": value for name, value in record.parameters.items()},
    }
    return {name: value for name, value in attributes.items() if value not in (None, "")}


class Traced:
    """Spans every HTTP request that may have a body; probes and scrapes have none."""

    def __init__(self, app: ASGIApp, *, tracer: RequestTracer) -> None:
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http" or scope["method"] in WITHOUT_BODY:
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): v.decode("latin-1") for name, v in scope["headers"]}
        attributes = {"http.request.method": scope["method"], "url.scheme": scope["scheme"]}
        with self._tracer.span(headers, scope["method"], attributes) as span:
            record: RequestRecord | None = None
            try:
                await self._app(scope, receive, send)
            finally:
                record = scope.get(RECORD)
                if span is not None and record is not None:
                    span.note(
                        record,
                        **{"url.path": record.path, "http.response.status_code": record.status},
                    )
                    status = record.failure or record.status
                    if status >= 400 and status != CLIENT_CLOSED:
                        span.fail(str(status), is_fault=status >= 500)


def open_tracer(environ: Mapping[str, str]) -> RequestTracer | None:
    """Return the tracer that the environment asks for; None if it asks for none.

    Endpoint, headers, sampler, batches and limits are read by OpenTelemetry's SDK itself.
    """
    exporters = _exporters(environ)
    if not exporters:
        return None
    protocol = (
        environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
        or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
        or _PROTOCOL
    )
    if "otlp" in exporters and protocol != _PROTOCOL:
        logger.warning(
            "No traces are sent: the environment asks for OTLP by %s, and only %s is supported, "
            "which collectors mostly have at port 4318.",
            *(shorten(protocol, MAX_NAME), _PROTOCOL),
        )
        return None
    try:
        return RequestTracer(_provider(environ, exporters))
    except (ImportError, KeyError) as error:
        logger.warning(
            "No traces are sent: the environment asks for exporter %s, and there is no %s. "
            "Install accelerate-predictor[tracing].",
            *(", ".join(sorted(exporters)), error.args[0]),
        )
        return None


def _exporters(environ: Mapping[str, str]) -> set[str]:
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return set()
    names = environ.get("OTEL_TRACES_EXPORTER", "")
    has_endpoint = any(
        environ.get(name)
        for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    )
    if not names and not has_endpoint:
        return set()
    return {name.strip() for name in (names or "otlp").split(",")} - {"none", ""}


def _provider(environ: Mapping[str, str], exporters: set[str]) -> Any:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

    has_name = "OTEL_SERVICE_NAME" in environ or "service.name=" in environ.get(
        "OTEL_RESOURCE_ATTRIBUTES", ""
    )
    resource = Resource.create({} if has_name else {"service.name": SERVICE})
    made = {"otlp": _otlp_exporter, "console": ConsoleSpanExporter}
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    for name in sorted(exporters):
        provider.add_span_processor(BatchSpanProcessor(made[name]()))
    return provider


def _otlp_exporter() -> Any:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()
