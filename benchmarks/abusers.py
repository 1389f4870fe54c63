"""Clients that mean harm, in a process of their own: ``abusers.py KIND``, with counts as JSON.

They write HTTP themselves, so that a client is cheap beside the server. Each loop lasts for a time
and honours no ``Retry-After``. What a client gets instead of a status is counted by its name.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import resource
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from load import quantile

MIB = 2**20
_PIECE = 64 * 1024
_FINISHING = 8
"""Slow bodies that are completed."""

_CHANNELS = 20
"""gRPC connections of all calls."""

_ANSWER_TIMEOUT = 60.0
"""Seconds for a last answer, after the loops have ended."""

INFER = "/inference.GRPCInferenceService/ModelInfer"


@dataclass(slots=True)
class Tally:
    """Answers by status: their number, their times in seconds, and the seconds to retry after."""

    counts: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    retry_after: Counter[int] = field(default_factory=Counter)
    first_event: float | None = None
    first_is_comment: bool = False

    def add(self, status: str, seconds: float, head: bytes = b"") -> None:
        """Count an answer."""
        self.counts[status] += 1
        self.seconds[status].append(seconds)
        _, announced, rest = head.lower().partition(b"\r\nretry-after: ")
        if announced:
            self.retry_after[int(rest.partition(b"\r\n")[0])] += 1

    def numbers(self) -> dict[str, Any]:
        """Return all as JSON values."""
        return {
            "counts": dict(self.counts),
            "seconds": {
                status: {name: quantile(times, q) for name, q in (("p50", 0.5), ("p99", 0.99))}
                for status, times in self.seconds.items()
            },
            "retry_after": {str(key): self.retry_after[key] for key in sorted(self.retry_after)},
            "first_event": self.first_event,
            "first_is_comment": self.first_is_comment,
        }


@dataclass(frozen=True, slots=True)
class Attack:
    """The order for one kind of load.

    Attributes:
        port: The REST port, on the loopback address.
        grpc: The gRPC port.
        clients: Clients at one time.
        seconds: Seconds for which they send.
        rate: Requests per second of an open loop.
        tally: Counts the answers.
        ends: The end of the loops, on the clock of `time.monotonic`.
    """

    port: int
    grpc: int
    clients: int
    seconds: float
    rate: float
    tally: Tally
    ends: float

    @property
    def is_over(self) -> bool:
        """Whether the loops end."""
        return time.monotonic() >= self.ends

    async def exchange(self, *parts: bytes, pause: float = 0.0) -> None:
        """Send a request on a new connection, all of it, and count its answer."""
        began, head = time.perf_counter(), b""
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError as error:
            self.tally.add(type(error).__name__, time.perf_counter() - began)
            return
        try:
            async with asyncio.timeout(_ANSWER_TIMEOUT):
                for part in parts:
                    await send(writer, part)
                    await asyncio.sleep(pause)
                head = await reader.readuntil(b"\r\n\r\n")
                answered = time.perf_counter() - began
                await read_rest(reader, head)
            self.tally.add(head.split(None, 2)[1].decode(), answered, head)
        except (OSError, EOFError, TimeoutError) as error:
            self.tally.add(type(error).__name__, time.perf_counter() - began)
        finally:
            writer.close()

    async def loop(self, *parts: bytes) -> None:
        """Have all clients send the same request until the end."""

        async def client() -> None:
            while not self.is_over:
                await self.exchange(*parts)

        await asyncio.gather(*(client() for _ in range(self.clients)))


async def send(writer: asyncio.StreamWriter, data: bytes) -> None:
    """Send data piece by piece, so that little of it is copied at one time."""
    for start in range(0, len(data), _PIECE):
        writer.write(data[start : start + _PIECE])
        await writer.drain()


async def read_rest(reader: asyncio.StreamReader, head: bytes) -> None:
    """Read the body of an answer."""
    _, announced, rest = head.lower().partition(b"\r\ncontent-length: ")
    if announced:
        await reader.readexactly(int(rest.partition(b"\r\n")[0]))


def post(path: str, body: object, *more: str) -> bytes:
    """Return a request with a JSON body."""
    data = body if isinstance(body, bytes) else json.dumps(body, separators=(",", ":")).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: abuse", f"Content-Length: {len(data)}", *more]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


def completion(prompt: object) -> bytes:
    """Return an OpenAI request."""
    return post("/openai/v1/completions", {"model": "m", "prompt": prompt, "max_tokens": 1})


def predict(texts: int, tokens: int, *more: str) -> bytes:
    """Return a V1 request with as many texts, for each of which tokens are generated."""
    parameters = {"max_new_tokens": tokens, "temperature": 0}
    body = {"instances": ["Today the weather is"] * texts, "parameters": parameters}
    return post("/v1/models/m:predict", body, *more)


async def token_ids(attack: Attack) -> None:
    """Send prompts of token ids, 1 MiB each."""
    await attack.loop(completion([1] * ((MIB - 100) // 2)))


async def texts(attack: Attack) -> None:
    """Send prompts of text, 1 MiB each."""
    await attack.loop(completion("word " * ((MIB - 100) // 5)))


async def endless_headers(attack: Attack) -> None:
    """Send headers without an end."""
    lines = b"X-A: bbbbbbbbbbbbbbbb\r\n" * 1000

    async def client() -> None:
        while not attack.is_over:
            began = time.perf_counter()
            reader, writer = await asyncio.open_connection("127.0.0.1", attack.port)
            answer = asyncio.create_task(reader.readline())
            with contextlib.suppress(OSError):
                writer.write(b"GET /v2/health/live HTTP/1.1\r\n")
                while not answer.done() and not attack.is_over:
                    writer.write(lines)
                    await writer.drain()
                    await asyncio.sleep(0)
            await asyncio.wait([answer], timeout=1)
            attack.tally.add(_status_of(answer), time.perf_counter() - began)
            writer.close()

    await asyncio.gather(*(client() for _ in range(attack.clients)))


def _status_of(answer: asyncio.Task[bytes]) -> str:
    if not answer.done():
        answer.cancel()
        return "none"
    if answer.exception() is not None:
        return type(answer.exception()).__name__
    return answer.result().split(None, 2)[1].decode() if answer.result() else "closed"


async def slow_bodies(attack: Attack) -> None:
    """Send all but the last bytes of many bodies; then complete some of them."""
    request = completion("word " * ((MIB - 100) // 5))
    finish = asyncio.Event()

    async def client(index: int) -> None:
        began = time.perf_counter()
        reader = writer = None
        try:
            async with asyncio.timeout(_ANSWER_TIMEOUT):
                reader, writer = await asyncio.open_connection("127.0.0.1", attack.port)
                with contextlib.suppress(OSError):
                    await send(writer, request[:-2])
                await finish.wait()
                if index < _FINISHING:
                    writer.write(request[-2:])
                line = await asyncio.wait_for(reader.readline(), 2)
            status = line.split(None, 2)[1].decode() if line else "closed"
        except (OSError, TimeoutError) as error:
            status = type(error).__name__
        attack.tally.add(status, time.perf_counter() - began)
        if writer is not None:
            writer.transport.abort()

    clients = [asyncio.create_task(client(index)) for index in range(attack.clients)]
    await asyncio.sleep(max(0.0, attack.ends - time.monotonic()))
    finish.set()
    await asyncio.gather(*clients)


async def grpc_calls(attack: Attack) -> None:
    """Call ModelInfer with texts of 1 MiB."""
    await _call(attack, infer_request(b"word " * ((MIB - 200) // 5)))


def infer_request(text: bytes) -> bytes:
    """Return a ModelInferRequest of one text, encoded here: to import the SDK takes a second."""
    contents = _field(8, text)
    tensor = _field(1, b"text") + _field(2, b"BYTES") + _field(3, b"\x01") + _field(5, contents)
    return _field(1, b"m") + _field(5, tensor)


def _field(number: int, value: bytes) -> bytes:
    """Return a field of bytes (https://protobuf.dev/programming-guides/encoding)."""
    length, size = len(value), b""
    while length > 127:
        size += bytes([length & 127 | 128])
        length >>= 7
    return bytes([number << 3 | 2]) + size + bytes([length]) + value


async def broken_protobufs(attack: Attack) -> None:
    """Call ModelInfer with bytes that are no protobuf."""
    await _call(attack, b"\xff")


async def _call(attack: Attack, message: bytes) -> None:
    import grpc  # takes half a second, which the other kinds do not need

    options = [("grpc.use_local_subchannel_pool", 1)]
    address = f"127.0.0.1:{attack.grpc}"
    channels = [grpc.aio.insecure_channel(address, options) for _ in range(_CHANNELS)]

    async def client(index: int) -> None:
        infer = channels[index % _CHANNELS].unary_unary(INFER)
        while not attack.is_over:
            began = time.perf_counter()
            try:
                await infer(message, timeout=_ANSWER_TIMEOUT)
                status = "OK"
            except grpc.aio.AioRpcError as error:
                status = error.code().name
            attack.tally.add(status, time.perf_counter() - began)

    await asyncio.gather(*(client(index) for index in range(attack.clients)))
    await asyncio.gather(*(channel.close() for channel in channels))


async def hang_ups(attack: Attack) -> None:
    """Ask for streams and hang up after a moment, at most 0.3 s."""
    request, chance = predict(2, 200, "Accept: text/event-stream"), random.Random(1)

    async def client() -> None:
        while not attack.is_over:
            began, status = time.perf_counter(), "hung up"
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", attack.port)
                writer.write(request)
                line = await asyncio.wait_for(reader.readline(), chance.random() * 0.3)
                status = line.split(None, 2)[1].decode() if line else "closed"
                writer.transport.abort()
            except TimeoutError:
                writer.transport.abort()
            except OSError as error:
                status = type(error).__name__
            attack.tally.add(status, time.perf_counter() - began)

    await asyncio.gather(*(client() for _ in range(attack.clients)))


async def early_refusals(attack: Attack) -> None:
    """Send a body to a path that is not there, after the headers."""
    request = post("/nothing", b"x" * 390_000, "Connection: close")
    head, _, body = request.partition(b"\r\n\r\n")

    async def client() -> None:
        while not attack.is_over:
            await attack.exchange(head + b"\r\n\r\n", body, pause=0.002)

    await asyncio.gather(*(client() for _ in range(attack.clients)))


async def overload(attack: Attack) -> None:
    """Send requests at a rate, whether or not others are answered; with no rate, in a loop."""
    request = predict(1, 8, "Connection: close")
    if not attack.rate:
        await attack.loop(request)
        return
    began, sent = time.monotonic(), []
    for index in range(round(attack.rate * attack.seconds)):
        await asyncio.sleep(max(0.0, began + index / attack.rate - time.monotonic()))
        sent.append(asyncio.create_task(attack.exchange(request)))
    await asyncio.gather(*sent)


async def lists(attack: Attack) -> None:
    """Ask for the embeddings of 256 texts at a time."""
    inputs = [f"w{index % 90 + 1} w{index % 7 + 1}" for index in range(256)]
    await attack.loop(post("/openai/v1/embeddings", {"model": "m", "input": inputs}))


async def waiting_stream(attack: Attack) -> None:
    """Ask for a stream behind many requests, and time its first event or comment."""
    tasks = [asyncio.create_task(attack.exchange(predict(8, 240))) for _ in range(attack.clients)]
    await asyncio.sleep(1)
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", attack.port)
    writer.write(predict(1, 4, "Accept: text/event-stream"))
    head = await reader.readuntil(b"\r\n\r\n")
    attack.tally.add(head.split(None, 2)[1].decode(), time.perf_counter() - began, head)
    await reader.readline()  # the length of a chunk
    first = await asyncio.wait_for(reader.readline(), _ANSWER_TIMEOUT)
    attack.tally.first_event = time.perf_counter() - began
    attack.tally.first_is_comment = first.startswith(b":")
    writer.close()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


KINDS: dict[str, Callable[[Attack], Awaitable[None]]] = {
    each.__name__: each
    for each in (
        token_ids,
        texts,
        endless_headers,
        slow_bodies,
        grpc_calls,
        broken_protobufs,
        hang_ups,
        early_refusals,
        overload,
        lists,
        waiting_stream,
    )
}


def main() -> int:
    """Attack, and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("kind", choices=KINDS)
    for name, kind in (("port", int), ("grpc", int), ("clients", int), ("seconds", float)):
        parser.add_argument(f"--{name}", type=kind, required=True)
    parser.add_argument("--rate", type=float, default=0.0)
    flags = vars(parser.parse_args())
    attack_kind = KINDS[flags.pop("kind")]
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    tally = Tally()
    attack = Attack(**flags, tally=tally, ends=time.monotonic() + flags["seconds"])
    asyncio.run(attack_kind(attack))  # type: ignore[arg-type]
    window = [attack.ends - attack.seconds, attack.ends]
    print(json.dumps(tally.numbers() | {"window": window}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
