"""When traces are sent, by OpenTelemetry's variables, and what that imports."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import time
from typing import Any, NoReturn

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from predictor.errors import DeadlineExceeded, RequestError
from predictor.protocol.http.request_record import begin, begin_call
from predictor.protocol.http.tracing import SERVICE, RequestTracer, Traced, open_tracer
from predictor.protocol.kserve.grpc_tracing import traced
from predictor.sequence_times import current_times

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"OTEL_SERVICE_NAME": "name"},
        {**ENDPOINT, "OTEL_SDK_DISABLED": "true"},
        {**ENDPOINT, "OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_TRACES_EXPORTER": ""},
    ],
)
def test_without_an_exporter_nothing_is_traced(environ: dict[str, str]) -> None:
    assert open_tracer(environ) is None


@pytest.mark.parametrize(
    "environ",
    [
        ENDPOINT,
        {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1/v1/traces"},
        {"OTEL_TRACES_EXPORTER": "otlp"},
        {"OTEL_TRACES_EXPORTER": "console"},
    ],
)
def test_an_endpoint_or_an_exporter_turns_traces_on(environ: dict[str, str]) -> None:
    tracer = open_tracer(environ)
    assert tracer is not None
    assert tracer._provider.resource.attributes["service.name"] == SERVICE
    tracer.close()


def test_a_service_name_of_the_environment_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=own,team=models")
    tracer = open_tracer({**ENDPOINT, "OTEL_RESOURCE_ATTRIBUTES": "service.name=own,team=models"})
    assert tracer is not None
    attributes = tracer._provider.resource.attributes
    assert (attributes["service.name"], attributes["team"]) == ("own", "models")
    tracer.close()


@pytest.mark.parametrize(
    "environ",
    [
        {"OTEL_TRACES_EXPORTER": "zipkin"},
        {**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"},
        {**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
        {**ENDPOINT, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"},
    ],
)
def test_an_exporter_that_is_not_there_is_a_warning_and_no_end(
    environ: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert open_tracer(environ) is None
    assert "No traces are sent" in caplog.text
    assert ("only http/protobuf is supported" in caplog.text) == ("zipkin" not in environ.values())


def test_a_collector_that_is_away_holds_up_neither_requests_nor_the_end() -> None:
    tracer = open_tracer(ENDPOINT)
    assert tracer is not None
    began = time.monotonic()
    with tracer.span({"traceparent": "no trace"}, "POST", {}) as span:
        assert span is not None
    tracer.close()
    assert time.monotonic() - began < 2


def test_nothing_is_imported_for_traces_that_are_off() -> None:
    program = (
        "import sys; from predictor.protocol.http.tracing import open_tracer; open_tracer({});"
        "print(*(name for name in sys.modules if name.startswith('opentelemetry.sdk')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == ""


# What ended a phase


def recording() -> tuple[RequestTracer, InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return RequestTracer(provider), exporter


def ends(spans: tuple[ReadableSpan, ...]) -> tuple[Any, bool, bool]:
    """Return a queue's type of error, and whether it and the request are marked as failed."""
    queue, server = spans
    assert queue.attributes is not None
    failed = [span.status.status_code.name == "ERROR" for span in (queue, server)]
    return queue.attributes["error.type"], failed[0], failed[1]


@pytest.mark.parametrize(
    ("status", "failure", "error", "is_fault"),
    [
        *((400, None, "400", False), (429, None, "429", False), (504, None, "504", True)),
        *((200, 400, "400", False), (200, 504, "504", True)),
        *((499, None, "cancelled", False), (200, None, "cancelled", False)),
    ],
)
def test_a_phase_that_a_request_cuts_off_has_the_status_of_its_end(
    status: int, failure: int | None, error: str, is_fault: bool
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        record, times = begin(scope), current_times()
        assert times is not None
        times.add_sequence()
        record.status, record.failure = status, failure

    async def unused(*_: Any) -> NoReturn:
        raise AssertionError

    tracer, exporter = recording()
    scope = {"type": "http", "method": "POST", "scheme": "http", "path": "/", "headers": []}
    asyncio.run(Traced(app, tracer=tracer)(scope, unused, unused))
    assert ends(exporter.get_finished_spans()) == (error, is_fault, is_fault)


@pytest.mark.parametrize(
    ("exception", "error", "is_fault"),
    [
        (RequestError("No."), "INVALID_ARGUMENT", False),
        (DeadlineExceeded("Late."), "DEADLINE_EXCEEDED", True),
        (asyncio.CancelledError(), "cancelled", False),
    ],
)
def test_a_phase_that_a_grpc_call_cuts_off_has_the_code_of_its_end(
    exception: BaseException, error: str, is_fault: bool
) -> None:
    class Context:
        def invocation_metadata(self) -> tuple[()]:
            return ()

    async def method(calls: Any, context: Any) -> NoReturn:
        times = current_times()
        assert times is not None
        times.add_sequence()
        raise exception

    async def call() -> None:
        begin_call("/service/Infer", "")
        await traced(method, tracer, "service", "Infer")({}, Context())

    tracer, exporter = recording()
    with pytest.raises(type(exception)):
        asyncio.run(call())
    assert ends(exporter.get_finished_spans()) == (error, is_fault, is_fault)
