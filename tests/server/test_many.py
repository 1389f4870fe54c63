"""Many users of one real server: streams, hang-ups, deadlines, overload, nothing left behind."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import os
import random
import re
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

import predictor.protocol  # noqa: F401  (imports kserve with pytest's arguments hidden)
from tests.conftest import Checkpoints
from tests.server.process import Served, serve
from tests.server.test_lifecycle import grpc_infer_code

from kserve import InferenceGRPCClient  # isort: skip
import grpc  # isort: skip

LONG = {"max_new_tokens": 1500, "temperature": 1.0, "seed": 3}
"""Is not answered before its gate has been open for a while."""

DEMO = Path(__file__).parents[2] / "examples" / "demo-model"


@pytest.fixture(scope="module")
def slow(checkpoints: Checkpoints) -> Iterator[Served]:
    """Every block on disk, at most four requests, and as slow as its gate makes it."""
    flags = ("--max_model_len=2048", "--prefill_chunk=16", "--device_map=disk", "--max_requests=4")
    flags += ("--dtype=bfloat16", "--torchserve_api")
    with serve(checkpoints("bloom"), *flags, gated=True) as server:
        yield server.await_ready()


@pytest.fixture(scope="module")
def demo() -> Iterator[Served]:
    flags = ("--max_model_len=256", "--prefill_chunk=64", "--device_map=cpu", "--max_concurrency=2")
    flags += ("--dtype=float32", "--torchserve_api")
    with serve(DEMO, *flags, name="demo", gated=True) as server:
        yield server.await_ready()


def outcomes(server: Served, protocol: str, outcome: str) -> float:
    text = httpx.get(f"{server.url}/metrics", timeout=30).text
    labels = rf'model_name="{server.name}",outcome="{outcome}",protocol="{protocol}"'
    match = re.search(rf"^predictor_requests_total\{{{labels}\}} (\S+)$", text, re.MULTILINE)
    return float(match[1]) if match else 0


def body(text: str, **parameters: Any) -> dict[str, Any]:
    return {"instances": [text], "parameters": parameters}


def predict_url(server: Served) -> str:
    return f"{server.url}/v1/models/{server.name}:predict"


async def events(
    client: httpx.AsyncClient, server: Served, text: str, **parameters: Any
) -> AsyncIterator[dict[str, Any]]:
    headers = {"Accept": "text/event-stream"}
    document = body(text, **parameters)
    async with client.stream(
        "POST", predict_url(server), json=document, headers=headers
    ) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        async for line in response.aiter_lines():
            if line:
                yield json.loads(line.removeprefix("data: "))


async def collected(server: Served, text: str, **parameters: Any) -> list[dict[str, Any]]:
    async with httpx.AsyncClient(timeout=120) as client:
        return [event async for event in events(client, server, text, **parameters)]


def test_a_stream_says_what_the_whole_reply_says(demo: Served) -> None:
    whole = demo.predict("The weather is", max_new_tokens=30).json()["predictions"][0]
    events = asyncio.run(collected(demo, "The weather is", max_new_tokens=30))
    assert "".join(event["text"] for event in events) == whole["text"]
    assert len(events) > 10
    last = events[-1]
    assert {key: last[key] for key in whole if key != "text"} == {
        key: whole[key] for key in whole if key != "text"
    }
    assert all(event["finish_reason"] is None for event in events[:-1])


def test_a_stop_sequence_is_in_no_event(demo: Served) -> None:
    whole = demo.predict("The weather is", max_new_tokens=30).json()["predictions"][0]["text"]
    stop = whole[len(whole) // 2 - 2 : len(whole) // 2 + 3]
    events = asyncio.run(collected(demo, "The weather is", max_new_tokens=30, stop=[stop]))
    assert "".join(event["text"] for event in events) == whole[: whole.index(stop)]
    assert events[-1]["finish_reason"] == "stop"


def test_requests_run_together_and_each_gets_its_own_answer(demo: Served) -> None:
    prompts = [f"My friend number {n} likes to" for n in range(8)]
    alone = [demo.predict(text, max_new_tokens=20).json() for text in prompts]
    names = [f"predictor_{name}" for name in ("batch_sequences_count", "batch_sequences_sum")]
    with concurrent.futures.ThreadPoolExecutor(len(prompts)) as pool:
        with demo.gate.closed():
            before = [demo.gauge(name) for name in names]
            requests = [pool.submit(demo.predict, text, max_new_tokens=20) for text in prompts]
            demo.await_accepted(len(prompts))
        together = [answer.result().json() for answer in requests]
    passes, rows = (demo.gauge(name) - then for name, then in zip(names, before, strict=True))
    assert together == alone
    tokens = sum(answer["predictions"][0]["completion_tokens"] for answer in together)
    assert rows >= tokens
    assert passes < tokens / 2  # where one is served at a time there is a pass a token


@contextlib.contextmanager
def freeing_its_place(server: Served, protocol: str) -> Iterator[None]:
    """Holds who hangs up within to leave nothing running, and to be counted as cancelled."""
    before = outcomes(server, protocol, "cancelled")
    yield
    server.await_gauge("predictor_sequences_running", 0)
    server.await_gauge("predictor_kv_tokens_used", 0)
    assert outcomes(server, protocol, "cancelled") == before + 1


async def leave(server: Served, asks: Coroutine[Any, Any, Any]) -> None:
    """Asks, and hangs up while the request is in a pass."""
    request = asyncio.create_task(asks)
    await asyncio.to_thread(server.gate.await_pass)
    request.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await request


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_frees_its_place(slow: Served, stream: bool) -> None:
    async def hang_up() -> None:
        async with httpx.AsyncClient(timeout=60) as client:
            if stream:
                async for _ in events(client, slow, "to be left", **LONG):
                    break
                return
            with slow.gate.closed():
                await leave(slow, client.post(predict_url(slow), json=body("to be left", **LONG)))

    with freeing_its_place(slow, "v1"):
        asyncio.run(hang_up())


async def ask_v2(server: Served) -> None:
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["to be left"]}
    url = f"{server.url}/v2/models/{server.name}/infer"
    async with httpx.AsyncClient(timeout=60) as client:
        await client.post(url, json={"inputs": [tensor], "parameters": {"max_new_tokens": 1500}})


async def ask_grpc(server: Served) -> None:
    from tests.server.test_clients import v2_request

    request = v2_request(server.name, ["x"], max_new_tokens=1500)
    request.inputs[0].data = [b"x"]
    client = InferenceGRPCClient(server.grpc, retries=0)
    try:
        await client.infer(request)
    finally:
        await client.close()


@pytest.mark.parametrize(("protocol", "ask"), [("v2", ask_v2), ("grpc", ask_grpc)])
def test_who_hangs_up_over_v2_or_cancels_over_grpc_frees_the_place_too(
    slow: Served, protocol: str, ask: Any
) -> None:
    with freeing_its_place(slow, protocol), slow.gate.closed():
        asyncio.run(leave(slow, ask(slow)))


def test_a_deadline_ends_a_request_over_every_way_to_say_it(slow: Served) -> None:
    document = body("too slow", **LONG)
    began = time.monotonic()
    with slow.gate.closed():
        by_header = httpx.post(
            predict_url(slow), json=document, headers={"X-Request-Timeout": "0.5"}, timeout=60
        )
        by_parameter = httpx.post(
            predict_url(slow), json=body("too slow", **LONG, timeout=0.5), timeout=60
        )
        by_grpc = grpc_infer_code(slow, 0.5, max_new_tokens=1500)
    assert [by_header.status_code, by_parameter.status_code] == [504, 504]
    assert by_header.json() == {"error": "The request was not answered within 0.5 seconds."}
    assert by_grpc is grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - began < 20
    slow.await_gauge("predictor_sequences_running", 0)
    bad = httpx.post(predict_url(slow), json=document, headers={"X-Request-Timeout": "soon"})
    assert bad.status_code == 400


def test_a_stream_that_is_too_slow_ends_with_an_event_that_says_so(slow: Served) -> None:
    events = asyncio.run(collected(slow, "too slow", **LONG, timeout=1.5))
    assert events[-1] == {"error": "The request was not answered within 1.5 seconds."}
    assert len(events) > 1


def test_overload_is_said_at_once_and_when_to_come_again(slow: Served) -> None:
    async def overload() -> None:
        async with httpx.AsyncClient(timeout=60) as client:
            held = [
                asyncio.create_task(client.post(predict_url(slow), json=body("long", **LONG)))
                for _ in range(4)
            ]
            await asyncio.to_thread(slow.await_accepted, 4)
            refused = await client.post(predict_url(slow), json=body("one too many"))
            stream = await client.post(
                predict_url(slow), json=body("x"), headers={"Accept": "text/event-stream"}
            )
            for task in held:
                task.cancel()
            await asyncio.gather(*held, return_exceptions=True)
        for answer in (refused, stream):
            assert answer.status_code == 429
            assert int(answer.headers["retry-after"]) >= 1

    with slow.gate.closed():
        asyncio.run(overload())
    slow.await_gauge("predictor_sequences_running", 0)


def memory(server: Served) -> int:
    return int(psutil.Process(server.process.pid).memory_info().rss)


def test_a_soak_loses_no_request_and_leaves_nothing_behind(demo: Served, full_grid: bool) -> None:
    """Random arrivals, lengths, hang-ups, deadlines and bad requests for a while, twice."""
    seconds = float(os.environ.get("SOAK_SECONDS", "25" if full_grid else "8"))
    chance = random.Random(7)

    async def user(client: httpx.AsyncClient, until: float, statuses: list[int]) -> None:
        while time.monotonic() < until:
            kind = chance.random()
            document = body("word " * chance.randint(1, 40), max_new_tokens=chance.randint(1, 40))
            if kind < 0.1:
                document["parameters"] = {"max_new_tokens": -1}
            headers = {"X-Request-Timeout": "0.02"} if 0.1 <= kind < 0.2 else {}
            try:
                timeout = 0.05 if 0.2 <= kind < 0.35 else 60
                answer = await asyncio.wait_for(
                    client.post(predict_url(demo), json=document, headers=headers), timeout
                )
                statuses.append(answer.status_code)
            except TimeoutError:
                statuses.append(0)
            await asyncio.sleep(chance.random() * 0.05)

    async def soak() -> list[int]:
        statuses: list[int] = []
        until = time.monotonic() + seconds
        limits = httpx.Limits(max_connections=40)
        async with httpx.AsyncClient(timeout=60, limits=limits) as client:
            await asyncio.gather(*(user(client, until, statuses) for _ in range(24)))
        return statuses

    asyncio.run(soak())
    before = memory(demo)
    statuses = asyncio.run(soak())
    assert statuses.count(200) > 50
    assert set(statuses) <= {0, 200, 400, 504}
    for name in ("sequences_running", "sequences_waiting", "kv_tokens_used"):
        demo.await_gauge(f"predictor_{name}", 0)
    grown = memory(demo) - before
    print(f"{len(statuses)} requests in {seconds:g} s; {grown / 2**20:.1f} MiB more")
    assert grown < 64 * 2**20
    assert demo.predict("and it goes on", max_new_tokens=3).status_code == 200
