"""V2 over gRPC: our own service on the SDK's generated messages.

The SDK's service loads a model that is not ready, on the event loop, forgets the requested outputs
and has no code for "not ready" (``kserve/protocol/grpc/servicer.py``, ``dataplane.py``,
``interceptors.py``). The metadata has no placement, unlike over REST: ``ModelMetadataResponse`` has
no field for properties, and clients refuse trailers of 8 KiB or more, which the placement of a
large model exceeds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
from kserve import InferRequest

import predictor
from predictor.cache_scope import ONE_SCOPE, ScopeHeader
from predictor.errors import ConfigurationError, Overloaded
from predictor.metrics import REQUESTS
from predictor.protocol.http.authentication import ApiKeys
from predictor.protocol.http.certificate import Certificate
from predictor.protocol.http.codec import Codec, CodecThreads, codec_of
from predictor.protocol.http.deadline import counted, requested_timeout
from predictor.protocol.http.off_loop import off_loop
from predictor.protocol.http.tracing import RequestTracer
from predictor.protocol.kserve import grpc_calls as calls
from predictor.protocol.kserve import v2
from predictor.protocol.kserve.grpc_access import recorded
from predictor.protocol.kserve.grpc_bounds import GrpcBounds
from predictor.protocol.kserve.grpc_health import Health
from predictor.protocol.kserve.grpc_messages import check_fields, check_parts
from predictor.protocol.kserve.grpc_tracing import traced
from predictor.protocol.kserve.rest_status import EXTENSIONS
from predictor.protocol.sdk import messages, timed
from predictor.protocol.served import (
    SERVER_NAME,
    Models,
    ServedModel,
    all_ready,
    find,
    require_ready,
)
from predictor.tasks.answers import Answer, json_size

SERVICE = "inference.GRPCInferenceService"
_STATUS_METHODS = (
    "ServerLive",
    "ServerReady",
    "ModelReady",
    "ServerMetadata",
    "ModelMetadata",
    "RepositoryModelLoad",
    "RepositoryModelUnload",
)

_LEAST_TIMEOUT = 1e-3
_NO_LOADING = "Loading and unloading of models is not offered over gRPC."


@dataclass(frozen=True, slots=True)
class BoundServer:
    """A gRPC server that has bound its port and is not started yet.

    Attributes:
        server: A ``grpc.aio.Server``: ``start``, ``stop(grace)``, ``wait_for_termination``.
        port: The port.
    """

    server: Any
    port: int

    async def serve(self, stopping: asyncio.Event, *, grace: float) -> None:
        """Serve until `stopping` is set, then refuse new calls and wait for those in flight.

        ``ModelServer.stop`` knows of the SDK's gRPC server only and would leave this one running.

        Args:
            stopping: Set when the server must stop.
            grace: Seconds after which calls in flight are cut off.
        """
        await self.server.start()
        await stopping.wait()
        await self.server.stop(grace)


def make_server(
    models: Models,
    *,
    host: str,
    port: int,
    bounds: GrpcBounds,
    keys: ApiKeys | None = None,
    codec: Codec | None = None,
    scope_header: ScopeHeader = ONE_SCOPE,
    tracer: RequestTracer | None = None,
    access_log: bool = False,
    certificate: Certificate | None = None,
) -> BoundServer:
    """Return a bound server with the inference service. Must be called in its event loop.

    Args:
        models: The SDK's repository of the models that are served.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        bounds: The bounds of connections, calls and messages.
        keys: The API keys, one of which a call for inference needs in its metadata; None for none.
        codec: Encodes vectors; None for threads.
        scope_header: The metadata with a call's scope in the prefix cache.
        tracer: Makes spans of calls for inference; None for none.
        access_log: Whether each call for inference is a line in the log.
        certificate: Serves TLS with it; None serves without TLS.

    Raises:
        ConfigurationError: The port cannot be bound.
    """
    server = grpc.aio.server(options=bounds.options())
    health = Health(models, bounds.status_reader())
    inference = Inference(models, bounds, codec or CodecThreads(), keys or ApiKeys(), scope_header)
    handler = inference.handler(tracer, access_log=access_log)
    server.add_generic_rpc_handlers((handler, health.handler()))
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        return BoundServer(server, _add_port(server, address, certificate))
    except RuntimeError:
        raise ConfigurationError(f"The gRPC server cannot listen on {address}.") from None


def _add_port(server: Any, address: str, certificate: Certificate | None) -> int:
    """Bind a port, with TLS if there is a certificate, and return the port.

    gRPC's credentials that can be renewed are not used: grpcio 1.85 frees those that are replaced
    beside the handshakes that use them, and the process dies.
    """
    if certificate is None:
        return int(server.add_insecure_port(address))

    pair = certificate.current()
    credentials = grpc.ssl_server_credentials([(pair.key, pair.chain)])
    return int(server.add_secure_port(address, credentials))


class Inference:
    """The service ``inference.GRPCInferenceService``; methods are named by the protocol."""

    def __init__(
        self,
        models: Models,
        bounds: GrpcBounds,
        codec: Codec,
        keys: ApiKeys,
        scope_header: ScopeHeader,
    ) -> None:
        """Create the service."""
        self._codec = codec
        self._keys = keys
        self._scope_header = scope_header
        self._models = models
        self._admission = bounds.admission
        self._inference_reader = bounds.inference_reader()
        self._status_reader = bounds.status_reader()

    def handler(self, tracer: RequestTracer | None = None, *, access_log: bool = False) -> Any:
        """Return gRPC's handler of all methods."""
        handlers = {name: self._status_method(name) for name in _STATUS_METHODS}
        infer = traced(self.ModelInfer, tracer, SERVICE, "ModelInfer")
        answered = recorded(calls.answering(infer), SERVICE, "ModelInfer", access_log=access_log)
        handlers["ModelInfer"] = calls.unary(answered, serializer=None)
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    def _status_method(self, name: str) -> Any:
        message_type = getattr(messages, f"{name}Request")
        return calls.unary(
            calls.with_message(getattr(self, name), message_type, self._status_reader)
        )

    async def ServerLive(self, _request: Any, _context: Any) -> Any:  # noqa: N802
        """Return that the process answers."""
        return messages.ServerLiveResponse(live=True)

    async def ServerReady(self, _request: Any, _context: Any) -> Any:  # noqa: N802
        """Return whether every model can answer."""
        ready = await all_ready(self._models)
        return messages.ServerReadyResponse(ready=ready)

    async def ModelReady(self, request: Any, _context: Any) -> Any:  # noqa: N802
        """Return whether one model can answer."""
        model = find(self._models, request.name, request.version)
        ready = await model.healthy()
        return messages.ModelReadyResponse(ready=ready)

    async def ServerMetadata(self, _request: Any, _context: Any) -> Any:  # noqa: N802
        """Return the metadata of the server."""
        return messages.ServerMetadataResponse(
            name=SERVER_NAME, version=predictor.__version__, extensions=EXTENSIONS
        )

    async def ModelMetadata(self, request: Any, _context: Any) -> Any:  # noqa: N802
        """Return the metadata of one model."""
        model = find(self._models, request.name, request.version)
        return messages.ModelMetadataResponse(
            name=request.name,
            versions=[model.version],
            platform=model.metadata()["platform"],
            **v2.signature(model.spec),
        )

    async def ModelInfer(self, stream: calls.Calls, context: Any) -> Any:  # noqa: N802
        """Answer a request for inference, if it is admitted, with a response as bytes."""
        self._keys.check(dict(_metadata(context)).get("authorization", ""))
        with self._counted():  # of too many calls, no message is read
            self._admission.check(0)
        raw = await self._inference_reader.read(aiter(stream))
        with self._counted():
            permit = self._admission.admit(len(raw))
        try:
            message = await off_loop(len(raw), lambda: _parse(raw))
            return await self._infer(message, len(raw), context)
        finally:
            permit.release()

    @contextmanager
    def _counted(self) -> Iterator[None]:
        try:
            yield
        except Overloaded:
            REQUESTS.labels(next(iter(self._models.get_models()), ""), "grpc", "rejected").inc()
            raise

    async def _infer(self, request: Any, size: int, context: Any) -> Any:
        model = find(self._models, request.model_name, request.model_version)
        with counted(model.name, "grpc"):
            await require_ready(model)
            with timed("preprocess", model.name):
                model.check_open()
                call = await off_loop(size, lambda: _decode(request, model))
            with timed("predict", model.name), self._scope_header.applied(_metadata(context)):
                answers = await model.answer(call.request, _timeout(context))
            with timed("postprocess", model.name):
                codec, size = codec_of(answers, self._codec), json_size(answers)
                encode = partial(_encode, model_name=model.name, model_version=model.version)
                return await codec.run(size, encode, answers, call.form)

    async def RepositoryModelLoad(self, _request: Any, context: Any) -> Any:  # noqa: N802
        """Refuse: a client without authentication must not load models."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, _NO_LOADING)

    async def RepositoryModelUnload(self, _request: Any, context: Any) -> Any:  # noqa: N802
        """Refuse: a client without authentication must not unload models."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, _NO_LOADING)


def _parse(raw: bytes) -> Any:
    check_fields(raw)
    return calls.parse(messages.ModelInferRequest, raw)


def _decode(request: Any, model: ServedModel) -> v2.Call:
    check_parts(request)
    return v2.decode(InferRequest.from_grpc(request), model.spec)


def _encode(
    answers: Sequence[Answer], form: v2.ResponseForm, *, model_name: str, model_version: str
) -> bytes:
    response = v2.encode(form, answers, model_name=model_name, model_version=model_version)
    return calls.serialized(response.to_grpc())


def _metadata(context: Any) -> list[tuple[str, str]]:
    return [(key, str(value)) for key, value in context.invocation_metadata()]


def _timeout(context: Any) -> float | None:
    """Return the seconds that a call may take by its metadata and its own deadline."""
    requested = requested_timeout(dict(_metadata(context)))
    remaining: float | None = context.time_remaining()
    if remaining is None:
        return requested
    return max(min(requested or remaining, remaining), _LEAST_TIMEOUT)
