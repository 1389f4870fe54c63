"""A model bigger than its pod: a real server in a real control group smaller than the model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from transformers import LlamaConfig

from tests.cgroups import memory_cgroup
from tests.checkpoints import VOCABULARY, make_checkpoint
from tests.server.process import serve

GIB = 1024**3
BIG = LlamaConfig(
    vocab_size=VOCABULARY,
    hidden_size=1024,
    intermediate_size=2816,
    num_hidden_layers=28,
    num_attention_heads=8,
    num_key_value_heads=8,
    max_position_embeddings=512,
    tie_word_embeddings=False,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=3,
)
"""28 blocks of 4*1024*1024 + 3*1024*2816 parameters: 1.34 GiB in fp32."""


@pytest.fixture(scope="module")
def big_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = make_checkpoint(
        tmp_path_factory.mktemp("big"), "llama", config=BIG, shard_size="200MB"
    )
    yield folder
    for file in folder.iterdir():
        file.unlink()


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
        assert server.process.poll() is None


def _tiers(url: str, name: str) -> dict[str, dict[str, int]]:
    properties = httpx.get(f"{url}/v2/models/{name}").json()["properties"]
    return {tier["name"]: tier for tier in json.loads(properties["placement"])["tiers"]}
