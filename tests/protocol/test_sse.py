"""Streams of sse, and clients that do not read them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Any

import pytest

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
        response = event_stream(count, Stream(pieces(), deadline), lambda piece: [piece.text])
        scope = {"type": "http", "asgi": {"spec_version": "2.4"}}
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(response(scope, receive, send), 10)
        # Closing an async generator that was cancelled is left to the loop.
        await asyncio.get_running_loop().shutdown_asyncgens()

    asyncio.run(serve())
    assert sorted(ended) == ["counted", "pieces"]
