"""The interfaces of the kserve SDK that it does not export; no other module here names them.

Written against kserve 0.21. `INTERFACES` says where the SDK has each, so that an upgrade of the SDK
is checked against this file alone. `Model`, `ModelServer`, `InferRequest` and the like are exported
by `kserve` and imported from there.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Literal

from predictor.private.versions import Interface, Library, check, uncalled

KSERVE = Library("kserve", "0.21", "0.22")

INTERFACES = (
    Interface("kserve.metrics", "get_labels", ("model_name",)),
    Interface("kserve.protocol.dataplane", "DataPlane", ("model_registry",)),
    Interface("kserve.protocol.infer_type", "to_http_parameters", ("parameters",)),
    Interface(
        "kserve.protocol.model_repository_extension",
        "ModelRepositoryExtension",
        ("model_registry",),
    ),
    Interface(
        "kserve.protocol.rest.server",
        "RESTServer",
        (
            "app",
            "data_plane",
            "model_repository_extension",
            "http_port",
            "grace_period",
            "timeout_keep_alive",
        ),
    ),
    Interface("kserve.protocol.rest.server", "RESTServer._register_endpoints", ("app",)),
    Interface("kserve.protocol.rest.server", "RESTServer._add_exception_handlers", ("app",)),
    *uncalled("kserve.protocol.rest.server", "_server", "config", of="RESTServer"),
    *uncalled("kserve.metrics", "PRE_HIST_TIME", "PREDICT_HIST_TIME", "POST_HIST_TIME"),
    *uncalled("kserve", "InferInput", "InferOutput", "InferRequest", "InferResponse"),
    *uncalled("kserve", "Model", "ModelServer"),
    *uncalled("kserve.model_server", "app"),
    *uncalled("kserve.protocol.grpc.grpc_predict_v2_pb2", "ModelInferRequest"),
    *uncalled("kserve.protocol.infer_type", "RequestedOutput", "InferInput._raw_data"),
    *uncalled(
        "kserve.errors",
        "InvalidInput",
        "ModelNotFound",
        "ModelNotReady",
        "ServerNotLive",
        "ServerNotReady",
    ),
)

check(KSERVE, *INTERFACES)

from fastapi import FastAPI
from kserve.errors import (
    InvalidInput,
    ModelNotFound,
    ModelNotReady,
    ServerNotLive,
    ServerNotReady,
)
from kserve.metrics import POST_HIST_TIME, PRE_HIST_TIME, PREDICT_HIST_TIME, get_labels
from kserve.model_server import app
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.grpc import grpc_predict_v2_pb2 as messages
from kserve.protocol.infer_type import RequestedOutput, to_http_parameters
from kserve.protocol.model_repository_extension import ModelRepositoryExtension
from kserve.protocol.rest.server import RESTServer

__all__ = [
    "InvalidInput",
    "ModelNotFound",
    "ModelNotReady",
    "RequestedOutput",
    "ServerNotLive",
    "ServerNotReady",
    "add_routes",
    "guard",
    "messages",
    "own_app",
    "raw_data",
    "rest_server",
    "timed",
    "to_http_parameters",
]

own_app: FastAPI = app
"""The application of ``ModelServer`` (``kserve/model_server.py``)."""

_APP_NAME = "kserve.model_server:app"
_HISTOGRAMS = {
    "preprocess": PRE_HIST_TIME,
    "predict": PREDICT_HIST_TIME,
    "postprocess": POST_HIST_TIME,
}


def timed(
    step: Literal["preprocess", "predict", "postprocess"], model_name: str
) -> AbstractContextManager[object]:
    """Return a context that observes its duration as the SDK's `request_<step>_seconds`.

    ``kserve.Model.__call__`` observes these three for calls that go through it; ours do not, and
    dashboards that are made for KServe show them.
    """
    timer: AbstractContextManager[object] = (
        _HISTOGRAMS[step].labels(**get_labels(model_name)).time()
    )
    return timer


def raw_data(tensor: Any) -> bytes | None:
    """Return the bytes of a ``kserve.InferInput`` that came as such, or None.

    Its one public way to them, ``as_numpy()``, fails on any fault in them.
    """
    raw: bytes | None = tensor._raw_data
    return raw


def rest_server(model_server: Any, *, grace_period: int, http_protocol: Any) -> Any:
    """Return the uvicorn server of a ``kserve.ModelServer``, with the SDK's routes on `own_app`.

    ``RESTServer`` offers no way to stop it (``kserve/protocol/rest/server.py``).

    Args:
        model_server: The ``ModelServer``.
        grace_period: Seconds that uvicorn waits for requests when it stops.
        http_protocol: The factory of the protocol of each connection.
    """
    server = RESTServer(
        _APP_NAME,
        model_server.dataplane,
        model_server.model_repository_extension,
        model_server.http_port,
        grace_period=grace_period,
        timeout_keep_alive=model_server.timeout_keep_alive,
    )
    guard(server.config, http_protocol)
    _add_to(own_app, server)
    return server._server


def guard(config: Any, http_protocol: Any) -> None:
    """Let a ``uvicorn.Config`` use our protocol for its connections.

    ``RESTServer`` passes no such option on. WebSockets would leave our protocol for another one.
    """
    config.http, config.ws = http_protocol, "none"


def add_routes(application: FastAPI, models: Any) -> None:
    """Put the SDK's routes and exception handlers on any application.

    Args:
        application: The application.
        models: A ``kserve.ModelRepository``.
    """
    plane = DataPlane(model_registry=models)
    extension = ModelRepositoryExtension(model_registry=models)
    _add_to(application, RESTServer(_APP_NAME, plane, extension, http_port=0))


def _add_to(application: FastAPI, server: Any) -> None:
    """Do what ``RESTServer.create_application`` does, in its order, but for the middleware.

    That times every request for a log that is off, which costs two system calls and some more.
    """
    server._register_endpoints(application)
    server._add_exception_handlers(application)
