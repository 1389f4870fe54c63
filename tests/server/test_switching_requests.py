"""Requests of clients that come from KServe's Hugging Face server, vLLM, Triton or OpenAI."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.process import serve

DEMO = Path(__file__).parents[2] / "examples" / "demo-model"
TEXT = {"model": "demo", "prompt": "It was", "max_tokens": 2, "temperature": 0}
TURN = {"role": "user", "content": "It was"}
CHAT = {"model": "demo", "messages": [TURN], "max_tokens": 2, "temperature": 0}
REPLY = " raining in"


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with (
        serve(DEMO, "--max_model_len=256", name="demo") as server,
        httpx.Client(base_url=server.await_ready().url, timeout=120) as client,
    ):
        yield client


@pytest.mark.parametrize(
    "more",
    [
        {"min_p": 0},
        {"skip_special_tokens": True},
        {"top_k": -1},
        {"stop": ""},
        {"logprobs": None, "n": None, "stop": None},
        {"repetition_penalty": 1.0, "guided_json": None, "mirostat": 2},
    ],
)
@pytest.mark.parametrize("path", ["/v1/completions", "/openai/v1/completions"])
def test_keys_that_ask_for_nothing_change_nothing(
    client: httpx.Client, path: str, more: dict[str, Any]
) -> None:
    response = client.post(path, json={**TEXT, **more})
    assert response.status_code == 200, response.text
    assert response.json()["choices"][0]["text"] == REPLY


@pytest.mark.parametrize(
    "more",
    [
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"messages": [TURN, {"role": "assistant", "content": "a", "reasoning_content": "b"}, TURN]},
        {"messages": [TURN, {"role": "assistant", "content": "a", "id": "x"}, TURN]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "It was"}]}]},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
    ],
)
def test_chats_of_other_servers_are_answered(client: httpx.Client, more: dict[str, Any]) -> None:
    response = client.post("/v1/chat/completions", json={**CHAT, **more})
    assert response.status_code == 200, response.text
    assert response.json()["choices"][0]["message"]["content"]


def test_v1_takes_inputs_for_instances(client: httpx.Client) -> None:
    parameters = {"max_new_tokens": 2, "temperature": 0}
    body = {"inputs": ["It was"], "parameters": parameters}
    predictions = client.post("/v1/models/demo:predict", json=body).json()["predictions"]
    assert predictions[0]["text"] == REPLY


def test_v2_takes_an_open_dimension(client: httpx.Client) -> None:
    tensor = {"name": "input-0", "datatype": "BYTES", "shape": [-1], "data": ["It was", "It was"]}
    body = {"inputs": [tensor], "parameters": {"max_new_tokens": 2, "temperature": 0}}
    outputs = client.post("/v2/models/demo/infer", json=body).json()["outputs"]
    assert (outputs[0]["shape"], outputs[0]["data"]) == ([2], [REPLY, REPLY])


def test_tritons_generate_takes_parameters_beside_the_text(client: httpx.Client) -> None:
    body = {"text_input": "It was", "max_tokens": 2, "temperature": 0}
    assert client.post("/v2/models/demo/generate", json=body).json()["text_output"] == REPLY


def test_tritons_microseconds_are_refused_with_both_units(client: httpx.Client) -> None:
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["It was"]}
    body = {"inputs": [tensor], "parameters": {"timeout": 1_000_000}}
    response = client.post("/v2/models/demo/infer", json=body)
    assert response.status_code == 400
    assert "in seconds, and not in microseconds" in response.json()["error"]


def test_tritons_tools_find_a_config_and_statistics(client: httpx.Client) -> None:
    assert client.get("/v2/models/demo/config").json()["name"] == "demo"
    assert client.get("/v2/models/demo/stats").json()["model_stats"][0]["name"] == "demo"


def test_a_compressed_body_is_inflated(client: httpx.Client) -> None:
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    body = gzip.compress(json.dumps(TEXT).encode())
    response = client.post("/v1/completions", content=body, headers=headers)
    assert response.json()["choices"][0]["text"] == REPLY


def test_a_request_id_is_echoed_and_the_document_describes_our_routes(
    client: httpx.Client,
) -> None:
    response = client.get("/openapi.json", headers={"X-Request-Id": "abc"})
    assert response.headers["x-request-id"] == "abc"
    assert {"/v1/chat/completions", "/v2/models/{model}/generate"} <= response.json()[
        "paths"
    ].keys()


def test_a_number_that_is_just_too_large_is_shown_as_it_is(client: httpx.Client) -> None:
    response = client.post("/v1/completions", json={**TEXT, "top_p": 1.0000001})
    assert response.json()["error"]["message"].endswith("not 1.0000001.")


def test_health_and_version_are_where_vllm_has_them(client: httpx.Client) -> None:
    assert client.get("/health").status_code == 200
    assert client.get("/version").json()["version"]
