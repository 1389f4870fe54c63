"""A model bigger than its pod: a real server in a real control group smaller than the model."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from kserve.protocol.grpc.grpc_predict_v2_pb2 import ModelInferRequest

from tests import forked
from tests.cgroups import memory_cgroup
from tests.checkpoints import big_checkpoint
from tests.server.process import Served, serve

GIB = 1024**3
DEMO = Path(__file__).parents[2] / "examples" / "demo-model"


@pytest.fixture(scope="module")
def big_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with big_checkpoint(tmp_path_factory.mktemp("big"), blocks=28) as folder:  # 1.34 GiB
        yield folder


@pytest.mark.root
def test_a_limit_below_what_the_process_takes_is_said_before_it_is_killed(big_model: Path) -> None:
    with memory_cgroup(300 * 1024**2) as group:
        command = [sys.executable, "-m", "predictor", "serve", f"--model_dir={big_model}"]
        done = subprocess.run(group.command(command), capture_output=True, text=True, timeout=60)
        assert group.oom_kills() == 0
    assert done.returncode == 78, done.stderr
    sentence = done.stderr.strip().splitlines()[-1]
    assert sentence.startswith(
        "predictor: The predictor's own processes take 608.00 MiB of main memory"
    )
    assert sentence.endswith("raise the container's memory limit.")


@pytest.mark.root
def test_a_model_bigger_than_the_memory_limit_is_served_and_not_killed(big_model: Path) -> None:
    limit = int(1.2 * GIB)
    weights = sum(file.stat().st_size for file in big_model.glob("*.safetensors"))
    assert weights > limit
    with (
        memory_cgroup(limit) as group,
        serve(
            big_model,
            "--max_model_len=256",
            "--prefill_chunk=64",
            prefix=group.command([]),
        ) as server,
    ):
        server.await_ready()
        first = server.predict("the same prompt", max_new_tokens=3, temperature=0)
        server.predict("y" * 200, max_new_tokens=3, temperature=0)
        again = server.predict("the same prompt", max_new_tokens=3, temperature=0)
        assert first.status_code == again.status_code == 200
        assert first.json() == again.json()
        assert group.oom_kills() == 0
        tiers = _tiers(server.url, server.name)
        assert tiers["cpu"]["weights"] > 0
        assert tiers["disk"]["weights"] > 0
        assert tiers["cpu"]["owned"] < limit
        planned = _planned(big_model, limit)
        # No less than was planned with, and less than two blocks of 49 MiB more.
        assert 0 <= tiers["cpu"]["owned"] - planned["cpu"]["owned"] < 98 * 1024**2
        assert 0 <= planned["disk"]["units"] - tiers["disk"]["units"] <= 2
        assert server.process.poll() is None


@pytest.mark.root
def test_in_the_least_memory_that_fits_nothing_is_killed_with_every_bound_used_to_the_full() -> (
    None
):
    flags = ("--max_model_len=512", "--max_batch_size=4", "--dtype=float32")
    limit = _least(DEMO, *flags)
    with (
        memory_cgroup(limit) as group,
        serve(DEMO, *flags, prefix=group.command([])) as server,
        ThreadPoolExecutor(40) as clients,
        grpc.insecure_channel(server.grpc, options=_ANY_SIZE) as channel,
    ):
        server.await_ready()
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        # The longest sequences in the largest batch and behind it, each with a grammar of its own,
        # and all at one time with as many of the worst bodies.
        calls = [
            call
            for number in range(8)
            for call in (
                clients.submit(_complete, server, _longest(number)),
                clients.submit(_complete, server, _IDS),
                clients.submit(_complete, server, _TEXT),
                clients.submit(_complete, server, _OBJECTS),
                clients.submit(_infer, infer, server.name),
            )
        ]
        statuses = {call.result() for call in calls}
        assert 200 in statuses
        assert statuses <= {200, 400, 413, 429, *_REFUSALS}
        assert group.oom_kills() == 0
        assert "threads take its place" not in server.log
        assert server.process.poll() is None


_MIB = 1024**2
_ANY_SIZE = [("grpc.max_send_message_length", -1)]
_REFUSALS = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED}
_IDS = '{"prompt": [' + "257," * (5 * _MIB // 4 - 100) + "1]}"
_TEXT = '{"truncate_prompt_tokens": 100, "prompt": "' + "\u4e00x." * (8 * _MIB // 5 - 100) + '"}'
_OBJECTS = '{"prompt": [' + '{"":0},' * (8 * _MIB // 7 - 100) + "1]}"


def _longest(number: int) -> str:
    """Return a request of the greatest length with a grammar of its own."""
    body = {
        "prompt": [5] * 480,
        "max_tokens": 32,
        "temperature": 0,
        "guided_regex": f"[a-z]{{{number + 1},900}}",
    }
    return json.dumps(body)


def _complete(server: Served, body: str) -> int:
    """Ask for a completion; return the status."""
    content = f'{{"model": "{server.name}", {body[1:]}'.encode()
    return httpx.post(
        f"{server.url}/openai/v1/completions", content=content, timeout=240
    ).status_code


def _infer(infer: Any, model: str) -> grpc.StatusCode:
    """Call with a text as large as a message may be; return the code."""
    contents = {"bytes_contents": [b"word " * (8 * _MIB // 5 - 100)]}
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "contents": contents}
    request = ModelInferRequest(model_name=model, inputs=[tensor])
    try:
        infer(request.SerializeToString(), timeout=240)
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()  # type: ignore[attr-defined]
        return code
    return grpc.StatusCode.OK


def _least(model: Path, *flags: str) -> int:
    """Return the least memory limit that `predictor plan` accepts, in bytes."""
    below = 632
    refused = forked.run(["plan", str(model), f"--memory={below}MiB", *flags])
    lacking = re.search(r"would fit with ([\d.]+) MiB more main memory", refused.stderr)
    assert lacking is not None, refused.stderr
    limit = below + math.ceil(float(lacking[1]))
    for mebibytes, is_enough in ((limit, True), (limit - 2, False)):
        done = forked.run(["plan", str(model), f"--memory={mebibytes}MiB", *flags])
        assert (done.returncode == 0) is is_enough
    return limit * 1024**2


def _planned(model: Path, limit: int) -> dict[str, dict[str, int]]:
    """What `predictor plan` says of a container with this memory limit."""
    flags = ("--output=json", "--max_model_len=256", "--prefill_chunk=64")
    done = forked.run(["plan", str(model), f"--memory={limit}", *flags], check=True)
    return {tier["name"]: tier for tier in json.loads(done.stdout)["tiers"]}


def _tiers(url: str, name: str) -> dict[str, dict[str, int]]:
    properties = httpx.get(f"{url}/v2/models/{name}").json()["properties"]
    return {tier["name"]: tier for tier in json.loads(properties["placement"])["tiers"]}
