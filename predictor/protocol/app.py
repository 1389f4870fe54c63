"""Puts our routes, middleware and error handling on the SDK's application.

Starlette takes the first route that matches, so what is installed before ``ModelServer.start``
(which registers the SDK's own routes on the same application) is what answers; the SDK's remaining
routes, ``/metrics`` and ``/openapi.json`` among them, stay. The schema at ``/openapi.json`` is the
SDK's too: our routes have the same paths and forms and are not listed twice.

Exceptions: the SDK registers handlers for its own classes and for ``Exception`` on the application
later and so replaces any of ours. Therefore every route of ours answers for its own exceptions
(`_answering`), the `Border` for those of the SDK's routes, and only the two classes that the SDK
leaves alone (the framework's, for unknown paths and malformed requests) get handlers here. All
three ask `error_forms.error_response`.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Iterator

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from predictor.admission import AdmissionController
from predictor.protocol.http.codec import Codec, CodecThreads
from predictor.protocol.http.error_forms import error_response
from predictor.protocol.http.gate import Gate
from predictor.protocol.http.middleware import Border
from predictor.protocol.kserve.generate import GenerateEndpoints
from predictor.protocol.kserve.rest_inference import InferenceEndpoints
from predictor.protocol.kserve.rest_status import StatusEndpoints
from predictor.protocol.openai.embeddings_rerank import EmbeddingsRerankEndpoints
from predictor.protocol.openai.endpoints import OpenAIEndpoints
from predictor.protocol.served import Models
from predictor.protocol.torchserve import TorchServeEndpoints

Endpoint = Callable[[Request], Awaitable[Response]]

_MODEL = "/v2/models/{model}"
_VERSION = "/v2/models/{model}/versions/{version}"
_REPOSITORY_MODEL = "/v2/repository/models/{model}"


def install(
    app: FastAPI,
    *,
    models: Models,
    admission: AdmissionController,
    max_body_bytes: int,
    load_unload: bool = False,
    torchserve: bool = False,
    codec: Codec | None = None,
) -> None:
    """Put routes, middleware and handlers on `app`. Must run before ``ModelServer.start``.

    Args:
        app: The SDK's application, ``kserve.model_server.app``.
        models: The SDK's repository of the models that are served.
        admission: Counts the requests in flight, and admits more.
        max_body_bytes: Largest body of a request, on any path; a larger one is answered with 413.
        load_unload: Whether the SDK's routes that load and unload models stay reachable. They have
            no authentication, so the default is no.
        torchserve: Whether TorchServe's routes are served.
        codec: Decodes and encodes large bodies; None for threads.
    """
    status, codec = StatusEndpoints(models), codec or CodecThreads()
    app.router.routes.extend(_status_routes(status))
    app.router.routes.extend(_inference_routes(InferenceEndpoints(models, codec)))
    app.router.routes.extend(_generate_routes(GenerateEndpoints(models, codec)))
    app.router.routes.extend(_openai_routes(OpenAIEndpoints(models, codec)))
    app.router.routes.extend(_embedding_routes(EmbeddingsRerankEndpoints(models, codec)))
    if torchserve:
        app.router.routes.extend(_torchserve_routes(TorchServeEndpoints(models)))
    if not load_unload:
        app.router.routes.extend(
            _post(f"{_REPOSITORY_MODEL}/{verb}", status.no_loading) for verb in ("load", "unload")
        )
    gate = Gate(
        admission,
        max_body_bytes=max_body_bytes,
        model_name=lambda: next(iter(models.get_models()), ""),
    )
    app.add_middleware(Border, gate=gate)
    app.add_exception_handler(HTTPException, _on_exception)
    app.add_exception_handler(RequestValidationError, _on_exception)


def _status_routes(status: StatusEndpoints) -> Iterator[Route]:
    yield _get("/", status.alive)
    yield _get("/v1/models", status.names)
    yield _get("/v1/models/{model}", status.model_ready)
    yield _get("/v2", status.server)
    yield _get("/v2/", status.server)
    yield _get("/v2/health/live", status.live)
    yield _get("/v2/health/ready", status.ready)
    yield _get("/v2/models", status.names)
    for path in (_MODEL, _VERSION):
        yield _get(path, status.model)
        yield _get(f"{path}/ready", status.model_ready)
        yield _get(f"{path}/experts", status.experts)
    yield _post("/v2/repository/index", status.index)


def _inference_routes(inference: InferenceEndpoints) -> Iterator[Route]:
    yield _post("/v1/models/{model}:predict", inference.predict)
    yield _post("/v1/models/{model}:explain", inference.explain)
    for path in (_MODEL, _VERSION):
        yield _post(f"{path}/infer", inference.infer)


def _generate_routes(generate: GenerateEndpoints) -> Iterator[Route]:
    for path in (_MODEL, _VERSION):
        yield _post(f"{path}/generate", generate.generate)
        yield _post(f"{path}/generate_stream", generate.generate_stream)


def _openai_routes(openai: OpenAIEndpoints) -> Iterator[Route]:
    yield _get("/openai/v1/models", openai.list_models)
    yield _get("/openai/v1/models/{model:path}", openai.model)
    yield _post("/openai/v1/completions", openai.completions)
    yield _post("/openai/v1/chat/completions", openai.chat_completions)


def _embedding_routes(endpoints: EmbeddingsRerankEndpoints) -> Iterator[Route]:
    yield _post("/openai/v1/embeddings", endpoints.embeddings)
    yield _post("/openai/v1/rerank", endpoints.rerank)
    yield _post("/embed", endpoints.embed)
    yield _post("/rerank", endpoints.tei_rerank)
    yield _post("/predict", endpoints.predict)


def _torchserve_routes(torchserve: TorchServeEndpoints) -> Iterator[Route]:
    yield _get("/ping", torchserve.ping)
    yield _get("/models", torchserve.list_models)
    for suffix in ("{model}", "{model}/{version}"):
        yield _get(f"/models/{suffix}", torchserve.describe)
        yield _route(f"/predictions/{suffix}", torchserve.predict, "POST", "PUT")


def _get(path: str, endpoint: Endpoint) -> Route:
    return _route(path, endpoint, "GET")


def _post(path: str, endpoint: Endpoint) -> Route:
    return _route(path, endpoint, "POST")


def _route(path: str, endpoint: Endpoint, *methods: str) -> Route:
    return Route(path, _answering(endpoint), methods=methods, include_in_schema=False)


def _answering(endpoint: Endpoint) -> Endpoint:
    @functools.wraps(endpoint)
    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except ClientDisconnect:
            return Response(status_code=499)  # for the access log, as nginx has it
        except Exception as error:
            return await _on_exception(request, error)

    return answer


async def _on_exception(request: Request, exception: Exception) -> Response:
    return error_response(request.scope["path"], exception)
