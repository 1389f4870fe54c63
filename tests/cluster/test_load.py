"""The load against a server that answers as it is told, and against a real one."""

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


class Told(BaseHTTPRequestHandler):
    """Answers each request with the next of what it was told to, and then with 200."""

    outcomes: ClassVar[list[tuple[int, str]]] = []

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        status, said = self.outcomes.pop(0) if self.outcomes else (200, "{}")
        if status == 0:  # ends the connection, after so many seconds
            time.sleep(float(said))
            return
        self.send_response(status)
        self.end_headers()
        self.wfile.write(said.encode())

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    Told.outcomes = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Told) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("status", "said", "outcome"),
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
def test_what_became_of_a_request(address: str, status: int, said: str, outcome: str) -> None:
    Told.outcomes = [(status, said)]

    assert load.ask(address, "/v1/models/demo:predict") == outcome


def test_where_nobody_listens_a_request_is_refused() -> None:
    assert load.ask("127.0.0.1:1", "/") == "refused"


def test_a_request_that_was_refused_is_asked_again_and_a_lost_one_is_told(address: str) -> None:
    Told.outcomes = [(429, "")] * 10 + [(500, "gone")]
    found = load.Load(f"http://{address}", "demo", 1).run()

    assert found["refused"] == 10
    assert found["lost"] == ["500: gone"]
    assert found["answered"] > 0
    assert found["unanswered"] == 0


def test_a_request_that_is_never_answered_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "PATIENCE", 0.5)
    found = load.Load("http://127.0.0.1:1", "demo", 0.2).run()

    assert found["unanswered"] == load.USERS
    assert found["answered"] == 0


def test_the_program_asks_until_it_is_told_to_end(address: str) -> None:
    command = [sys.executable, "-c", Path(load.__file__).read_text(), f"http://{address}", "demo"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "The first request is answered.\n"
        program.terminate()
        found = json.loads(program.stdout.read())

    assert program.returncode == 0
    assert found["answered"] > 0
    assert (found["unanswered"], found["lost"]) == (0, [])


def test_the_program_asks_a_real_predictor() -> None:
    with serve(DEMO, "--max_model_len=256", name="demo") as server:
        server.await_ready()
        done = subprocess.run(
            [sys.executable, "-c", Path(load.__file__).read_text(), server.url, "demo", "2"],
            capture_output=True,
            text=True,
            check=True,
        )
    found = json.loads(done.stdout.splitlines()[-1])

    assert done.stdout.startswith("The first request is answered.\n")
    assert found["answered"] >= load.USERS
    assert (found["refused"], found["unanswered"], found["lost"]) == (0, 0, [])
