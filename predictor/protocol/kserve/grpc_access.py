"""Access lines of gRPC calls for inference, see `predictor.protocol.http.request_record`."""

from __future__ import annotations

import functools
from typing import Any

import grpc

from predictor.protocol.http.request_record import REQUEST_ID, begin_call
from predictor.protocol.kserve.grpc_calls import Calls, Method

_CANCELLED = grpc.StatusCode.CANCELLED.name


def recorded(method: Method, service: str, name: str, *, access_log: bool) -> Method:
    """Return a method whose calls have a record, and a line in the log if that is wanted.

    The id of a call goes back in its trailing metadata.

    Args:
        method: Answers its own exceptions.
        service: The service of the method.
        name: The name of the method.
        access_log: Whether there are lines.
    """

    @functools.wraps(method)
    async def record_first(calls: Calls, context: Any) -> Any:
        headers = {key: str(value) for key, value in context.invocation_metadata()}
        record = begin_call(f"/{service}/{name}", headers.get(REQUEST_ID, ""))
        context.set_trailing_metadata(((REQUEST_ID, record.id),))
        record.status = _CANCELLED
        try:
            response = await method(calls, context)
            record.status = grpc.StatusCode.OK.name
            return response
        except grpc.aio.AbortError:
            record.status = context.code().name
            raise
        finally:
            if access_log:
                record.log()

    return record_first
