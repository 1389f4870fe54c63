"""Processes beside an attack: a probe, a neighbour, a lone text, and a server that drops all.

``bystanders.py KIND PORT`` runs until it is killed, and prints a line for each of its measurements:
the time on the clock of `time.monotonic`, and what was measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
import sys
import time
from typing import Any, NoReturn

import grpc
from abusers import INFER, post, predict

_EVERY = 0.05
_PIECE = 64 * 1024
_PATHS = ("live", "ready")
_TIMEOUT = 60.0
_RETRY = 0.1
"""Seconds until the neighbour asks again after a refusal."""


def probe(port: int) -> NoReturn:
    """Ask for liveness and readiness on new connections; print path, seconds and status."""
    began = time.monotonic()
    for index in range(sys.maxsize):
        time.sleep(max(0.0, began + index * _EVERY - time.monotonic()))
        began = max(began, time.monotonic() - index * _EVERY)  # after a late answer: go on
        for path in _PATHS:
            sent = time.monotonic()
            status = _ask(port, f"GET /v2/health/{path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            print(sent, path, time.monotonic() - sent, status, flush=True)
    raise AssertionError


def _ask(port: int, request: bytes) -> str:
    """Send a request on a new connection and return its status."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT) as connection:
            connection.sendall(request)
            return connection.recv(4096).split(None, 2)[1].decode()
    except (OSError, IndexError) as error:
        return type(error).__name__


def neighbour(port: int) -> NoReturn:
    """Generate all the time, as a stream; print the number of tokens, or a refusal's status."""
    request = predict(1, 200, "Accept: text/event-stream", "Connection: close")
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT) as connection:
                connection.sendall(request)
                status = _count_events(connection)
        except OSError as error:
            status = type(error).__name__
        if status != "200":
            print(time.monotonic(), 0, status, flush=True)
            time.sleep(_RETRY)


def _count_events(connection: socket.socket) -> str:
    status = ""
    while data := connection.recv(65536):
        if not status:
            status = data.split(None, 2)[1].decode()
        if status == "200":
            print(time.monotonic(), data.count(b"data: "), status, flush=True)
    return status


def lone_text(port: int) -> NoReturn:
    """Ask for the embedding of one text; print seconds and status."""
    request = post("/openai/v1/embeddings", {"model": "m", "input": "w1 w2"})
    while True:
        sent = time.monotonic()
        status = _ask(port, request)
        print(sent, time.monotonic() - sent, status, flush=True)
        time.sleep(_EVERY)


class _Dropping(asyncio.Protocol):
    """Drops bodies, and answers at their ends."""

    def connection_made(self, transport: Any) -> None:
        self._transport, self._left, self._head = transport, 0, b""

    def data_received(self, data: bytes) -> None:
        if not self._left:
            self._head = (self._head + data)[-_PIECE:]
            head, ended, body = self._head.partition(b"\r\n\r\n")
            if not ended:
                return
            announced = re.search(rb"Content-Length: (\d+)", head)
            self._left = int(announced[1]) if announced else 0
            self._head, data = b"", body
        self._left -= len(data)
        if self._left <= 0:
            self._left = 0
            self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


class _DroppingCalls(grpc.GenericRpcHandler):
    """Drops the message of each call."""

    def service(self, details: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(self._drop) if details.method == INFER else None

    async def _drop(self, _message: bytes, _context: Any) -> bytes:
        return b""


async def _drop() -> None:
    server = await asyncio.get_running_loop().create_server(_Dropping, "127.0.0.1", 0)
    calls = grpc.aio.server()
    calls.add_generic_rpc_handlers((_DroppingCalls(),))
    grpc_port = calls.add_insecure_port("127.0.0.1:0")
    await calls.start()
    ports = {"port": server.sockets[0].getsockname()[1], "grpc": grpc_port}
    print(json.dumps(ports), flush=True)
    async with server:
        await server.serve_forever()


def main() -> None:
    """Run one kind."""
    kind, port = sys.argv[1], int(sys.argv[2])
    if kind == "drop":
        asyncio.run(_drop())
        return
    if kind == "probe":
        with contextlib.suppress(OSError):
            os.nice(-10)  # the delay of the server is measured, not that of the probe
    {"probe": probe, "neighbour": neighbour, "lone": lone_text}[kind](port)


if __name__ == "__main__":
    main()
