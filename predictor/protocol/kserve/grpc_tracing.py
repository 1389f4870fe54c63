"""Spans of gRPC calls for inference, see `predictor.protocol.http.tracing`."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

import grpc

from predictor.protocol.http.errors import grpc_error
from predictor.protocol.http.request_record import current_record
from predictor.protocol.http.tracing import RequestTracer
from predictor.protocol.kserve.grpc_calls import Calls, Method

_SERVER_FAULTS = (
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DATA_LOSS,
)
"""The codes that mark a server's span as failed, by OpenTelemetry's conventions for gRPC."""


def traced(method: Method, tracer: RequestTracer | None, service: str, name: str) -> Method:
    """Return a method whose calls are spanned; the same method without a tracer."""
    if tracer is None:
        return method
    attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}

    @functools.wraps(method)
    async def spanned(calls: Calls, context: Any) -> Any:
        headers = {key: str(value) for key, value in context.invocation_metadata()}
        record = current_record()
        with tracer.span(headers, f"{service}/{name}", attributes) as span:
            code = grpc.StatusCode.OK
            try:
                return await method(calls, context)
            except asyncio.CancelledError:
                code = grpc.StatusCode.CANCELLED
                raise
            except Exception as error:
                code, _ = grpc_error(error)
                raise
            finally:
                if span is not None and record is not None:
                    span.note(record, **{"rpc.grpc.status_code": code.value[0]})
                    if code not in (grpc.StatusCode.OK, grpc.StatusCode.CANCELLED):
                        span.fail(code.name, is_fault=code in _SERVER_FAULTS)

    return spanned
