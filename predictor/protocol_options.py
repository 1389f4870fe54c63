"""The options of the protocols as the settings have them, which no protocol knows."""

from __future__ import annotations

from predictor.admission import AdmissionController
from predictor.cache_scope import ScopeHeader
from predictor.protocol.app import Surface
from predictor.protocol.http.authentication import ApiKeys
from predictor.protocol.http.certificate import Certificate
from predictor.protocol.http.connections import ConnectionLimits
from predictor.protocol.http.tracing import RequestTracer
from predictor.protocol.kserve.grpc_bounds import GrpcBounds
from predictor.protocol.openai.adapters import Adapters
from predictor.settings import Settings

_FORM_BYTES = 16 * 1024
"""Bytes of a form besides the file in it."""


def surface_of(
    settings: Settings,
    keys: ApiKeys,
    adapters: Adapters | None,
    tracer: RequestTracer | None = None,
) -> Surface:
    """Return the routes that are served, and to whom."""
    return Surface(
        settings.max_body_size,
        load_unload=settings.enable_load_unload,
        torchserve=settings.torchserve_api,
        tgi=settings.tgi_api,
        openai_prefix=settings.openai_route_prefix,
        keys=keys,
        adapters=adapters,
        allowed_origins=settings.allowed_origins,
        access_log=settings.access_log,
        docs=settings.enable_docs_url,
        ui=settings.ui,
        scope_header=ScopeHeader(settings.scope_header()),
        tracer=tracer,
        uploads=_uploads(settings),
    )


def _uploads(settings: Settings) -> dict[str, int]:
    """Return the most bytes of a file that is uploaded, with the form around it, by its path."""
    if settings.batch_dir is None:
        return {}
    size = settings.batch_file_size + _FORM_BYTES
    return {f"{prefix}/v1/files": size for prefix in (settings.openai_route_prefix, "")}


def certificate_of(settings: Settings) -> Certificate | None:
    """Return the certificate of REST and gRPC; None if they have no TLS.

    Raises:
        ConfigurationError: It cannot be used.
    """
    if settings.ssl_certfile is None or settings.ssl_keyfile is None:
        return None
    return Certificate(settings.ssl_certfile, settings.ssl_keyfile)


def connection_limits_of(settings: Settings) -> ConnectionLimits:
    """Return the limits of HTTP connections."""
    return ConnectionLimits(
        connections=settings.max_connections,
        header_bytes=settings.max_header_size,
        header_count=settings.max_header_count,
        timeout=settings.client_timeout,
        body_rate=settings.min_body_rate,
    )


def grpc_bounds_of(settings: Settings, admission: AdmissionController) -> GrpcBounds:
    """Return the limits of gRPC connections and calls."""
    return GrpcBounds(
        admission,
        settings.max_body_size,
        connections=settings.max_connections,
        header_bytes=settings.max_header_size,
        timeout=settings.client_timeout,
        body_rate=settings.min_body_rate,
    )
