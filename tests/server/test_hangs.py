"""A disk that hangs under a real server: readiness, the end of the process, and SIGTERM."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.conftest import Checkpoints
from tests.fuse import HangingVolume, hanging_volume
from tests.server.process import Served, serve
from tests.serving import blocks_on_disk


@contextlib.contextmanager
def on_volume(
    checkpoints: Checkpoints, tmp_path: Path, *flags: str
) -> Iterator[tuple[Served, HangingVolume]]:
    """A server that is ready and streams half of its blocks from a volume that can hang."""
    source = checkpoints("llama")
    device_map = json.dumps(blocks_on_disk(source))
    with (
        hanging_volume(source, tmp_path / "volume") as volume,
        serve(volume.path, "--max_model_len=256", f"--device_map={device_map}", *flags) as server,
    ):
        try:
            yield server.await_ready(), volume
        finally:
            volume.resume()


def is_ready(server: Served) -> bool:
    return httpx.get(f"{server.url}/v2/health/ready", timeout=30).status_code == 200


def await_ready(server: Served, expected: bool, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while is_ready(server) is not expected:
        assert time.monotonic() < deadline, server.log
        time.sleep(0.05)


def test_a_hung_disk_makes_the_model_unready_until_it_goes_on(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    with (
        concurrent.futures.ThreadPoolExecutor() as pool,
        on_volume(checkpoints, tmp_path, "--stall_timeout=1") as (server, volume),
    ):
        expected = server.predict("a prompt", max_new_tokens=8).json()
        volume.hang()
        running = pool.submit(server.predict, "a prompt", max_new_tokens=8)
        await_ready(server, False)
        assert httpx.get(f"{server.url}/v2/health/live").status_code == 200
        refused = server.predict("another", max_new_tokens=8)
        assert refused.status_code == 503
        assert "is stalled" in refused.json()["error"]
        server.await_gauge("predictor_engine_stalled", 1)
        volume.resume()
        assert running.result().json() == expected
        await_ready(server, True)
        server.await_gauge("predictor_engine_stalled", 0)
        assert server.log.count("The engine is stalled, so the model is not ready: ") == 1
        assert re.search(
            rf"Reading model\.layers\.\d+ from {volume.path}/\S+ has taken", server.log
        )
        assert server.log.count("The engine goes on") == 1


def test_a_disk_that_hangs_for_long_ends_the_process_and_requests_get_a_status(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    flags = ("--stall_timeout=0.5", "--hang_timeout=1", "--grace_period=20")
    with (
        concurrent.futures.ThreadPoolExecutor() as pool,
        on_volume(checkpoints, tmp_path, *flags) as (server, volume),
    ):
        volume.hang()
        running = pool.submit(server.predict, "a prompt", max_new_tokens=8)
        assert server.process.wait(60) == 1
        assert running.result().status_code == 503
        assert "The engine hangs, so the process ends: " in server.log.strip().splitlines()[-1]


@pytest.mark.parametrize("requests", [0, 1])
def test_sigterm_ends_a_server_whose_disk_hangs_within_its_grace_period(
    checkpoints: Checkpoints, tmp_path: Path, requests: int
) -> None:
    with (
        concurrent.futures.ThreadPoolExecutor() as pool,
        on_volume(checkpoints, tmp_path, "--grace_period=1") as (server, volume),
    ):
        volume.hang()
        running = [pool.submit(server.predict, "x", max_new_tokens=8) for _ in range(requests)]
        for future in running:
            with pytest.raises(concurrent.futures.TimeoutError):
                future.result(0.5)
        server.terminate()
        assert server.process.wait(15) == 0
