"""Puts our routes, middleware and error handling on the SDK's application.

Starlette takes the first route that matches, so what is installed before ``ModelServer.start``
(which registers the SDK's own routes on the same application) is what answers; the SDK's remaining
routes, ``/metrics`` among them, stay. The document at ``/openapi.json`` describes ours.

Exceptions: the SDK registers handlers for its own classes and for ``Exception`` on the application
later and so replaces any of ours. Therefore every route of ours answers for its own exceptions
(`_answering`), the `Border` for those of the SDK's routes, and only the two classes that the SDK
leaves alone (the framework's, for unknown paths and malformed requests) get handlers here. All
three ask `error_forms.error_response`.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from predictor.admission import AdmissionController
from predictor.cache_scope import ONE_SCOPE, ScopeHeader
from predictor.protocol.anthropic.endpoints import AnthropicEndpoints
from predictor.protocol.http.authentication import ApiKeys
from predictor.protocol.http.codec import Codec, CodecThreads
from predictor.protocol.http.error_forms import error_response
from predictor.protocol.http.gate import Gate
from predictor.protocol.http.middleware import Border, CacheScope
from predictor.protocol.http.request_record import CLIENT_CLOSED
from predictor.protocol.http.tracing import RequestTracer, Traced
from predictor.protocol.info import InfoEndpoint
from predictor.protocol.kserve.generate import GenerateEndpoints
from predictor.protocol.kserve.rest_inference import InferenceEndpoints
from predictor.protocol.kserve.rest_status import StatusEndpoints
from predictor.protocol.kserve.triton import TritonEndpoints
from predictor.protocol.openai.adapters import AdapterEndpoints, Adapters
from predictor.protocol.openai.embeddings_rerank import EmbeddingsRerankEndpoints
from predictor.protocol.openai.endpoints import OpenAIEndpoints
from predictor.protocol.openai.tokens import TokenEndpoints
from predictor.protocol.openapi import describe, docs_page
from predictor.protocol.served import Models
from predictor.protocol.tgi.endpoints import TGIEndpoints
from predictor.protocol.torchserve import TorchServeEndpoints
from predictor.protocol.ui.endpoints import PageEndpoints

Endpoint = Callable[[Request], Awaitable[Response]]

_MODEL = "/v2/models/{model}"
_VERSION = "/v2/models/{model}/versions/{version}"
_REPOSITORY_MODEL = "/v2/repository/models/{model}"


@dataclass(frozen=True, slots=True)
class Surface:
    """The routes that are served, and to whom.

    Attributes:
        max_body_bytes: Largest body of a request, on any path; a larger one is answered with 413.
        load_unload: Whether the SDK's routes that load and unload models stay reachable.
        torchserve: Whether TorchServe's routes are served.
        tgi: Whether Text Generation Inference's routes are served.
        openai_prefix: The path before OpenAI's routes, which are served without one as well.
        keys: The API keys, one of which a request needs; none for none.
        adapters: Loads and unloads adapters; None if that is not served.
        allowed_origins: Origins of web pages that may use the routes (CORS); ``*`` is any.
        access_log: Whether each request that may have a body is a line in the log.
        ui: Whether browsers get the page.
        docs: Whether ``/docs`` shows the routes.
        scope_header: The header with a request's scope in the prefix cache.
        tracer: Makes spans of requests; None for none.
        uploads: Most bytes of bodies that are written to disk as they arrive, by path.
    """

    max_body_bytes: int
    load_unload: bool = False
    torchserve: bool = False
    tgi: bool = False
    openai_prefix: str = "/openai"
    keys: ApiKeys = field(default_factory=ApiKeys)
    adapters: Adapters | None = None
    allowed_origins: Sequence[str] = ()
    access_log: bool = False
    docs: bool = False
    ui: bool = False
    scope_header: ScopeHeader = ONE_SCOPE
    tracer: RequestTracer | None = None
    uploads: Mapping[str, int] = field(default_factory=dict)


def install(
    app: FastAPI,
    surface: Surface,
    *,
    models: Models,
    admission: AdmissionController,
    codec: Codec | None = None,
    batches: Iterable[Route] = (),
) -> None:
    """Put routes, middleware and handlers on `app`. Must run before ``ModelServer.start``.

    Args:
        app: The SDK's application, ``kserve.model_server.app``.
        surface: The routes that are served, and to whom.
        models: The SDK's repository of the models that are served.
        admission: Counts the requests in flight, and admits more.
        codec: Decodes and encodes large bodies; None for threads.
        batches: The routes of files and batches.
    """
    app.router.routes.extend(batches)
    app.router.routes.extend(_routes(surface, models, codec or CodecThreads()))
    app.openapi = partial(describe, app.router.routes)  # type: ignore[method-assign]
    gate = Gate(
        admission,
        max_body_bytes=surface.max_body_bytes,
        model_name=lambda: next(iter(models.get_models()), ""),
        uploads=surface.uploads,
    )
    app.add_middleware(CacheScope, header=surface.scope_header)
    app.add_middleware(Border, gate=gate, keys=surface.keys, access_log=surface.access_log)
    if surface.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=surface.allowed_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["X-Request-Id", "Retry-After"],
        )
    if surface.tracer is not None:
        app.add_middleware(Traced, tracer=surface.tracer)
    app.add_exception_handler(HTTPException, _on_exception)
    app.add_exception_handler(RequestValidationError, _on_exception)


def batch_endpoints(models: Models, codec: Codec) -> dict[str, Endpoint]:
    """Return the endpoints that a line of a batch may name, by their paths; see `install`."""
    lists = EmbeddingsRerankEndpoints(models, codec)
    openai = _openai_routes("", OpenAIEndpoints(models, codec), lists)
    routes = (*openai, *_embedding_routes(lists))
    return {route.path: route.endpoint for route in routes if "POST" in (route.methods or ())}


def _routes(surface: Surface, models: Models, codec: Codec) -> Iterator[Route]:
    openai = OpenAIEndpoints(models, codec)
    status = StatusEndpoints(models, openai.created)
    lists = EmbeddingsRerankEndpoints(models, codec)
    if surface.ui:
        yield from _page_routes(PageEndpoints(models, surface.keys))
    yield from _status_routes(status, TritonEndpoints(models))
    yield from _inference_routes(InferenceEndpoints(models, codec))
    yield from _generate_routes(GenerateEndpoints(models, codec))
    for prefix in dict.fromkeys((surface.openai_prefix, "")):
        yield from _openai_routes(prefix, openai, lists)
    yield from _anthropic_routes(AnthropicEndpoints(models, codec))
    yield from _embedding_routes(lists)
    yield _get("/info", InfoEndpoint(models, surface.tgi).info)
    yield from _token_routes(TokenEndpoints(models))
    if surface.adapters is not None:
        yield from _adapter_routes(surface.openai_prefix, AdapterEndpoints(surface.adapters))
    if surface.torchserve:
        yield from _torchserve_routes(TorchServeEndpoints(models))
    if surface.tgi:
        yield from _tgi_routes(TGIEndpoints(models, codec))
    if surface.docs:
        yield _get("/docs", docs_page)
    if not surface.load_unload:  # the SDK's have no authentication
        for verb in ("load", "unload"):
            yield _post(f"{_REPOSITORY_MODEL}/{verb}", status.no_loading)


def _page_routes(page: PageEndpoints) -> Iterator[Route]:
    yield _get("/", page.root)
    yield _get("/ui/progress", page.progress)
    yield _get("/ui/state", page.state)
    yield _get("/ui/placement.svg", page.placement)
    yield _get("/ui/{file}", page.file)


def _status_routes(status: StatusEndpoints, triton: TritonEndpoints) -> Iterator[Route]:
    yield _get("/", status.alive)
    yield _get("/health", status.health)
    yield _get("/version", status.version)
    yield _get("/v1/models", status.v1_names)
    yield _get("/v1/models/{model:path}", status.v1_model_ready)
    yield _get("/v2", status.server)
    yield _get("/v2/", status.server)
    yield _get("/v2/health/live", status.live)
    yield _get("/v2/health/ready", status.ready)
    yield _get("/v2/models", status.names)
    yield _get("/v2/models/stats", triton.all_stats)
    for path in (_MODEL, _VERSION):
        yield _get(path, status.model)
        yield _get(f"{path}/ready", status.model_ready)
        yield _get(f"{path}/experts", status.experts)
        yield _get(f"{path}/config", triton.config)
        yield _get(f"{path}/stats", triton.stats)
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


def _openai_routes(
    prefix: str, openai: OpenAIEndpoints, lists: EmbeddingsRerankEndpoints
) -> Iterator[Route]:
    """Yield OpenAI's routes. Without a prefix, those of the models are V1's too."""
    if prefix:
        yield _get(f"{prefix}/v1/models", openai.list_models)
        yield _get(f"{prefix}/v1/models/{{model:path}}", openai.model)
    yield _post(f"{prefix}/v1/completions", openai.completions)
    yield _post(f"{prefix}/v1/chat/completions", openai.chat_completions)
    yield _post(f"{prefix}/v1/responses", openai.responses)
    yield _post(f"{prefix}/v1/embeddings", lists.embeddings)
    yield _post(f"{prefix}/v1/rerank", lists.rerank)


def _anthropic_routes(anthropic: AnthropicEndpoints) -> Iterator[Route]:
    yield _post("/v1/messages", anthropic.messages)
    yield _post("/v1/messages/count_tokens", anthropic.count_tokens)


def _embedding_routes(endpoints: EmbeddingsRerankEndpoints) -> Iterator[Route]:
    yield _post("/embed", endpoints.embed)
    yield _post("/rerank", endpoints.tei_rerank)
    yield _post("/predict", endpoints.predict)


def _token_routes(tokens: TokenEndpoints) -> Iterator[Route]:
    yield _post("/tokenize", tokens.tokenize)
    yield _post("/detokenize", tokens.detokenize)


def _adapter_routes(prefix: str, endpoints: AdapterEndpoints) -> Iterator[Route]:
    for path in dict.fromkeys((prefix, "")):
        yield _post(f"{path}/v1/load_lora_adapter", endpoints.load)
        yield _post(f"{path}/v1/unload_lora_adapter", endpoints.unload)


def _torchserve_routes(torchserve: TorchServeEndpoints) -> Iterator[Route]:
    yield _get("/ping", torchserve.ping)
    yield _get("/models", torchserve.list_models)
    for suffix in ("{model}", "{model}/{version}"):
        yield _get(f"/models/{suffix}", torchserve.describe)
        yield route(f"/predictions/{suffix}", torchserve.predict, "POST", "PUT", "GET")
    yield _post("/invocations", torchserve.invoke)


def _tgi_routes(tgi: TGIEndpoints) -> Iterator[Route]:
    yield _post("/", tgi.either)
    yield _post("/generate", tgi.generate)
    yield _post("/generate_stream", tgi.generate_stream)


def _get(path: str, endpoint: Endpoint) -> Route:
    return route(path, endpoint, "GET")


def _post(path: str, endpoint: Endpoint) -> Route:
    return route(path, endpoint, "POST")


def route(path: str, endpoint: Endpoint, *methods: str) -> Route:
    """Return a route that answers for its own exceptions."""
    return Route(path, _answering(endpoint), methods=methods, include_in_schema=False)


def _answering(endpoint: Endpoint) -> Endpoint:
    @functools.wraps(endpoint)
    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except ClientDisconnect:
            return Response(status_code=CLIENT_CLOSED)  # for the access log
        except Exception as error:
            return await _on_exception(request, error)

    return answer


async def _on_exception(request: Request, exception: Exception) -> Response:
    return error_response(request.scope["path"], exception)
