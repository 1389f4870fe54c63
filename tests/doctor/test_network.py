"""Ports and the hub."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from predictor.doctor import network
from predictor.doctor.check import Check
from tests.certificates import self_signed
from tests.doctor.conftest import Surround, settings
from tests.hub import COMMIT, Hub
from tests.server.process import Served
from tests.weights.remote.s3 import endpoint, fill_bucket
from tests.weights.remote.web import Files, web

__all__ = ["endpoint"]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[str, type[Hub]]]:
    """A hub with one repository, and its address."""

    class OneModel(Hub):
        folder, repository, requested = tmp_path, "org/model", []

    (tmp_path / "config.json").write_text("{}")
    with ThreadingHTTPServer(("127.0.0.1", 0), OneModel) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", OneModel
        server.shutdown()


def look_up(surround: Surround, endpoint: str, name: str = "org/model") -> Check:
    around = surround(environ={"HF_ENDPOINT": endpoint})
    return network.check_source(settings(model_id=name), around)


def test_a_model_of_the_hub_is_there_or_not(surround: Surround, hub: tuple[str, type[Hub]]) -> None:
    endpoint, _ = hub
    assert look_up(surround, endpoint).finding == f"org/model is there, at commit {COMMIT}."
    missing = look_up(surround, endpoint, "org/other")
    assert (missing.state, missing.remedy.split()[:2]) == ("failure", ["Check", "model_id"])


def test_a_hub_that_does_not_answer_is_a_failure_with_what_to_check(
    surround: Surround, hub: tuple[str, type[Hub]]
) -> None:
    endpoint, model = hub
    model.fault = ("/api/models", 503)
    assert "status 503" in look_up(surround, endpoint).finding
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        refused = look_up(surround, f"http://127.0.0.1:{free.getsockname()[1]}")
    assert refused.state == "failure"
    assert "NetworkPolicy" in refused.remedy


def test_a_model_in_a_directory_is_not_looked_up(surround: Surround) -> None:
    assert network.check_source(settings(), surround()).state == "skipped"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a model of 10 KiB."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(bytes(10240))
    return model


def try_uri(surround: Surround, uri: str) -> Check:
    check = network.check_source(settings(model_uri=uri), surround())
    assert "hidden" not in f"{check.finding} {check.remedy}"
    return check


def test_a_model_on_a_web_server_is_read_as_the_server_does(
    surround: Surround, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with web(folder, authorization="Bearer hidden") as (url, server):
        signed = f"{url}?signature=hidden"
        denied = try_uri(surround, signed)
        monkeypatch.setenv("MODEL_URI_AUTHORIZATION", "Bearer hidden")
        granted = try_uri(surround, signed)
        server.limits.append(("Retry-After", "40"))
        busy = try_uri(surround, signed)
        (folder / "config.json").unlink()
        incomplete = try_uri(surround, signed)

    assert (denied.state, "status 401" in denied.finding) == ("failure", True)
    assert "MODEL_URI_AUTHORIZATION" in denied.remedy
    sentence = f"{url}/ has 10.00 KiB of weights in 1 files, and may be read."
    assert (granted.state, granted.finding) == ("ok", sentence)
    assert (busy.state, "status 429" in busy.finding) == ("failure", True)
    assert incomplete.finding == f"{url}/ has no config.json."
    assert server.ranges
    assert all(last - first <= 1 for _, first, last in server.ranges)  # no weight was fetched


def test_a_web_server_that_does_not_answer_takes_bounded_time(
    surround: Surround, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "_SECONDS_TO_LIST", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        check = try_uri(surround, f"http://127.0.0.1:{silent.getsockname()[1]}/models")
    assert check.finding == "The source of model_uri cannot be read: no answer in 0.3 s."
    assert "NetworkPolicy" in check.remedy


@pytest.mark.parametrize(("shards", "seconds"), [(200, 0.3), (1, 8)], ids=["slow", "silent"])
def test_nothing_of_a_check_goes_on_after_its_answer(
    surround: Surround, folder: Path, monkeypatch: pytest.MonkeyPatch, shards: int, seconds: float
) -> None:
    """A process joins its pools' threads at its end, so the command would not end either."""

    def answer_late(request: Files) -> None:
        if not request.path.endswith("index.json"):
            released.wait(seconds)
        with contextlib.suppress(OSError):
            Files.do_GET(request)

    released = threading.Event()
    monkeypatch.setattr(network, "_SECONDS_TO_LIST", 0.5)
    monkeypatch.setattr(network, "_SECONDS_TO_READ", 1.0)
    names = [f"model-{number}.safetensors" for number in range(shards)]
    for name in names:
        (folder / name).write_bytes(bytes(8))
    index = {"weight_map": dict(zip(names, names, strict=True))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with web(folder, do_GET=answer_late) as (url, _):
        check = try_uri(surround, url)
        lingering = [each for each in threading.enumerate() if each.name.startswith("listing")]
        ends = time.monotonic() + 3
        for thread in lingering:
            thread.join(max(ends - time.monotonic(), 0))
        alive = [thread for thread in lingering if thread.is_alive()]
        released.set()
    assert (check.state, "no answer in 0.5 s" in check.finding) == ("failure", True)
    assert lingering
    assert alive == []


def test_a_bucket_without_the_library_says_what_to_install(
    surround: Surround, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    check = try_uri(surround, "s3://models/tiny")
    assert (check.state, "needs the package obstore" in check.finding) == ("failure", True)
    assert check.remedy == "Install accelerate-predictor[s3], or use the image, which has it."
    monkeypatch.undo()
    assert try_uri(surround, "s3:///tiny").remedy.startswith("Check model_uri")


def test_a_model_in_a_bucket_is_read_as_the_server_does(
    surround: Surround, endpoint: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = fill_bucket(endpoint, folder, monkeypatch, "doctor")
    check = try_uri(surround, uri)
    assert check.finding == f"{uri} has 10.00 KiB of weights in 1 files, and may be read."
    empty = try_uri(surround, "s3://models/none")
    assert (empty.state, empty.finding) == ("failure", "s3://models/none holds no files.")
    monkeypatch.setattr("predictor.weights.remote.s3_source._SECONDS_TO_RETRY", 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    away = try_uri(surround, uri)
    assert (away.state, "AWS_ENDPOINT_URL" in away.remedy) == ("failure", True)


def test_a_port_of_another_process_is_a_failure() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        other.settimeout(0)
        port = other.getsockname()[1]
        taken, free = network.check_ports(settings(host="127.0.0.1", http_port=0, grpc_port=port))
        assert (taken.state, free.state) == ("ok", "failure")


def test_ports_of_a_running_server_are_its_own(served: Served) -> None:
    port = served.url.rpartition(":")[2]
    checks = list(network.check_ports(settings(host="127.0.0.1", http_port=port)))
    assert {check.state for check in checks} == {"ok"}
    assert "A predictor serves" in checks[0].finding


class Alive(BaseHTTPRequestHandler):
    """Answers as a live server does, and nothing else."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/v2/health/live" else 404)
        self.end_headers()


def test_ports_of_a_running_server_with_tls_are_its_own(tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path, "model.namespace.svc")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with ThreadingHTTPServer(("127.0.0.1", 0), Alive) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        given = settings(
            host="127.0.0.1",
            http_port=server.server_port,
            ssl_certfile=certificate,
            ssl_keyfile=key,
        )
        checks = list(network.check_ports(given))
        server.shutdown()
    assert {check.state for check in checks} == {"ok"}
    assert "A predictor serves" in checks[0].finding
