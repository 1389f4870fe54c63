"""The bounds of connections with TLS, over real sockets."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from predictor.protocol.http.certificate import Certificate
from predictor.protocol.http.connections import ConnectionLimits
from tests.certificates import self_signed
from tests.protocol.stub import Served, serve

TIMEOUT = 1.0


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return self_signed(tmp_path_factory.mktemp("tls"))[0]


@pytest.fixture(scope="module")
def encrypted(chain: Path) -> Iterator[Served]:
    limits = ConnectionLimits(connections=8, timeout=TIMEOUT)
    with serve(limits=limits, certificate=Certificate(chain, chain.with_name("tls.key"))) as served:
        yield served


@contextlib.contextmanager
def silent(served: Served, count: int) -> Iterator[list[socket.socket]]:
    """Connections that never begin a handshake, or never end it."""
    with contextlib.ExitStack() as stack:
        address = ("127.0.0.1", served.http_port)
        opened = [stack.enter_context(socket.create_connection(address)) for _ in range(count)]
        for connection in opened[::2]:
            connection.sendall(b"\x16\x03\x01\x00")
        yield opened


def open_after(connections: list[socket.socket], seconds: float) -> int:
    end = time.monotonic() + seconds
    closed = 0
    for connection in connections:
        connection.settimeout(max(end - time.monotonic(), 0.01))
        try:
            closed += not connection.recv(1)
        except TimeoutError:
            continue
        except ConnectionError:
            closed += 1
    return len(connections) - closed


def is_live(served: Served, chain: Path) -> bool:
    trusted = ssl.create_default_context(cafile=chain)
    url = f"https://127.0.0.1:{served.http_port}/v2/health/live"
    return httpx.get(url, verify=trusted).status_code == 200


def test_handshakes_that_never_end_count_as_connections(encrypted: Served, chain: Path) -> None:
    with silent(encrypted, 24) as opened:
        assert open_after(opened[:16], TIMEOUT / 2) == 0
        assert is_live(encrypted, chain)


def test_a_handshake_has_the_time_that_headers_have(encrypted: Served, chain: Path) -> None:
    with silent(encrypted, 4) as opened:
        assert open_after(opened, TIMEOUT / 2) == 4
        assert open_after(opened, 4 * TIMEOUT) == 0
    assert is_live(encrypted, chain)


def test_a_connection_counts_once(encrypted: Served, chain: Path) -> None:
    trusted = ssl.create_default_context(cafile=chain)
    url = f"https://127.0.0.1:{encrypted.http_port}/v2/health/live"
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(httpx.Client(verify=trusted)) for _ in range(8)]
        for _ in range(2):
            streams = [client.get(url).extensions["network_stream"] for client in clients]
        ports = [stream.get_extra_info("client_addr")[1] for stream in streams]
        again = [client.get(url).extensions["network_stream"] for client in clients]
        assert [stream.get_extra_info("client_addr")[1] for stream in again] == ports


def test_large_bodies_arrive_whole(encrypted: Served, chain: Path) -> None:
    trusted = ssl.create_default_context(cafile=chain)
    url = f"https://127.0.0.1:{encrypted.http_port}/v1/models/echo:predict"
    text = "a" * 200_000
    answer = httpx.post(url, verify=trusted, json={"instances": [text]}, timeout=30)
    assert answer.status_code == 200
    assert text.upper() in answer.text
