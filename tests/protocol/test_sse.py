"""Streams of sse, and clients that do not read them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from predictor.protocol.http import sse
from predictor.protocol.http.sse import event_stream
from predictor.tasks.answers import Piece, Stream


def test_a_client_that_stops_to_read_is_left_at_the_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sse, "_SECONDS_TO_SAY_SO", 0.1)
    ended: list[str] = []

    async def pieces() -> AsyncIterator[Piece]:
        try:
            while True:
                yield Piece(0, "x", None, 1, 1)
        finally:
            ended.append("pieces")

    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if message.get("body"):
            await asyncio.Event().wait()  # its buffers are full, for ever

    async def serve() -> None:
        count = ExitStack()
        count.callback(ended.append, "counted")
        deadline = asyncio.get_running_loop().time() + 0.1
        stream = Stream(pieces(), deadline, lambda: ended.append("released"))
        response = event_stream(count, stream, lambda piece: [piece.text])
        scope = {"type": "http", "asgi": {"spec_version": "2.4"}}
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(response(scope, receive, send), 10)

    asyncio.run(serve())
    assert sorted(ended) == ["counted", "pieces", "released"]


def test_a_client_that_leaves_before_the_first_event_leaves_nothing() -> None:
    ended: list[str] = []

    async def pieces() -> AsyncIterator[Piece]:
        yield Piece(0, "x", None, 1, 1)

    async def send(_message: dict[str, Any]) -> None:
        raise OSError("gone")

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    def ends(kind: Any, _error: object, _trace: object) -> bool:
        ended.append(kind.__name__)
        return False

    async def serve() -> None:
        count = ExitStack()
        count.push(ends)
        deadline = asyncio.get_running_loop().time() + 60
        stream = Stream(pieces(), deadline, lambda: ended.append("released"))
        response = event_stream(count, stream, lambda piece: [piece.text])
        with pytest.raises(ClientDisconnect):
            await response({"type": "http", "asgi": {"spec_version": "2.4"}}, receive, send)

    asyncio.run(serve())
    assert ended == ["CancelledError", "released"]
