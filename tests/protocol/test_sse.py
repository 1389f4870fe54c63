"""Streams of sse, and clients that do not read them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from predictor.admission import AdmissionController
from predictor.protocol.http import sse
from predictor.protocol.http.gate import Gate
from predictor.protocol.http.middleware import _Call
from predictor.protocol.http.sse import event_stream
from predictor.tasks.answers import Piece, Stream
from tests.protocol.stub import DEFAULT_ADMISSION

GATE = Gate(AdmissionController(DEFAULT_ADMISSION), max_body_bytes=1024, model_name=lambda: "m")


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


def test_no_comment_is_between_the_pieces_of_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "_SECONDS_OF_SILENCE", 0.02)
    sent = bytearray()

    async def pieces() -> AsyncIterator[Piece]:
        yield Piece(0, "x" * 200_000, None, 1, 1)
        await asyncio.sleep(0.1)
        yield Piece(0, "y", None, 1, 1)

    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        await asyncio.sleep(0.05 if len(message.get("body", b"")) > 1000 else 0)  # a slow client
        sent.extend(message.get("body", b""))

    async def serve() -> None:
        deadline = asyncio.get_running_loop().time() + 60
        stream = Stream(pieces(), deadline, lambda: None)
        response = event_stream(ExitStack(), stream, lambda piece: [piece.text])
        call = _Call({"type": "http"}, receive, send, GATE, ExitStack())
        await response({"type": "http", "asgi": {"spec_version": "2.4"}}, receive, call.send)

    asyncio.run(serve())
    events = [event for event in sent.split(b"\n\n") if event]
    assert b": ping" in events
    assert [event for event in events if event != b": ping"] == [
        b'data: "%b"' % (b"x" * 200_000),
        b'data: "y"',
    ]
