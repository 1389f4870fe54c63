"""The load on a scripted server, and on a real one."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from tests.cluster import load
from tests.server.process import serve

DEMO = Path(__file__).parents[2] / "examples" / "demo-model"


class ScriptedHandler(BaseHTTPRequestHandler):
    """Answers each request with the next scripted outcome, and then with 200."""

    script: ClassVar[list[tuple[int, str]]] = []

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        status, body = self.script.pop(0) if self.script else (200, "{}")
        if status == 0:  # close the connection after so many seconds
            time.sleep(float(body))
            return
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    ScriptedHandler.script = []
    with ThreadingHTTPServer(("127.0.0.1", 0), ScriptedHandler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("status", "body", "outcome"),
    [
        (200, "{}", "answered"),
        (503, '{"error": "Model \'demo\' is not ready."}', "refused"),
        (429, "", "refused"),
        (503, '{"error": "The model broke."}', '503: {"error": "The model broke."}'),
        (500, "", "500: "),
        (0, "0", "refused"),
        (0, "0.4", "RemoteDisconnected after 0.4 s"),
    ],
)
def test_the_outcome_of_a_request(address: str, status: int, body: str, outcome: str) -> None:
    ScriptedHandler.script = [(status, body)]

    assert load.send(address, "/v1/models/demo:predict") == outcome


def test_a_request_to_a_closed_port_is_refused() -> None:
    assert load.send("127.0.0.1:1", "/") == "refused"


def test_a_refused_request_is_retried_and_a_lost_one_is_reported(address: str) -> None:
    ScriptedHandler.script = [(429, "")] * 10 + [(500, "gone")]
    outcomes = load.Load(f"http://{address}", "demo", 1).run()

    assert outcomes["refused"] == 10
    assert outcomes["lost"] == ["500: gone"]
    assert outcomes["answered"] > 0
    assert outcomes["unanswered"] == 0


def test_a_request_that_is_never_answered_is_reported() -> None:
    outcomes = load.Load("http://127.0.0.1:1", "demo", 0.2, retry_seconds=0.5).run()

    assert outcomes["unanswered"] == load.USERS
    assert outcomes["answered"] == 0


def test_the_program_sends_requests_until_sigterm(address: str) -> None:
    command = [sys.executable, "-c", Path(load.__file__).read_text(), f"http://{address}", "demo"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "The first request is answered.\n"
        program.terminate()
        outcomes = json.loads(program.stdout.read())

    assert program.returncode == 0
    assert outcomes["answered"] > 0
    assert (outcomes["unanswered"], outcomes["lost"]) == (0, [])


def test_the_program_with_a_real_predictor() -> None:
    with serve(DEMO, "--max_model_len=256", name="demo") as server:
        server.await_ready()
        done = subprocess.run(
            [sys.executable, "-c", Path(load.__file__).read_text(), server.url, "demo", "4"],
            capture_output=True,
            text=True,
            check=True,
        )
    outcomes = json.loads(done.stdout.splitlines()[-1])

    assert done.stdout.startswith("The first request is answered.\n")
    assert outcomes["answered"] >= load.USERS
    assert (outcomes["refused"], outcomes["unanswered"], outcomes["lost"]) == (0, 0, [])
