"""The listening socket of the REST server."""

from __future__ import annotations

import asyncio
import socket

from predictor.server import _listen


def test_accepted_connections_send_at_once() -> None:
    """With Nagle's algorithm on, every answer on a kept connection waits for a delayed ACK."""

    async def accepted() -> int:
        loop = asyncio.get_running_loop()
        delays: asyncio.Future[int] = loop.create_future()

        class Peek(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                own = transport.get_extra_info("socket")
                delays.set_result(own.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

        with _listen("127.0.0.1", 0) as listening:
            server = await loop.create_server(Peek, sock=listening)
            async with server:
                _, writer = await asyncio.open_connection(*listening.getsockname())
                result = await delays
                writer.close()
                await writer.wait_closed()
        return result

    assert asyncio.run(accepted()) == 1
