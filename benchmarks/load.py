"""Users of a V1 server: each sends its requests one after another and reads the events.

This client writes HTTP itself, with a connection for each request. It shares the processors with
the server, so while requests run it only records the times of received bytes.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from measuring import CannotMeasure

_DATA = b"data: "

QUIET = 0.2
"""Processors that other processes may keep busy before a number counts as disturbed."""


@dataclass(frozen=True, slots=True)
class Server:
    """The address of a served model.

    Attributes:
        host: Its address.
        port: Its REST port.
        model: The model's name.
        pid: Its process.
    """

    host: str
    port: int
    model: str
    pid: int


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt and its number of tokens."""

    text: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Reply:
    """The cost of a request.

    Attributes:
        first: Seconds until the first text.
        gaps: Seconds between one text and the next.
        tokens: The number of generated tokens.
        began: The time of its first text, on the clock of `time.perf_counter`.
        ended: The time of its last byte, on the same clock.
    """

    first: float
    gaps: tuple[float, ...]
    tokens: int
    began: float
    ended: float


@dataclass(slots=True)
class Connection(asyncio.Protocol):
    """Sends one request and keeps the received bytes with their times, unparsed."""

    request: bytes
    over: asyncio.Future[None]
    sent: float = 0.0
    received: list[tuple[float, bytes]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the request."""
        self.received = []
        self.sent = time.perf_counter()
        transport.write(self.request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        """Record received bytes with their time."""
        self.received.append((time.perf_counter(), data))  # type: ignore[union-attr]

    def connection_lost(self, _: Exception | None) -> None:
        """End the wait for the reply."""
        if not self.over.done():
            self.over.set_result(None)


async def send(server: Server, prompt: Prompt, new_tokens: int) -> Reply:
    """Send one request and return its cost.

    Raises:
        CannotMeasure: It failed, or the answer is incomplete.
    """
    loop = asyncio.get_running_loop()
    request = _request(server, prompt, new_tokens)
    try:
        _, connection = await loop.create_connection(
            lambda: Connection(request, loop.create_future()), server.host, server.port
        )
    except OSError as error:
        raise CannotMeasure(f"The server cannot be reached: {error.strerror}.") from None
    await connection.over
    return parse_reply(connection, prompt)


async def send_all(
    server: Server, users: Sequence[Sequence[Prompt]], new_tokens: int
) -> list[Reply]:
    """Return the replies to all users, each of whom sends prompts one after another.

    Raises:
        CannotMeasure: A request failed, or an answer is incomplete.
    """

    async def use(prompts: Sequence[Prompt]) -> list[Reply]:
        return [await send(server, prompt, new_tokens) for prompt in prompts]

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(use(prompts)) for prompts in users]
    return [reply for task in tasks for reply in task.result()]


def measure_users(
    server: Server, users: Sequence[Sequence[Prompt]], new_tokens: int
) -> dict[str, Any]:
    """Return the throughput of all users together, and the quantiles of their latencies.

    Raises:
        CannotMeasure: A request failed, or an answer is incomplete.
    """
    began, cpu = time.perf_counter(), time.process_time()
    others = others_seconds(server.pid)
    try:
        replies = asyncio.run(send_all(server, users, new_tokens))
    except* CannotMeasure as errors:
        raise errors.exceptions[0] from None
    seconds = max(reply.ended for reply in replies) - began
    return {
        "users": len(users),
        "seconds": seconds,
        "client_cpu_share": (time.process_time() - cpu) / seconds,
        "others_cpu_share": (others_seconds(server.pid) - others) / seconds,
        **speed([(r.first, r.gaps, r.tokens) for r in replies], seconds),
    }


def speed(replies: Sequence[tuple[float, Sequence[float], int]], seconds: float) -> dict[str, Any]:
    """Return throughput and latencies, from each reply's first time, gaps and number of tokens."""
    firsts = [first for first, _, _ in replies]
    gaps = [gap for _, several, _ in replies for gap in several]
    counts = [tokens for _, _, tokens in replies]
    return {
        "requests": len(replies),
        "tokens": sum(counts),
        "tokens_per_request": [min(counts), max(counts)],
        "tokens_per_second": sum(counts) / seconds,
        "first_token_seconds": {"p50": quantile(firsts, 0.5), "p99": quantile(firsts, 0.99)},
        "inter_token_seconds": {"p50": quantile(gaps, 0.5), "p99": quantile(gaps, 0.99)},
    }


def quantile(values: Sequence[float], fraction: float) -> float | None:
    """Return the least value that the fraction does not exceed; None if there are no values."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(fraction * len(values)) - 1)]


def others_seconds(*pids: int) -> float:
    """Return the processor seconds used so far by all but this process and the given ones."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    user, nice, system, _, _, *rest = map(int, fields)
    ticks = user + nice + system + sum(rest[:3])
    for pid in pids:
        own = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks -= int(own[11]) + int(own[12])
    return ticks / os.sysconf("SC_CLK_TCK") - time.process_time()


def await_quiet(most: float, *pids: int) -> None:
    """Wait until other processes leave the processors idle for a second, or for `most` seconds.

    Threads that compute together wait for each other, so one other busy process can make them many
    times slower. A ratio of two such times is meaningless.
    """
    deadline = time.monotonic() + most
    while time.monotonic() < deadline:
        before = others_seconds(*pids)
        time.sleep(1)
        if others_seconds(*pids) - before < QUIET:
            return


def _request(server: Server, prompt: Prompt, new_tokens: int) -> bytes:
    body = {"instances": [prompt.text], "parameters": {"max_new_tokens": new_tokens}}
    body["parameters"]["temperature"] = 0  # type: ignore[call-overload]
    content = json.dumps(body).encode()
    head = (
        f"POST /v1/models/{server.model}:predict HTTP/1.1",
        f"Host: {server.host}:{server.port}",
        "Accept: text/event-stream",
        "Connection: close",
        f"Content-Length: {len(content)}",
    )
    return "\r\n".join(head).encode() + b"\r\n\r\n" + content


def parse_reply(connection: Connection, prompt: Prompt) -> Reply:
    """Return the cost of a request whose connection has ended.

    Raises:
        CannotMeasure: The request failed, or the answer is incomplete.
    """
    received = connection.received or []
    status = received[0][1].partition(b"\r\n")[0].decode() if received else "no answer"
    events = _events(received)
    last = events[-1][1] if events else {}
    if " 200 " not in status or not last.get("finish_reason"):
        what = last or b"".join(data for _, data in received)[-300:]
        raise CannotMeasure(f"A request failed ({status}): {what!r}")
    if last["prompt_tokens"] != prompt.tokens:
        raise CannotMeasure(f"{last['prompt_tokens']} prompt tokens, not {prompt.tokens}.")
    times = [when for when, event in events if event["text"]]
    if not times:
        raise CannotMeasure("A reply has no text, so that nothing can be timed.")
    gaps = tuple(after - before for before, after in pairwise(times))
    tokens = last["completion_tokens"]
    return Reply(times[0] - connection.sent, gaps, tokens, times[0], received[-1][0])


def _events(received: Sequence[tuple[float, bytes]]) -> list[tuple[float, dict[str, Any]]]:
    """Return the events, each with the time of its last byte.

    An event is one line, and the server sends each in its own HTTP chunk.
    """
    events, rest = [], b""
    for when, data in received:
        *lines, rest = (rest + data).split(b"\n")
        events += [(when, json.loads(line[len(_DATA) :])) for line in lines if _is_event(line)]
    return events


def _is_event(line: bytes) -> bool:
    return line.startswith(_DATA)
