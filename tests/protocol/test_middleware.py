"""The limit of a body, over real sockets."""

from __future__ import annotations

import http.client
import logging
import socket

import httpx
import pytest

from tests.protocol.stub import MAX_BODY_BYTES, Served
from tests.protocol.wire import INFER, PREDICT, refusal


@pytest.mark.parametrize("path", [PREDICT, INFER, "/test/typed", "/v2/repository/index"])
def test_a_body_over_the_limit_is_413(client: httpx.Client, path: str) -> None:
    sentence = f"The body is larger than the limit of {MAX_BODY_BYTES} bytes."
    announced = client.post(path, content=b" " * (MAX_BODY_BYTES + 1))
    assert refusal(announced, 413) == sentence
    chunks = (b" " * 8192 for _ in range(MAX_BODY_BYTES // 8192 + 1))
    assert refusal(client.post(path, content=chunks), 413) == sentence


def test_a_body_at_the_limit_is_read(client: httpx.Client) -> None:
    body = b'{"instances": ["a"]}'
    response = client.post(PREDICT, content=body + b" " * (MAX_BODY_BYTES - len(body)))
    assert response.status_code == 200


def test_an_announced_body_is_refused_before_it_is_sent(served: Served) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", served.http_port, timeout=30)
    connection.putrequest("POST", PREDICT)
    connection.putheader("Content-Length", str(10**12))
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()


def test_a_client_that_leaves_in_the_middle_of_its_body_does_no_harm(
    served: Served, client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_connection(("127.0.0.1", served.http_port)) as connection:
        head = f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
        connection.sendall(head.encode() + b'{"inst')
    assert client.get("/v2/health/live").status_code == 200
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
