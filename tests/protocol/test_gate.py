"""Admission before the body is read, and permits that always come back, over real sockets."""

from __future__ import annotations

import concurrent.futures
import contextlib
import gc
import http.client
import json
import os
import random
import socket
import time
from collections.abc import Iterator

import httpx
import pytest
from prometheus_client import REGISTRY

from predictor.admission import AdmissionLimits
from predictor.protocol.http import sse
from predictor.protocol.http.body_weight import counted_bytes
from tests.protocol.stub import MAX_BODY_BYTES, Served, serve
from tests.protocol.wire import PREDICT

LIMITS = AdmissionLimits(requests=4, body_bytes=MAX_BODY_BYTES + 100, sequences=8, tokens=1000)
BODY = b'{"instances": ["a"]}'


@pytest.fixture(scope="module")
def running() -> Iterator[Served]:
    with serve(admission=LIMITS, torchserve=True) as served:
        yield served


def post(length: int | None, path: str = PREDICT, accept: str = "*/*") -> bytes:
    size = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\n{size}\r\n\r\n".encode()


@contextlib.contextmanager
def sending(served: Served, data: bytes) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", served.http_port), timeout=30) as connection:
        connection.sendall(data)
        yield connection


def await_requests(served: Served, count: int) -> None:
    deadline = time.monotonic() + 20
    while served.admission.requests != count:
        assert time.monotonic() < deadline, f"{served.admission.requests} are in flight"
        time.sleep(0.002)


def rejected(protocol: str) -> float:
    labels = {"model_name": "echo", "protocol": protocol, "outcome": "rejected"}
    return REGISTRY.get_sample_value("predictor_requests_total", labels) or 0.0


@pytest.fixture
def full(served: Served) -> Iterator[Served]:
    """As many requests as allowed, which have sent half of their bodies."""
    with contextlib.ExitStack() as stack:
        for _ in range(LIMITS.requests):
            stack.enter_context(sending(served, post(len(BODY)) + BODY[:5]))
        await_requests(served, LIMITS.requests)
        yield served
    await_requests(served, 0)


@pytest.mark.parametrize(
    ("path", "code", "protocol"),
    [
        (PREDICT, 429, "v1"),
        ("/v2/models/echo/infer", 429, "v2"),
        ("/v2/models/echo/generate", 429, "generate"),
        ("/openai/v1/completions", 429, "openai"),
        ("/embed", 429, "tei"),
        ("/predictions/echo", 503, "torchserve"),
    ],
)
def test_one_request_too_many_is_refused_with_its_body_unread(
    full: Served, path: str, code: int, protocol: str
) -> None:
    before = rejected(protocol)
    with sending(full, post(200_000, path)) as connection:  # of which not a byte is sent
        answer = connection.recv(65536)
        while data := connection.recv(65536):
            answer += data
    head, _, body = answer.partition(b"\r\n\r\n")
    assert int(head.split()[1]) == code
    assert b"\r\nretry-after: " in head.lower()
    assert b"4 requests are running and waiting" in body
    assert rejected(protocol) == before + 1


def test_questions_without_a_body_are_always_answered(full: Served, client: httpx.Client) -> None:
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/echo", "/metrics", "/ping"):
        assert client.get(path).status_code == 200


def test_bodies_of_unknown_length_claim_more_as_they_arrive(
    served: Served, client: httpx.Client
) -> None:
    with sending(served, post(None)) as connection:
        await_requests(served, 1)
        assert served.admission.body_bytes == 64 * 1024
        connection.sendall(b"%x\r\n" % 100_000 + b" " * 100_000 + b"\r\n")
        await_bytes(served, 100_000 + 64 * 1024)
        assert client.post(PREDICT, content=BODY).status_code == 200
        refused = client.post(PREDICT, content=BODY + b" " * 100_000)
        assert refused.status_code == 429
        served.model.held = True
        connection.sendall(b"14\r\n" + BODY + b"\r\n0\r\n\r\n")
        await_bytes(served, 100_000 + counted_bytes(BODY))
        served.model.held = False
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
    await_requests(served, 0)
    assert served.admission.body_bytes == 0


def await_bytes(served: Served, count: int) -> None:
    deadline = time.monotonic() + 20
    while served.admission.body_bytes != count:
        assert time.monotonic() < deadline, f"{served.admission.body_bytes} bytes are in flight"
        time.sleep(0.002)


@pytest.mark.parametrize("path", [PREDICT, "/test/typed", "/openai/v1/completions"])
def test_a_body_of_unknown_length_that_grows_too_large_for_the_rest_is_refused(
    served: Served, path: str
) -> None:
    with (
        sending(served, post(MAX_BODY_BYTES - 80_000)),
        sending(served, post(None, path)) as connection,
    ):
        await_requests(served, 2)
        connection.sendall(b"%x\r\n" % 100_000 + b" " * 100_000 + b"\r\n")
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert answer.status == 429
        assert b"bytes, and this one" in answer.read()
    await_requests(served, 0)
    assert served.admission.body_bytes == 0


def test_a_body_counts_for_its_lists_and_objects(served: Served) -> None:
    body = b'{"instances": ["' + b"x" * 5000 + b'"], "parameters": {}}'
    served.model.held = True
    with sending(served, post(len(body)) + body):
        await_bytes(served, len(body) + 11 + 2 * 13 + 6 * 3 + 2 * 5 + 4)
    served.model.held = False
    await_requests(served, 0)


@pytest.mark.parametrize("is_chunked", [False, True])
@pytest.mark.parametrize("entry", [b"{},", b"[],", b"[[[[0]]]],", b'{"":0},'])
def test_a_body_that_would_take_more_memory_than_is_planned_is_413(
    client: httpx.Client, entry: bytes, is_chunked: bool
) -> None:
    body = b'{"instances": [' + entry * (200_000 // len(entry)) + b"0]}"
    answer = client.post(PREDICT, content=iter([body]) if is_chunked else body)
    assert answer.status_code == 413, answer.text
    assert "so many numbers, short texts, lists and objects" in answer.text


@pytest.mark.parametrize("size", ["", "Transfer-Encoding: chunked\r\n"])
def test_bodies_that_do_not_come_keep_no_others_out(
    served: Served, client: httpx.Client, size: str
) -> None:
    silent = f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\n{size}\r\n".encode()
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(sending(served, silent)) for _ in range(3)]
        if size:
            await_requests(served, 3)
        else:
            assert all(b" 400 " in connection.recv(65536) for connection in connections)
        assert client.post(PREDICT, content=BODY + b" " * 50_000).status_code == 200


def test_a_request_without_a_body_takes_no_bytes(served: Served) -> None:
    with sending(served, post(MAX_BODY_BYTES)):
        await_requests(served, 1)
        bare = f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        with sending(served, bare) as connection:
            assert connection.recv(65536).startswith(b"HTTP/1.1 400")


def test_refused_clients_are_told_when_to_come_back(full: Served, client: httpx.Client) -> None:
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: client.post(PREDICT, content=BODY), range(40)))
    assert {answer.status_code for answer in answers} == {429}
    assert all(1 <= int(answer.headers["retry-after"]) <= 60 for answer in answers)


def test_the_next_request_is_admitted_as_soon_as_the_answer_is_there(
    served: Served, client: httpx.Client
) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(LIMITS.requests - 1):
            stack.enter_context(sending(served, post(len(BODY))))
        await_requests(served, LIMITS.requests - 1)
        for accept in ["*/*", "text/event-stream"] * 25:
            answer = client.post(PREDICT, content=BODY, headers={"accept": accept})
            assert answer.status_code == 200


def test_an_answer_that_is_not_read_keeps_its_permit(served: Served) -> None:
    served.model.answers = 4_000_000
    try:
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", served.http_port))
            connection.sendall(post(len(BODY)) + BODY)
            time.sleep(0.5)
            assert served.admission.requests == 1
        await_requests(served, 0)
    finally:
        served.model.answers = 1


def test_a_waiting_stream_says_that_it_lives(
    served: Served, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "_SECONDS_OF_SILENCE", 0.05)
    served.model.held = True
    headers = {"accept": "text/event-stream"}
    with client.stream("POST", PREDICT, content=BODY, headers=headers) as response:
        lines = response.iter_lines()
        first = [next(lines) for _ in range(6)]
        served.model.held = False
        events = [line for line in lines if line and not line.startswith(":")]
    assert first == [": ping", ""] * 3
    assert [json.loads(event.removeprefix("data: "))["text"] for event in events] == ["A"]


def test_clients_that_hang_up_at_any_moment_leave_nothing(served: Served) -> None:
    chance = random.Random(5)
    streaming = "text/event-stream"
    whole = [post(len(BODY), accept=accept) + BODY for accept in ("*/*", streaming)]
    chunked = post(None) + b"14\r\n" + BODY + b"\r\n0\r\n\r\n"

    def hang_up(number: int) -> None:
        served.model.held = number % 3 > 0
        data = chance.choice([*whole, chunked])
        with sending(served, data[: chance.randrange(len(data) + 1)]) as connection:
            if chance.random() < 0.5:
                time.sleep(chance.random() / 50)
            if chance.random() < 0.5:  # with a reset, or in order
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0" + bytes(4))

    gc.collect()
    files = len(os.listdir("/proc/self/fd"))
    gc.disable()  # nothing may depend on it
    try:
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            list(pool.map(hang_up, range(500)))
        served.model.held = False
        await_requests(served, 0)
        deadline = time.monotonic() + 20
        while len(os.listdir("/proc/self/fd")) > files or len(served.tasks()) > 0:
            assert time.monotonic() < deadline, (os.listdir("/proc/self/fd"), served.tasks())
            time.sleep(0.01)
    finally:
        gc.enable()
    assert served.admission.body_bytes == 0
