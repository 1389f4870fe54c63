"""What a model's own failures do to a real server: one request, or the process."""

from __future__ import annotations

import concurrent.futures
import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.conftest import Checkpoints
from tests.server import fragile as fragile_server
from tests.server.process import Served, serve
from tests.serving import blocks_on_disk
from tests.volumes import cut_store_short

MODEL = '''
import torch
from transformers import LlamaForCausalLM


class FragileForCausalLM(LlamaForCausalLM):
    """Fails on a pass with "}" in it; after a pass with "~" it fails for ever."""

    broken = False

    def forward(self, input_ids=None, attention_mask=None, past_key_values=None, **kwargs):
        tokens = [] if input_ids.is_meta else input_ids.flatten().tolist()
        FragileForCausalLM.broken |= BREAKS in tokens
        if FragileForCausalLM.broken or FAILS in tokens:
            raise RuntimeError("a secret")
        return super().forward(
            input_ids, attention_mask, past_key_values=past_key_values, **kwargs
        )
'''


@pytest.fixture(scope="module")
def fragile(checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A Llama that comes with code of its own; the last test of it breaks it."""
    from tests.checkpoints import byte_tokenizer

    tmp_path = tmp_path_factory.mktemp("fragile")
    source = checkpoints("llama")
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    ids = byte_tokenizer()("}~").input_ids
    code = MODEL.replace("FAILS", str(ids[0])).replace("BREAKS", str(ids[1]))
    (tmp_path / "modeling_fragile.py").write_text(code)
    config = json.loads((tmp_path / "config.json").read_text())
    config["architectures"] = ["FragileForCausalLM"]
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_fragile.FragileForCausalLM"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    flags = ("--max_model_len=256", "--prefill_chunk=16", "--trust_remote_code")
    environ = {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    with serve(tmp_path, *flags, environ=environ) as server:
        yield server.await_ready()


def test_a_request_that_makes_the_model_fail_fails_alone(fragile: Served) -> None:
    expected = fragile.predict("a neighbour", max_new_tokens=60).json()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        neighbours = [
            pool.submit(fragile.predict, "a neighbour", max_new_tokens=60) for _ in range(3)
        ]
        bad = [pool.submit(fragile.predict, "100 }", max_new_tokens=5) for _ in range(3)]
    for answer in (future.result() for future in bad):
        assert answer.status_code == 500
        assert "secret" not in answer.text
    assert [future.result().json() for future in neighbours] == [expected] * 3
    assert httpx.get(f"{fragile.url}/v2/health/ready").status_code == 200


def test_a_model_that_is_broken_ends_the_process_after_saying_so(fragile: Served) -> None:
    with concurrent.futures.ThreadPoolExecutor() as pool:
        running = pool.submit(fragile.predict, "a neighbour", max_new_tokens=200)
        time.sleep(0.1)
        answer = pool.submit(fragile.predict, "all for ~", max_new_tokens=5).result()
        assert answer.status_code in (500, 503)
        assert running.result().status_code in (200, 503)
        assert fragile.process.wait(30) == 1
    assert "The model's engine has failed" in fragile.log.strip().splitlines()[-1]


def test_an_http_server_that_ends_by_itself_ends_the_process(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    end = tmp_path / "end"
    fault = (fragile_server.__name__, fragile_server.install.__name__, str(end))
    with serve(checkpoints("bloom"), "--max_model_len=64", faults=[fault]) as server:
        server.await_ready()
        end.touch()
        assert server.process.wait(30) == 1
        assert "RuntimeError: of the HTTP server" in server.log
        last = server.log.strip().splitlines()[-1]
        assert "The HTTP server has ended by itself." in last, server.log


def test_a_store_that_cannot_be_read_any_more_ends_the_process_and_the_next_writes_it_anew(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    folder = checkpoints("llama")
    flags = (
        "--max_model_len=256",
        "--offload_store=always",
        f"--offload_folder={tmp_path}",
        f"--device_map={json.dumps(blocks_on_disk(folder))}",
    )
    with serve(folder, *flags) as server:
        expected = server.await_ready().predict("a prompt", max_new_tokens=8).json()
        (store,) = tmp_path.glob("*.store")
        cut_store_short(tmp_path)
        broken = server.predict("a prompt", max_new_tokens=8)
        assert broken.status_code == 503
        assert broken.json()["error"].startswith("model.layers.")
        assert "cannot be read from" in broken.json()["error"]
        assert server.process.wait(30) == 1
    with serve(folder, *flags) as server:
        assert server.await_ready().predict("a prompt", max_new_tokens=8).json() == expected
        assert "The offload store is not used" in server.log
        assert store.stat().st_size > 8192
