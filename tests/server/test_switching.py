"""A server with the flags and variables of KServe's Hugging Face server and of vLLM, over TLS."""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.certificates import self_signed
from tests.conftest import Checkpoints
from tests.server.process import Served, serve

KEY = {"Authorization": "Bearer from-a-file"}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    self_signed(folder)
    (folder / "keys").write_text("from-a-file\n")
    return folder


@pytest.fixture(scope="module")
def server(checkpoints: Checkpoints, certificate: Path) -> Iterator[Served]:
    with serve(
        checkpoints("bloom"),
        *("--backend=huggingface", "--workers=1", "--max-num-seqs", "4", "--max_length=64"),
        *("--served-model-name", "m", "org/m", "--enforce-eager", "-tp", "1"),
        *(f"--ssl_certfile={certificate}/tls.crt", f"--ssl_keyfile={certificate}/tls.key"),
        *(f"--api_key_file={certificate}/keys", "--log_format=json", "--device_map=cpu"),
    ) as server:
        yield server.await_ready()


@pytest.fixture
def client(server: Served, certificate: Path) -> Iterator[httpx.Client]:
    url = re.search(r"REST on (https://[\d.]+:\d+)", server.log)
    assert url is not None, server.log
    trusted = ssl.create_default_context(cafile=certificate / "tls.crt")
    with httpx.Client(base_url=url[1], verify=trusted, timeout=120) as client:
        yield client


def test_openais_client_is_answered_under_an_alias(client: httpx.Client, server: Served) -> None:
    asking = openai.OpenAI(
        base_url=f"{client.base_url}/v1", api_key="from-a-file", http_client=client
    )
    answer = asking.completions.create(model="org/m", prompt="The weather", max_tokens=2)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 2
    assert {model.id for model in asking.models.list()} == {"m", "org/m"}
    line = access_line(server, answer._request_id)
    assert (line["path"], line["status"]) == ("/v1/completions", 200)
    assert line["completion_tokens"] == 2
    assert line["prompt_tokens"] == answer.usage.prompt_tokens
    assert "The weather" not in server.log


def test_a_stream_has_a_line_with_its_tokens(client: httpx.Client, server: Served) -> None:
    body = {"model": "m", "prompt": "The", "max_tokens": 3, "stream": True}
    answer = client.post("/v1/completions", json=body, headers={**KEY, "X-Request-Id": "s1"})
    assert answer.text.endswith("data: [DONE]\n\n")
    line = access_line(server, "s1")
    assert line["completion_tokens"] == 3
    assert 0 < line["first_token_seconds"] <= line["seconds"]
    assert 0 <= line["queue_seconds"] <= line["first_token_seconds"]


def test_nobody_is_answered_without_a_key(client: httpx.Client) -> None:
    assert client.post("/v1/completions", json={}).status_code == 401
    assert client.get("/v2/health/ready").status_code == 200


def test_tokens_are_those_of_the_model(client: httpx.Client) -> None:
    answer = client.post("/tokenize", json={"prompt": "The weather"}, headers=KEY).json()
    assert answer["max_model_len"] == 64
    body = {"tokens": answer["tokens"]}
    assert client.post("/detokenize", json=body, headers=KEY).json() == {"prompt": "The weather"}


def test_the_log_says_what_became_of_each_flag(server: Served) -> None:
    for sentence in (
        "--backend changes nothing: this server has one backend, its own",
        "--max_num_seqs sets --max_batch_size",
        "--max_length sets --max_model_len, as in KServe's server",
        "gRPC has TLS",
    ):
        assert sentence in server.log


def access_line(server: Served, request_id: Any) -> dict[str, Any]:
    """Waits for the line of a request, which is written after its answer."""
    document = server._await(rf'(\{{.*"request_id": "{request_id}".*\}})')
    line: dict[str, Any] = json.loads(document)
    assert line["logger"] == "predictor.access"
    return line
