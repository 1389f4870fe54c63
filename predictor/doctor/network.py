"""Checks of the server's ports, and of the hub, bucket or web server with the model."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection, HTTPException, HTTPSConnection

from predictor.checkpoint.hub_answers import answered_within, hub_errors
from predictor.doctor.check import Check, Surroundings
from predictor.errors import CheckpointError, HubUnreachable, PredictorError
from predictor.quantity import format_bytes
from predictor.settings import Settings
from predictor.weights.remote.s3_source import MissingLibrary
from predictor.weights.remote.source import Listing, Source
from predictor.weights.remote.uri_source import source_of

_SECONDS = 5.0
"""Seconds for an answer of the hub."""

_SECONDS_TO_LIST = 30.0
"""Seconds for all answers of a bucket or a web server, which is requested file by file."""

_SECONDS_TO_READ = 10.0
"""Seconds for one answer of a web server. The command cannot end while a request waits for one."""


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


def check_source(settings: Settings, around: Surroundings) -> Check:
    """Check that the model can be fetched from where it is, unless that is a directory."""
    if settings.model_uri is not None:
        return _check_uri(settings.model_uri)
    if settings.model_id is not None:
        return _check_hub(settings.model_id, settings.model_revision, around)
    finding = "Neither model_uri nor model_id is set, so nothing is downloaded."
    return Check("model source", "skipped", finding)


def _check_uri(uri: str) -> Check:
    """Check a bucket or a web server as the server lists and reads it."""
    name = "model source"
    try:
        with closing(source_of(uri, seconds=_SECONDS_TO_READ)) as source:
            listing = answered_within(_SECONDS_TO_LIST, lambda: _listed(source))
    except HubUnreachable as error:
        finding = f"The source of model_uri cannot be read: {str(error).rstrip('.')}."
        remedy = (
            "Check DNS, the proxy (HTTPS_PROXY), the NetworkPolicy's egress and, for a bucket, "
            "AWS_ENDPOINT_URL and AWS_REGION. A start goes on without the source if an earlier one "
            "has fetched the model."
        )
        return Check(name, "failure", finding, remedy)
    except MissingLibrary as error:
        remedy = "Install accelerate-predictor[s3], or use the image, which has it."
        return Check(name, "failure", str(error), remedy)
    except PredictorError as error:
        remedy = (
            "Check model_uri, and the Secret with AWS_* for a bucket or MODEL_URI_AUTHORIZATION "
            "for a web server."
        )
        return Check(name, "failure", str(error), remedy)
    weights = listing.weights
    if not weights:
        finding = f"{source.name} holds no safetensors files."
        return Check(name, "failure", finding, "Check the folder that model_uri names.")
    size = format_bytes(sum(file.size for file in weights))
    finding = f"{source.name} has {size} of weights in {len(weights)} files, and may be read."
    return Check(name, "ok", finding)


def _listed(source: Source) -> Listing:
    """Return the files of a source; each kind of file was read, for listing may be allowed alone.

    Raises:
        HubUnreachable, CheckpointError, LoadFailed: As of `Source`.
    """
    listing = source.listing()
    configs = [file for file in listing.files if file.name == "config.json"]
    if not configs:
        raise CheckpointError(f"{source.name} has no config.json.")
    for file in (*configs, *listing.weights[:1]):
        for _ in source.read(file, 0, min(1, file.size)):
            pass
    return listing


def _check_hub(model_id: str, revision: str | None, around: Surroundings) -> Check:
    """Check that the hub gives access to the model."""
    from huggingface_hub import HfApi

    api = HfApi(endpoint=around.environ.get("HF_ENDPOINT"), token=around.environ.get("HF_TOKEN"))
    try:
        with hub_errors(model_id):
            info = answered_within(
                _SECONDS, lambda: api.model_info(model_id, revision=revision, timeout=_SECONDS)
            )
    except HubUnreachable as error:
        finding = f"{model_id} cannot be looked up: {str(error).rstrip('.')}."
        remedy = (
            "Check DNS, the proxy (HTTPS_PROXY), the NetworkPolicy's egress and HF_ENDPOINT. A "
            "start goes on without the hub if HF_HOME has all files."
        )
        return Check("hub", "failure", finding, remedy)
    except PredictorError as error:
        remedy = "Check model_id and model_revision, and the Secret with HF_TOKEN."
        return Check("hub", "failure", str(error), remedy)
    return Check("hub", "ok", f"{model_id} is there, at commit {info.sha}.")
