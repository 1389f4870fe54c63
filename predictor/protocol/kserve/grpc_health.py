"""The standard health service ``grpc.health.v1``, which Kubernetes' native gRPC probes ask.

https://github.com/grpc/grpc/blob/master/doc/health-checking.md. Its own servicer keeps a
status of its own; this one checks the models at each call, so the two cannot differ.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from predictor.protocol.kserve import grpc_calls as calls
from predictor.protocol.served import Models, all_ready

_INFERENCE = "inference.GRPCInferenceService"
_SERVICE = "grpc.health.v1.Health"
_MOST_WATCHES = 64
_POLL = 0.5
"""Seconds between two looks while somebody watches."""


class Health:
    """Checks the server (no name, or that of the inference service) and each model."""

    def __init__(self, models: Models, reader: calls.MessageReader) -> None:
        """Create the service."""
        self._models = models
        self._reader = reader
        self._watches = 0

    def handler(self) -> Any:
        """Return gRPC's handler of all methods."""
        check = calls.with_message(self.Check, health_pb2.HealthCheckRequest, self._reader)
        watch = grpc.stream_stream_rpc_method_handler(
            self.Watch, response_serializer=calls.serialized
        )
        return grpc.method_handlers_generic_handler(
            _SERVICE, {"Check": calls.unary(check), "Watch": watch}
        )

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Return whether a service can answer now; an unknown one is ``NOT_FOUND``."""
        status = await self._status(request.service)
        if status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "There is no such service.")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(self, stream: calls.Calls, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """Send the status at once and after each change, until the client hangs up."""
        if self._watches >= _MOST_WATCHES:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "Too many clients watch.")
        self._watches += 1
        try:
            read = calls.with_message(self._service, health_pb2.HealthCheckRequest, self._reader)
            service = await read(stream, context)
            sent = None
            while True:
                status = await self._status(service)
                if status != sent:
                    yield health_pb2.HealthCheckResponse(status=status)
                    sent = status
                await asyncio.sleep(_POLL)
        finally:
            self._watches -= 1

    async def _service(self, request: Any, _context: Any) -> str:
        name: str = request.service
        return name

    async def _status(self, service: str) -> Any:
        statuses = health_pb2.HealthCheckResponse
        if service in ("", _INFERENCE):
            is_ready = await all_ready(self._models)
        else:
            model = self._models.get_model(service)
            if model is None:
                return statuses.SERVICE_UNKNOWN
            is_ready = await model.healthy()
        return statuses.SERVING if is_ready else statuses.NOT_SERVING
