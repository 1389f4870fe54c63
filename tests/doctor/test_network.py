"""Ports and the hub."""

from __future__ import annotations

import socket
import ssl
import threading
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
    return network.check_hub(settings(model_id=name), surround(environ={"HF_ENDPOINT": endpoint}))


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


def test_without_a_model_of_the_hub_it_is_not_looked_up(surround: Surround) -> None:
    assert network.check_hub(settings(), surround()).state == "skipped"


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
