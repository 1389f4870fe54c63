"""The socket of REST, and the URL that is shown of it."""

from __future__ import annotations

import asyncio
import socket

import pytest

from predictor.errors import ConfigurationError
from predictor.protocol.http.listening import listen, url_of


def test_accepted_connections_send_at_once() -> None:
    """With Nagle's algorithm on, every answer on a kept connection waits for a delayed ACK."""

    async def accepted() -> int:
        loop = asyncio.get_running_loop()
        delays: asyncio.Future[int] = loop.create_future()

        class Peek(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                own = transport.get_extra_info("socket")
                delays.set_result(own.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

        with listen("127.0.0.1", 0) as listening:
            server = await loop.create_server(Peek, sock=listening)
            async with server:
                _, writer = await asyncio.open_connection(*listening.getsockname())
                result = await delays
                writer.close()
                await writer.wait_closed()
        return result

    assert asyncio.run(accepted()) == 1


@pytest.mark.parametrize(
    ("host", "shown", "for_clients"),
    [
        ("127.0.0.1", "127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "0.0.0.0", "127.0.0.1"),
        ("::", "[::]", "[::1]"),
        ("::1", "[::1]", "[::1]"),
    ],
)
def test_clients_connect_to_an_address_of_this_machine(host, shown, for_clients):
    with listen(host, 0) as listener:
        port = listener.getsockname()[1]

        assert url_of(listener, tls=False) == f"http://{shown}:{port}"
        assert url_of(listener, tls=True, for_clients=True) == f"https://{for_clients}:{port}"


def test_a_port_that_is_taken_is_one_sentence():
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        listener.listen()

        with pytest.raises(ConfigurationError, match=f"cannot listen on 127.0.0.1:{port}: Address"):
            listen("127.0.0.1", port)
