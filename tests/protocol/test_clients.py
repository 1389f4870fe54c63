"""The clients that users have: kserve's own and Triton's."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import kserve
import numpy as np
import pytest
import tritonclient.http
import tritonclient.utils

from tests.protocol.stub import Served

_TEXTS = np.array(["one", "zweiß"], dtype=object)


def _request(*, is_binary: bool) -> kserve.InferRequest:
    tensor = kserve.InferInput("text", [2], "BYTES")
    tensor.set_data_from_numpy(_TEXTS, binary_data=is_binary)
    return kserve.InferRequest("echo", [tensor], parameters={"top_k": 3})


@pytest.mark.parametrize("is_binary", [True, False])
def test_kserves_rest_client_is_answered_in_v2(served: Served, is_binary: bool) -> None:
    async def ask() -> Any:
        config = kserve.RESTConfig(protocol="v2", retries=0)
        async with kserve.InferenceRESTClient(config) as client:
            assert await client.is_server_live(served.url)
            assert await client.is_server_ready(served.url)
            assert await client.is_model_ready(served.url, "echo")
            return await client.infer(served.url, _request(is_binary=is_binary), "echo")

    answer = asyncio.run(ask())
    assert answer.outputs[0].data == ["ONE", "ZWEISS"]
    assert served.model.requests[-1].prompts[0].parameters.top_k == 3


def test_kserves_rest_client_is_answered_in_v1(served: Served) -> None:
    async def ask() -> Any:
        config = kserve.RESTConfig(protocol="v1", retries=0)
        async with kserve.InferenceRESTClient(config) as client:
            assert await client.is_server_live(served.url)
            assert await client.is_model_ready(served.url, "echo")
            return await client.infer(served.url, {"instances": ["one"]}, "echo")

    assert asyncio.run(ask())["predictions"][0]["text"] == "ONE"


@pytest.mark.parametrize("is_binary", [True, False])
def test_kserves_grpc_client_is_answered(served: Served, is_binary: bool) -> None:
    async def ask() -> Any:
        async with kserve.InferenceGRPCClient(served.grpc_address, retries=0) as client:
            assert await client.is_server_live()
            assert await client.is_server_ready()
            assert await client.is_model_ready("echo")
            return await client.infer(_request(is_binary=is_binary))

    texts = asyncio.run(ask()).outputs[0].as_numpy().tolist()
    assert [text.decode() for text in texts] == ["ONE", "ZWEISS"]


@pytest.mark.parametrize("is_binary", [True, False])
@pytest.mark.parametrize("names_outputs", [True, False])
def test_tritons_http_client_is_answered(
    served: Served, is_binary: bool, names_outputs: bool
) -> None:
    triton = tritonclient.http
    text = triton.InferInput("text", [2], "BYTES")
    text.set_data_from_numpy(_TEXTS, binary_data=is_binary)
    heat = triton.InferInput("temperature", [1], "FP32")
    heat.set_data_from_numpy(np.array([0.5], dtype=np.float32), binary_data=is_binary)
    wanted = [triton.InferRequestedOutput("text", binary_data=is_binary)] * names_outputs
    with triton.InferenceServerClient(f"127.0.0.1:{served.http_port}") as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("echo", "1")
        assert client.get_model_metadata("echo")["platform"] == "stub"
        assert client.get_model_repository_index()[0]["state"] == "READY"
        answer = client.infer(
            "echo", [text, heat], outputs=wanted or None, request_id="7", model_version="1"
        )
    assert answer.get_response()["id"] == "7"
    assert _texts(answer) == ["ONE", "ZWEISS"]
    assert served.model.requests[-1].prompts[1].parameters.temperature == 0.5
    if not names_outputs:
        assert answer.as_numpy("prompt_tokens").tolist() == [3, 5]


def test_tritons_grpc_client_is_answered(served: Served) -> None:
    seen = _triton_over_grpc(served.grpc_address)
    assert seen == {
        "health": [True, True, True],
        "id": "7",
        "text": ["ONE", "ZWEISS"],
        "completion_tokens": [3, 5],
        "nobody": "There is no model 'nobody'.",
        "fraction": "Parameter 'top_p' has no value; send fractions as strings.",
    }
    assert served.model.requests[-1].prompts[0].parameters.top_k == 3


def _triton_over_grpc(address: str) -> Any:
    """In a process of its own: kserve's and Triton's messages have the same names."""
    script = Path(__file__).with_name("triton_over_grpc.py")
    run = subprocess.run(
        [sys.executable, script, address], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_tritons_http_client_sees_the_sentence_of_a_refusal(served: Served) -> None:
    triton = tritonclient.http
    text = triton.InferInput("text", [2], "BYTES")
    text.set_data_from_numpy(_TEXTS)
    with (
        triton.InferenceServerClient(f"127.0.0.1:{served.http_port}") as client,
        pytest.raises(tritonclient.utils.InferenceServerException) as refusal,
    ):
        client.infer("nobody", [text])
    assert refusal.value.message() == "There is no model 'nobody'."


def _texts(answer: Any) -> list[str]:
    """Triton's clients give bytes for binary data and strings for JSON."""
    texts = answer.as_numpy("text").tolist()
    return [text.decode() if isinstance(text, bytes) else text for text in texts]
