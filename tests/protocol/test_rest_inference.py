"""Prompts and their answers, over real sockets."""

from __future__ import annotations

import json

import httpx
import pytest

from tests.protocol.stub import Served
from tests.protocol.wire import BODY, INFER, PREDICT, TEXT


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "application/json; charset=utf-8",
        "text/plain",
        "application/octet-stream",
        "application/x-www-form-urlencoded",
        None,
    ],
)
def test_json_is_json_whatever_its_content_type_says(
    client: httpx.Client, content_type: str | None
) -> None:
    headers = {"content-type": content_type} if content_type else {}
    v1 = client.post(PREDICT, content=b'{"instances": ["a\xc3\xa9"]}', headers=headers)
    assert v1.json()["predictions"][0]["text"] == "AÉ"
    v2 = client.post(INFER, content=json.dumps(BODY).encode(), headers=headers)
    assert v2.json()["outputs"][0]["data"] == ["A"]


def test_parameters_reach_the_model(served: Served, client: httpx.Client) -> None:
    client.post(PREDICT, json={"instances": ["a"], "parameters": {"top_k": 3}})
    client.post(INFER, json={**BODY, "parameters": {"top_p": 0.5}})
    first, second = (request.prompts[0].parameters for request in served.model.requests)
    assert (first.top_k, second.top_p) == (3, 0.5)


@pytest.mark.parametrize("path", [INFER, "/v2/models/echo/versions/1/infer"])
def test_an_answer_has_the_requests_id_and_the_models_name(client: httpx.Client, path: str) -> None:
    document = client.post(path, json={"id": "forty-two", **BODY}).json()
    assert document["id"] == "forty-two"
    assert (document["model_name"], document["model_version"]) == ("echo", "1")


def test_an_answer_to_a_request_without_id_has_a_new_one(client: httpx.Client) -> None:
    ids = {client.post(INFER, json=BODY).json()["id"] for _ in range(2)}
    assert len(ids) == 2


def test_only_the_requested_outputs_come(client: httpx.Client) -> None:
    outputs = [{"name": "completion_tokens"}, {"name": "text"}]
    document = client.post(INFER, json={**BODY, "outputs": outputs}).json()
    assert [output["name"] for output in document["outputs"]] == ["completion_tokens", "text"]


def test_a_binary_request_gets_a_binary_answer(client: httpx.Client) -> None:
    about = {**TEXT, "parameters": {"binary_data_size": 5}}
    del about["data"]
    head = json.dumps({"inputs": [about], "parameters": {"binary_data_output": True}}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    answer = client.post(INFER, content=head + b"\x01\0\0\0a", headers=headers)
    assert answer.headers["content-type"] == "application/octet-stream"
    end = int(answer.headers["inference-header-content-length"])
    assert answer.content[end:].startswith(b"\x01\0\0\0A\x04\0\0\0stop")
