"""Starting, draining, stopping: real processes, real signals."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import predictor.protocol  # noqa: F401  (imports kserve with pytest's arguments hidden)
from tests.conftest import Checkpoints
from tests.server import held_blocks
from tests.server.process import Served, serve

from kserve import InferenceGRPCClient  # isort: skip
import grpc  # isort: skip

SMALL = ("--max_model_len=2048", "--prefill_chunk=16", "--device_map=disk", "--dtype=bfloat16")
"""Streamed from disk, and cast while it is read."""


def status(server: Served, path: str) -> int:
    return httpx.get(f"{server.url}{path}", timeout=30).status_code


def grpc_ready(server: Served) -> bool:
    async def ask() -> bool:
        client = InferenceGRPCClient(server.grpc)
        try:
            return bool(await client.is_server_ready())
        finally:
            await client.close()

    return asyncio.run(ask())


def grpc_infer_code(
    server: Served, timeout: float | None = None, **parameters: Any
) -> grpc.StatusCode:
    from tests.server.test_clients import v2_request

    async def ask() -> grpc.StatusCode:
        client = InferenceGRPCClient(server.grpc, retries=0)
        request = v2_request(server.name, ["x"], **parameters)
        request.inputs[0].data = [b"x"]
        try:
            await client.infer(request, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            return error.code()
        finally:
            await client.close()
        return grpc.StatusCode.OK

    return asyncio.run(ask())


@contextlib.contextmanager
def at_work(
    checkpoints: Checkpoints, *flags: str, **parameters: Any
) -> Iterator[tuple[Served, concurrent.futures.Future[httpx.Response]]]:
    """A server that is generating for as long as its gate is closed, and the reply to come."""
    settings = {"max_new_tokens": 40, "temperature": 1.0, "seed": 3, **parameters}
    with (
        serve(checkpoints("bloom"), *SMALL, *flags, gated=True) as server,
        concurrent.futures.ThreadPoolExecutor() as pool,
    ):
        server.await_ready()
        with server.gate.closed():
            running = pool.submit(server.predict, "a long one", **settings)
            server.gate.await_pass()
            yield server, running


def test_a_start_opens_its_ports_first_is_live_and_not_ready_and_then_is(
    checkpoints: Checkpoints,
) -> None:
    flags = ("--max_model_len=64", "--prefill_chunk=16")
    with (
        serve(checkpoints("bloom"), *flags, gated=True) as server,
        server.gate.closed(),  # the passes with which a load ends
    ):
        assert status(server, "/v2/health/live") == 200
        assert status(server, "/") == 200
        not_ready = httpx.get(f"{server.url}/v2/health/ready")
        assert not_ready.status_code == 503
        assert not_ready.json()["ready"] is False
        assert "phase" in not_ready.json()["progress"]
        assert status(server, f"/v2/models/{server.name}/ready") == 503
        assert status(server, f"/v1/models/{server.name}") == 503
        assert not grpc_ready(server)
        assert grpc_infer_code(server) is grpc.StatusCode.UNAVAILABLE
        assert server.predict("too early").status_code == 503
        server.gate.open()
        server.await_ready()
        assert httpx.get(f"{server.url}/v2/health/ready").json() == {"ready": True}
        assert status(server, f"/v2/models/{server.name}/ready") == 200
        assert status(server, f"/v1/models/{server.name}") == 200
        assert grpc_ready(server)
        assert grpc_infer_code(server) is grpc.StatusCode.OK
        assert server.log.count("Placement of") == 1  # the early gRPC call loaded nothing


def test_a_start_that_repeats_one_is_ready_and_says_how_far_its_memory_is_filled(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    flags = ("--max_model_len=64", "--prefill_chunk=16", f"--offload_folder={tmp_path}/offload")
    with serve(checkpoints("bloom"), *flags) as first:
        first.await_ready()
    fault = (held_blocks.__name__, held_blocks.install.__name__, f"{tmp_path}/go")
    with serve(checkpoints("bloom"), *flags, faults=[fault]) as server:
        server.await_ready()
        answer = httpx.get(f"{server.url}/v2/health/ready")
        progress = answer.json().get("progress", {})
        assert (answer.status_code, answer.json()["ready"]) == (200, True)
        assert (progress["phase"], progress["bytes_done"]) == ("filling memory", 0)
        assert progress["blocks_total"] == 6
        Path(f"{tmp_path}/go").touch()
        assert server.predict("at once").status_code == 200
        deadline = time.monotonic() + 60
        while httpx.get(f"{server.url}/v2/health/ready").json() != {"ready": True}:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_health_answers_while_a_generation_runs(checkpoints: Checkpoints) -> None:
    with at_work(checkpoints) as (server, running):
        assert server.predict("too long " * 300).status_code == 400  # said now, not in its turn
        for path in ("/v2/health/live", "/v2/health/ready", f"/v1/models/{server.name}"):
            assert status(server, path) == 200
        assert grpc_ready(server)
        assert not running.done()
        server.gate.open()
        assert running.result().status_code == 200


def test_sigterm_lets_what_runs_end_refuses_the_rest_and_exits_with_0(
    checkpoints: Checkpoints,
) -> None:
    with at_work(checkpoints, "--grace_period=120") as (server, running):
        server.terminate()
        server.await_draining()
        assert not running.done()
        assert status(server, "/v2/health/ready") == 503
        assert status(server, f"/v2/models/{server.name}/ready") == 503
        assert status(server, "/v2/health/live") == 200
        assert not grpc_ready(server)
        assert server.predict("too late").status_code == 503
        assert grpc_infer_code(server) is grpc.StatusCode.UNAVAILABLE
        server.gate.open()
        answer = running.result()
        assert answer.status_code == 200
        assert answer.json()["predictions"][0]["completion_tokens"] > 0
        assert server.process.wait(30) == 0


def test_a_generation_longer_than_the_grace_period_is_cut_off(checkpoints: Checkpoints) -> None:
    with at_work(checkpoints, "--grace_period=0.5") as (server, running):
        server.terminate()
        assert server.process.wait(30) == 0
        assert "1 requests unfinished" in server.log
        with contextlib.suppress(httpx.TransportError):  # the process may end before it is sent
            assert running.result().status_code == 503


def test_a_second_sigterm_exits_at_once(checkpoints: Checkpoints) -> None:
    with at_work(checkpoints, "--grace_period=120") as (server, running):
        server.terminate()
        server.await_draining()
        server.terminate()
        assert server.process.wait(10) == 143
        with pytest.raises(httpx.TransportError):
            running.result()


def test_sigterm_while_loading_exits_at_once(checkpoints: Checkpoints) -> None:
    with serve(checkpoints("bloom"), gated=True) as server, server.gate.closed():
        assert server.url
        server.terminate()
        assert server.process.wait(10) == 143


def await_handlers(pid: int) -> None:
    """Waits until a process has a handler of SIGTERM (proc(5), SigCgt)."""
    status = Path(f"/proc/{pid}/status")
    while True:
        caught = re.findall(r"SigCgt:\s*(\w+)", status.read_text())
        if int(caught[0], 16) & 1 << (signal.SIGTERM - 1):
            return
        time.sleep(0.01)


def test_sigterm_before_the_ports_are_open_exits_at_once(checkpoints: Checkpoints) -> None:
    """A container's first process gets no signal that it has no handler for, not even to die."""
    with serve(checkpoints("bloom"), cold=True) as server:
        await_handlers(server.process.pid)
        assert "REST on" not in server.log
        server.terminate()
        assert server.process.wait(10) == 143


def test_one_request_more_than_may_wait_is_refused_and_the_others_are_answered(
    checkpoints: Checkpoints,
) -> None:
    with (
        at_work(checkpoints, "--max_requests=2", "--torchserve_api") as (server, running),
        concurrent.futures.ThreadPoolExecutor() as pool,
    ):
        waiting = pool.submit(
            server.predict, "another long one", max_new_tokens=40, temperature=1.0, seed=3
        )
        server.await_accepted(2)
        refused = server.predict("one too many")
        assert refused.status_code == 429
        assert "2 requests are running and waiting" in refused.json()["error"]
        assert int(refused.headers["retry-after"]) >= 1
        assert grpc_infer_code(server) is grpc.StatusCode.RESOURCE_EXHAUSTED
        server.gate.open()
        assert running.result().status_code == waiting.result().status_code == 200
        assert server.predict("now there is room", max_new_tokens=1).status_code == 200


def test_a_model_that_does_not_fit_ends_the_process_with_78_and_one_sentence(
    checkpoints: Checkpoints,
) -> None:
    with serve(checkpoints("bloom"), '--max_memory={"cpu": "300KiB"}') as server:
        assert server.process.wait(120) == 78
        last = server.log.strip().splitlines()[-1]
        assert last.startswith("predictor: BloomForCausalLM in float32 does not fit: main memory")
        assert "max_memory" in last


def test_a_port_that_is_taken_is_one_sentence(served: Served, checkpoints: Checkpoints) -> None:
    port = served.url.rpartition(":")[2]
    with serve(checkpoints("bloom"), f"--http_port={port}") as server:
        assert server.process.wait(60) == 78
        assert f"cannot listen on 127.0.0.1:{port}" in server.log.strip().splitlines()[-1]


def test_a_missing_model_is_one_sentence(tmp_path: Path) -> None:
    with serve(tmp_path / "nowhere") as server:
        assert server.process.wait(60) == 78
        assert "There is no model directory" in server.log.strip().splitlines()[-1]
