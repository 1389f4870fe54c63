"""When traces are sent, by OpenTelemetry's variables, and what that imports."""

from __future__ import annotations

import logging
import subprocess
import sys
import time

import pytest

from predictor.protocol.http.tracing import SERVICE, open_tracer

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
