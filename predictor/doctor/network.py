"""Checks of the server's ports and of the hub."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPException, HTTPSConnection

from predictor.checkpoint.hub_answers import answered_within, hub_errors
from predictor.doctor.check import Check, Surroundings
from predictor.errors import HubUnreachable, PredictorError
from predictor.settings import Settings

_SECONDS = 5.0
"""Seconds for an answer of the hub."""


def check_ports(settings: Settings) -> Iterator[Check]:
    """Check that the ports are free."""
    ports = {"REST port": settings.http_port}
    if settings.enable_grpc:
        ports["gRPC port"] = settings.grpc_port
    if settings.http_port and _server_answers(settings):
        for name, port in ports.items():
            yield Check(name, "ok", f"A predictor serves in this container, with {name} {port}.")
        return
    for name, port in ports.items():
        yield _check_port(name, settings.host, port)


def _server_answers(settings: Settings) -> bool:
    """Return whether a server of this kind answers at the REST port."""
    connection = _connection(settings)
    try:
        connection.request("GET", "/v2/health/live")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def _connection(settings: Settings) -> HTTPConnection:
    """Return a connection to the REST port, over TLS if the server has a certificate.

    The certificate is not verified: it names the Service, and not this address.
    """
    host = "127.0.0.1" if settings.host == "0.0.0.0" else settings.host  # noqa: S104
    if settings.ssl_certfile is None:
        return HTTPConnection(host, settings.http_port, timeout=_SECONDS)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return HTTPSConnection(host, settings.http_port, timeout=_SECONDS, context=context)


def _check_port(name: str, host: str, port: int) -> Check:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            finding = f"{host}:{port} cannot be bound: {error.strerror}."
            remedy = "Another process has it: set another port."
            return Check(name, "failure", finding, remedy)
    return Check(name, "ok", f"{host}:{port} is free.")


def check_hub(settings: Settings, around: Surroundings) -> Check:
    """Check that the hub gives access to the model."""
    name = settings.model_id
    if name is None:
        return Check("hub", "skipped", "model_id is not set, so nothing is downloaded.")
    from huggingface_hub import HfApi

    api = HfApi(endpoint=around.environ.get("HF_ENDPOINT"), token=around.environ.get("HF_TOKEN"))
    revision = settings.model_revision
    try:
        with hub_errors(name):
            info = answered_within(
                _SECONDS, lambda: api.model_info(name, revision=revision, timeout=_SECONDS)
            )
    except HubUnreachable as error:
        finding = f"{name} cannot be looked up: {str(error).rstrip('.')}."
        remedy = (
            "Check DNS, the proxy (HTTPS_PROXY), the NetworkPolicy's egress and HF_ENDPOINT. A "
            "start goes on without the hub if HF_HOME has all files."
        )
        return Check("hub", "failure", finding, remedy)
    except PredictorError as error:
        remedy = "Check model_id and model_revision, and the Secret with HF_TOKEN."
        return Check("hub", "failure", str(error), remedy)
    return Check("hub", "ok", f"{name} is there, at commit {info.sha}.")
