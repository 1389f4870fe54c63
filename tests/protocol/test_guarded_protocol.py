"""The bounds of a connection, and answers that reach the client, over real sockets."""

from __future__ import annotations

import contextlib
import http.client
import logging
import socket
import time
from collections.abc import Iterator

import httpx
import pytest

from predictor.protocol.http import lingering_protocol
from predictor.protocol.http.connections import ConnectionLimits
from tests.protocol.stub import MAX_BODY_BYTES, Served, serve
from tests.protocol.wire import PREDICT

LIMITS = ConnectionLimits(
    connections=8, header_bytes=4096, header_count=20, timeout=0.5, body_rate=200_000
)
LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n"


@pytest.fixture(scope="module")
def guarded() -> Iterator[Served]:
    with pytest.MonkeyPatch.context() as patch, serve(limits=LIMITS) as served:
        patch.setattr(lingering_protocol, "_REST_SECONDS", 1.0)
        yield served


@contextlib.contextmanager
def connected(served: Served) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", served.http_port), timeout=30) as connection:
        yield connection


def all_of(connection: socket.socket) -> bytes:
    """Everything until the server closes; fails if it resets."""
    received = b""
    while data := connection.recv(65536):
        received += data
    return received


def one_of(connection: socket.socket) -> int:
    """The status of one answer, which is taken whole."""
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    answer.read()
    return answer.status


def status(answer: bytes) -> int:
    return int(answer.split(maxsplit=2)[1])


def post(path: str, length: int, *, more: str = "") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n{more}\r\n"
    return head.encode()


def test_headers_within_the_bounds_are_taken(guarded: Served) -> None:
    headers = {f"x-{number}": "b" * 100 for number in range(10)}
    assert httpx.get(f"{guarded.url}/v2/health/live", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("head", "code"),
    [
        (LIVE + b"x-a: b\r\n" * 30 + b"\r\n", 431),
        (LIVE + b"x-a: " + b"b" * 5000 + b"\r\n\r\n", 431),
        (LIVE + b"x-a: " + b"b" * 2**20, 431),
        (LIVE + b"x" * 2**20, 431),
        (b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET /" + b"a" * 2**20, 414),
        (b"\x16\x03\x01\x02\x00\x01\x00", 400),
    ],
    ids=["many", "large", "one of 1 MiB", "an endless name", "target", "endless target", "TLS"],
)
def test_headers_over_the_bounds_are_refused_and_the_status_arrives(
    guarded: Served, head: bytes, code: int
) -> None:
    with connected(guarded) as connection:
        connection.sendall(head)
        answer = all_of(connection)
    assert status(answer) == code
    assert b"connection: close" in answer.lower()
    assert answer.rpartition(b"\r\n\r\n")[2].startswith(b'{"error":')


def test_headers_without_an_end_are_refused_while_they_come(guarded: Served) -> None:
    sent = 0
    with connected(guarded) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(LIVE)
        while sent < 64 * 2**20:
            sent += connection.send(b"x-a: bbbbbbbbbbbbbbbb\r\n" * 1000)
    assert sent < 48 * 2**20  # what is dropped, and the buffers of two sockets


def test_trailers_are_bounded_and_never_become_headers(guarded: Served) -> None:
    head = f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    body = b'13\r\n{"instances": ["a"]}\r\n0\r\n'.replace(b"13", b"14")
    with connected(guarded) as connection:
        connection.sendall(head + body + b"x-request-timeout: nonsense\r\nConnection: x\r\n\r\n")
        assert status(connection.recv(65536)) == 200
    with connected(guarded) as connection:
        connection.sendall(head + body + b"x-a: b\r\n" * 10_000)
        assert status(all_of(connection)) == 431


def test_a_flood_of_framing_is_refused(guarded: Served) -> None:
    head = f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    with connected(guarded) as connection:
        connection.sendall(head + b"1;" + b"a" * 2**20)
        assert status(all_of(connection)) == 400
    with connected(guarded) as connection:  # chunks of one byte are no flood
        body = b'{"instances": ["a"]}'
        chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body)
        connection.sendall(head + chunks + b"0\r\n\r\n")
        assert status(connection.recv(65536)) == 200


@pytest.mark.parametrize(
    "head",
    [
        post("/nothing", 200_000, more="Connection: close\r\n"),
        post("/nothing", 200_000),
        post("/v2/health/live", 200_000),
        post(PREDICT, MAX_BODY_BYTES + 1),
        post("/nothing", 200_000).replace(b"Content-Length: 200000", b"Transfer-Encoding: chunked"),
    ],
    ids=["404 and close", "404", "405", "413", "404 of chunks"],
)
def test_the_status_of_an_early_answer_is_not_lost(guarded: Served, head: bytes) -> None:
    for _ in range(10):
        with connected(guarded) as connection:
            connection.sendall(head)
            time.sleep(0.02)  # so that the answer is given before the body comes
            connection.sendall(b"3\r\nabc\r\n" * 40_000)
            answer = all_of(connection)
        assert status(answer) in (404, 405, 413)
        assert b"connection: close" in answer.lower()


def test_an_endless_rest_is_cut_off(guarded: Served) -> None:
    sent = 0
    with connected(guarded) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(post("/nothing", 10**12))
        while sent < 200 * 2**20:
            sent += connection.send(b" " * 65536)
    assert sent < 100 * 2**20


def test_a_connection_whose_body_was_read_is_kept(guarded: Served) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", guarded.http_port, timeout=30)
    for path, code in ((PREDICT, 200), ("/nothing", 404), ("/nothing", 404), (PREDICT, 200)):
        connection.request("POST", path, b'{"instances": ["a"]}')
        used = connection.sock
        answer = connection.getresponse()
        answer.read()
        assert (answer.status, answer.headers["Connection"]) == (code, None)
        assert connection.sock is used
    connection.close()


@pytest.mark.parametrize(
    "part",
    [LIVE, b"GET", post(PREDICT, 100), post(PREDICT, 100) + b'{"instances"'],
    ids=["headers", "a method", "no body", "half a body"],
)
def test_a_sender_that_falls_silent_is_cut_off_with_408(guarded: Served, part: bytes) -> None:
    with connected(guarded) as connection:
        connection.sendall(part)
        assert status(all_of(connection)) == 408


def test_a_header_that_drips_is_cut_off(guarded: Served) -> None:
    with connected(guarded) as connection:
        connection.sendall(LIVE)
        with pytest.raises(ConnectionError):
            send_for_ever(connection, b"x")


def test_a_connection_that_says_nothing_is_closed(guarded: Served) -> None:
    with connected(guarded) as connection, contextlib.suppress(ConnectionError):
        assert all_of(connection) == b""
    with connected(guarded) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(b"\r\n")
        assert all_of(connection) == b""


def test_a_slow_body_that_keeps_its_rate_is_taken(guarded: Served) -> None:
    body = b'{"instances": ["a"]}' + b" " * 200_000
    with connected(guarded) as connection:
        connection.sendall(post(PREDICT, len(body)))
        for start in range(0, len(body), 20_000):
            connection.sendall(body[start : start + 20_000])
            time.sleep(0.08)  # together longer than the time that a body has at no rate
        assert status(connection.recv(65536)) == 200


def test_a_late_408_has_the_form_of_its_path(guarded: Served) -> None:
    with connected(guarded) as connection:
        connection.sendall(post("/openai/v1/completions", 100))
        answer = all_of(connection)
    assert status(answer) == 408
    assert b'"type":"invalid_request_error"' in answer


def test_pipelined_requests_are_answered_in_order_and_bounded(guarded: Served) -> None:
    with connected(guarded) as connection:
        connection.sendall((LIVE + b"\r\n") * 3 + LIVE + b"Connection: close\r\n\r\n")
        assert all_of(connection).count(b"HTTP/1.1 200") == 4
    with connected(guarded) as connection:
        connection.sendall((LIVE + b"\r\n") * 1000)
        assert 1 <= all_of(connection).count(b"HTTP/1.1 200") < 20


def test_a_bad_request_behind_a_good_one_does_not_take_its_answer(guarded: Served) -> None:
    with connected(guarded) as connection:
        connection.sendall(LIVE + b"\r\n" + b"nonsense\r\n\r\n")
        answer = all_of(connection)
    assert status(answer) == 200
    assert answer.count(b"HTTP/1.1") == 1


def test_no_connection_becomes_a_websocket(guarded: Served) -> None:
    upgrade = b"Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: a\r\n"
    with connected(guarded) as connection:
        connection.sendall(LIVE + upgrade + b"\r\n")
        assert status(all_of(connection)) == 200


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("is_chunked", [True, False])
def test_a_client_that_asks_for_an_upgrade_keeps_its_body(
    guarded: Served, *, is_chunked: bool, at_once: bool
) -> None:
    """As the clients of Java, which ask for HTTP/2 in their first request."""
    h2c = "Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AA\r\nUpgrade: h2c\r\n"
    head, body = post(PREDICT, 20, more=h2c), b'{"instances": ["a"]}'
    if is_chunked:
        head = head.replace(b"Content-Length: 20", b"Transfer-Encoding: chunked")
        body = b"14\r\n" + body + b"\r\n0\r\n\r\n"
    with connected(guarded) as connection:
        for data in [head + body + LIVE] if at_once else [head, body[:7], body[7:]]:
            connection.sendall(data)
            time.sleep(0.02)
        answer = all_of(connection)
    assert status(answer) == 200
    assert b'"text":"A"' in answer.replace(b" ", b"")
    assert answer.count(b"HTTP/1.1") == 1


def test_a_wrong_body_of_a_client_that_asks_for_an_upgrade_is_refused(
    guarded: Served, caplog: pytest.LogCaptureFixture
) -> None:
    more = "Connection: upgrade\r\nUpgrade: h2c\r\nTransfer-Encoding: chunked\r\n"
    head = f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\n{more}\r\n".encode()
    for data in (head + b"nonsense\r\n", head.replace(b"chunked", b"gzip") + b"nonsense\r\n"):
        with connected(guarded) as connection:
            connection.sendall(data)
            assert status(all_of(connection)) == 400
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_client_that_asks_for_an_upgrade_and_falls_silent_is_cut_off(guarded: Served) -> None:
    with connected(guarded) as connection:
        connection.sendall(post(PREDICT, 20, more="Connection: upgrade\r\nUpgrade: h2c\r\n"))
        assert status(all_of(connection)) == 408


def test_a_probe_is_answered_however_many_connections_are_open(guarded: Served) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(5 * LIMITS.connections):
            connection = stack.enter_context(connected(guarded))
            connection.sendall(LIVE)  # and no end
            with connected(guarded) as probe:
                probe.sendall(LIVE + b"\r\n")
                assert one_of(probe) == 200


def test_a_client_that_does_not_read_its_answer_is_cut_off(guarded: Served) -> None:
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(30)
        connection.connect(("127.0.0.1", guarded.http_port))
        request = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
        with pytest.raises(ConnectionError):
            send_for_ever(connection, request)


def test_a_probe_is_answered_however_many_clients_do_not_read() -> None:
    limits = ConnectionLimits(connections=4, timeout=300.0)
    with serve(limits=limits) as served, contextlib.ExitStack() as stack:
        served.model.answers = 4_000_000
        for _ in range(limits.connections):
            connection = stack.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.settimeout(30)
            connection.connect(("127.0.0.1", served.http_port))
            connection.sendall(post(PREDICT, 20) + b'{"instances": ["a"]}')
            connection.recv(1)
        deadline = time.monotonic() + 20
        while not is_live(served):
            assert time.monotonic() < deadline, "no probe is answered"
            time.sleep(0.01)


def is_live(served: Served) -> bool:
    with contextlib.suppress(ConnectionError), connected(served) as probe:
        probe.sendall(LIVE + b"\r\n")
        return one_of(probe) == 200
    return False


def send_for_ever(connection: socket.socket, data: bytes) -> None:
    began = time.monotonic()
    while time.monotonic() - began < 20:
        connection.sendall(data)
        time.sleep(0.001)
    pytest.fail("The server took all of it.")


def test_an_early_answer_waits_for_the_rest_of_a_small_body(guarded: Served) -> None:
    with connected(guarded) as connection:
        connection.sendall(post("/nothing", 20))
        assert one_of(connection) == 404
        connection.sendall(b"x" * 20 + LIVE + b"\r\n")
        assert one_of(connection) == 200
        connection.sendall(post("/nothing", 20))
        assert one_of(connection) == 404
        with contextlib.suppress(ConnectionError):
            assert all_of(connection) == b""  # the rest is late


def test_a_refused_client_that_awaits_a_100_and_sends_no_body_is_closed(guarded: Served) -> None:
    with connected(guarded) as connection:
        connection.sendall(post("/nothing", 20, more="Expect: 100-continue\r\n"))
        assert one_of(connection) == 404
        connection.sendall(LIVE + b"\r\n")  # the next request, which is no body
        assert all_of(connection) == b""


def test_a_client_that_awaits_a_100_and_gets_it_keeps_its_connection(guarded: Served) -> None:
    with connected(guarded) as connection:
        connection.sendall(post(PREDICT, 20, more="Expect: 100-continue\r\n"))
        assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b'{"instances": ["a"]}')
        assert one_of(connection) == 200
        connection.sendall(LIVE + b"\r\n")
        assert one_of(connection) == 200


def test_clients_that_reset_before_their_answer_are_no_error(
    guarded: Served, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(100):
        with connected(guarded) as connection:
            connection.sendall(post("/nothing", 200_000))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0" + bytes(4))
    assert httpx.get(f"{guarded.url}/v2/health/live").status_code == 200
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
