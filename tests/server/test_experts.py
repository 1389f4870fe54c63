"""The heat of a mixture's experts, asked of a real server."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import httpx

from tests.mixture.families import EXPERTS, ROUTED
from tests.server.process import Served, serve

FLAGS = ("--max_model_len=64", "--prefill_chunk=16", "--max_concurrency=1")
_SECONDS = 30


def layers_of(server: Served) -> list[dict[str, Any]]:
    answer = httpx.get(f"{server.url}/v2/models/{server.name}/experts", timeout=30)
    assert answer.status_code == 200
    layers: list[dict[str, Any]] = answer.json()["layers"]
    return layers


def await_use(server: Served, tokens: int) -> list[dict[str, Any]]:
    """Wait until each layer has counted so many tokens."""
    deadline = time.monotonic() + _SECONDS
    while True:
        layers = layers_of(server)
        if layers and all(sum(layer["tokens"]) == tokens for layer in layers):
            return layers
        assert time.monotonic() < deadline, layers
        time.sleep(0.05)


def hottest_shares(server: Served) -> dict[str, float]:
    """The gauge, by layer."""
    text = httpx.get(f"{server.url}/metrics", timeout=30).text
    lines = re.findall(r'^predictor_expert_hottest_ratio\{layer="(.+?)",.*\} (\S+)$', text, re.M)
    return {layer: float(share) for layer, share in lines}


def ask(server: Served) -> int:
    """Have a reply generated; return the experts that its tokens use in each layer."""
    answer = server.predict("8 bytes.", max_new_tokens=4)  # as many as a shape has: no padding
    (prediction,) = answer.json()["predictions"]
    return ROUTED * int(prediction["prompt_tokens"] + prediction["completion_tokens"] - 1)


def test_experts_that_are_read_show_their_use_by_requests_and_which_are_in_slots(
    mixture: Path,
) -> None:
    with serve(mixture, '--max_memory={"cpu": "16MiB"}', *FLAGS) as server:
        server.await_ready()
        assert "stay in main memory" in server.log
        await_use(server, 0)  # the warm-up does not count
        used = ask(server)
        layers = await_use(server, used)
        assert [layer["name"] for layer in layers] == [
            f"model.layers.{index}.mlp.experts" for index in range(4)
        ]
        assert {len(layer["tokens"]) for layer in layers} == {EXPERTS}
        assert all(layer["hottest_share"] == max(layer["tokens"]) / used for layer in layers)
        assert hottest_shares(server) == {layer["name"]: layer["hottest_share"] for layer in layers}
        assert all(layer["in_slots"].keys() == {"cpu"} for layer in layers)
        kept = sum(len(layer["in_slots"]["cpu"]) for layer in layers)
        assert 0 < kept <= server.gauge("predictor_expert_slots")


def test_experts_that_are_all_in_memory_show_their_use(mixture: Path) -> None:
    with serve(mixture, *FLAGS) as server:
        server.await_ready()
        layers = await_use(server, ask(server))
        assert [layer["in_slots"] for layer in layers] == [{}] * 4


def test_a_model_without_experts_has_no_layers_of_them(served: Served) -> None:
    assert layers_of(served) == []
