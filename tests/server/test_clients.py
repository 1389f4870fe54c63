"""KServe's own clients against the real server."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

import predictor.protocol  # noqa: F401  (imports kserve with pytest's arguments hidden)
from tests.server.process import Served

from kserve import (  # isort: skip
    InferenceGRPCClient,
    InferenceRESTClient,
    InferInput,
    InferRequest,
    RESTConfig,
)

PROMPTS = ["The weather", "is nice", "Grüße"]


def v2_request(name: str, prompts: list[str], **parameters: Any) -> InferRequest:
    tensor = InferInput(name="text", shape=[len(prompts)], datatype="BYTES", data=prompts)
    return InferRequest(
        model_name=name, infer_inputs=[tensor], request_id="42", parameters=parameters
    )


def texts(response: Any) -> list[str]:
    output = next(output for output in response.outputs if output.name == "text")
    return [
        item.decode() if isinstance(item, bytes) else str(item) for item in output.as_numpy().flat
    ]


def over_v1(served: Served, **parameters: Any) -> list[str]:
    async def ask() -> Any:
        client = InferenceRESTClient(RESTConfig(protocol="v1", timeout=120))
        body = {"instances": PROMPTS, "parameters": parameters}
        try:
            return await client.infer(served.url, body, model_name=served.name)
        finally:
            await client.close()

    return [prediction["text"] for prediction in asyncio.run(ask())["predictions"]]


def over_v2(served: Served, **parameters: Any) -> list[str]:
    async def ask() -> Any:
        client = InferenceRESTClient(RESTConfig(protocol="v2", timeout=120))
        request = v2_request(served.name, PROMPTS, **parameters)
        try:
            return await client.infer(served.url, request, model_name=served.name)
        finally:
            await client.close()

    response = asyncio.run(ask())
    assert response.id == "42"
    return texts(response)


def over_grpc(served: Served, **parameters: Any) -> list[str]:
    async def ask() -> Any:
        client = InferenceGRPCClient(served.grpc)
        try:
            assert await client.is_server_live()
            assert await client.is_server_ready()
            assert await client.is_model_ready(served.name)
            request = v2_request(served.name, [], **parameters)
            request.inputs[0] = InferInput(
                name="text",
                shape=[len(PROMPTS)],
                datatype="BYTES",
                data=[prompt.encode() for prompt in PROMPTS],
            )
            return await client.infer(request)
        finally:
            await client.close()

    response = asyncio.run(ask())
    assert response.id == "42"
    return texts(response)


def test_all_protocols_give_the_same_greedy_text(served: Served) -> None:
    v1 = over_v1(served, max_new_tokens=6, temperature=0)
    assert len(v1) == len(PROMPTS)
    assert over_v2(served, max_new_tokens=6, temperature=0) == v1
    assert over_grpc(served, max_new_tokens=6, temperature="0") == v1


def test_a_seed_repeats_a_sampled_reply_in_every_protocol(served: Served) -> None:
    first = over_v1(served, max_new_tokens=12, temperature=1.5, seed=7)
    assert over_v1(served, max_new_tokens=12, temperature=1.5, seed=7) == first
    assert over_grpc(served, max_new_tokens=12, temperature="1.5", seed=7) == first
    assert over_v1(served, max_new_tokens=12, temperature=1.5, seed=8) != first


def test_clients_see_the_placement_in_the_models_metadata(served: Served) -> None:
    metadata = httpx.get(f"{served.url}/v2/models/{served.name}").json()
    assert '"disk"' in metadata["properties"]["placement"]
    assert [tensor["name"] for tensor in metadata["outputs"]] == [
        "text",
        "finish_reason",
        "prompt_tokens",
        "completion_tokens",
    ]


def test_counts_and_reasons_are_right(served: Served) -> None:
    prediction = served.predict("abcde", max_new_tokens=3, temperature=0).json()["predictions"][0]
    assert prediction["prompt_tokens"] == 5
    assert prediction["completion_tokens"] == 3
    assert prediction["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        ({"instances": ["a" * 200]}, 400, "128"),
        ({"instances": ["hi"], "parameters": {"max_new_tokens": 1000}}, 400, "1000"),
        ({"instances": ["hi"], "parameters": {"temprature": 1}}, 400, "temperature"),
        ({"instances": ["hi"], "parameters": {"top_p": 0}}, 400, "top_p"),
        ({"instances": [5]}, 400, "instances"),
        ({"instances": []}, 400, "instances"),
        ({"instances": ["a"] * 257}, 400, "256"),
        ({}, 400, "instances"),
    ],
)
def test_bad_input_is_one_sentence_and_the_next_request_is_answered(
    served: Served, body: dict[str, Any], status: int, word: str
) -> None:
    answer = httpx.post(f"{served.url}/v1/models/{served.name}:predict", json=body, timeout=60)
    assert answer.status_code == status
    assert list(answer.json()) == ["error"]
    assert word in answer.json()["error"]
    assert served.predict("fine", max_new_tokens=1).status_code == 200


def test_a_prompt_that_is_too_long_names_both_numbers(served: Served) -> None:
    sentence = served.predict("a" * 200).json()["error"]
    assert "200" in sentence
    assert "128" in sentence


def test_neither_prompts_nor_replies_are_logged(served: Served) -> None:
    secret = "xylophone-quartz"
    reply = served.predict(secret, max_new_tokens=8, temperature=0, return_full_text=True)
    assert secret in reply.json()["predictions"][0]["text"]
    served.predict(secret * 50)  # refused: too long
    assert secret not in served.log


def test_unload_is_off(served: Served) -> None:
    answer = httpx.post(f"{served.url}/v2/repository/models/{served.name}/unload")
    assert answer.status_code == 404
    assert served.predict("still here", max_new_tokens=1).status_code == 200
