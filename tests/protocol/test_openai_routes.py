"""OpenAI's routes under each of their prefixes, beside those of KServe's V1."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import huggingface_hub
import kserve
import openai
import pytest
from prometheus_client import REGISTRY

from predictor.adapted_model import AdaptedModel
from predictor.errors import NotReady
from tests.protocol.stub import Served, serve
from tests.protocol.wire import PREDICT, refusal

PREFIXES = ["/openai", ""]
BODIES = {
    "completions": {"model": "echo", "prompt": "a"},
    "chat/completions": {"model": "echo", "messages": [{"role": "user", "content": "a"}]},
}


def asking(served: Served, prefix: str) -> Any:
    url = f"{served.url}{prefix}/v1"
    return openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=30)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_openais_client_is_answered(served: Served, prefix: str) -> None:
    with asking(served, prefix) as client:
        assert [model.id for model in client.models.list()] == ["echo"]
        assert client.models.retrieve("echo").object == "model"
        assert client.completions.create(model="echo", prompt="a").choices[0].text == "A"
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("org/nobody")
        with pytest.raises(openai.NotFoundError) as refused:
            client.completions.create(model="nobody", prompt="a")
    assert refused.value.code == "model_not_found"


def test_kserves_client_is_answered_where_both_list_models(served: Served) -> None:
    async def ask() -> bool:
        config = kserve.RESTConfig(protocol="v1", retries=0)
        async with kserve.InferenceRESTClient(config) as client:
            ready: bool = await client.is_model_ready(served.url, "echo")
            return ready

    assert asyncio.run(ask())
    assert httpx.get(f"{served.url}/v1/models").json()["models"] == ["echo"]


def test_a_model_that_is_not_ready_is_503_in_v1s_form(served: Served, client: httpx.Client) -> None:
    served.model.ready = False
    response = client.get("/v1/models/echo")
    assert (response.status_code, response.json()["ready"]) == (503, False)


@pytest.mark.parametrize("prefix", ["", "/mine", "/a/b"])
@pytest.mark.parametrize("path", BODIES)
def test_the_prefix_is_set(prefix: str, path: str) -> None:
    with serve(openai_prefix=prefix) as served, httpx.Client(base_url=served.url) as client:
        for each in {prefix, ""}:
            assert client.post(f"{each}/v1/{path}", json=BODIES[path]).status_code == 200
            served.model.failure = NotReady("Not now.")
            error = client.post(f"{each}/v1/{path}", json=BODIES[path]).json()["error"]
            assert error["message"] == "Not now."
            served.model.failure = None
        assert client.post(f"/openai/v1/{path}", json=BODIES[path]).status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/models/nobody", 404), ("POST", "/v1/models/nobody:predict", 404)],
)
def test_v1s_models_keep_v1s_errors(
    client: httpx.Client, method: str, path: str, status: int
) -> None:
    assert refusal(client.request(method, path), status) == "There is no model 'nobody'."


def test_v1s_predictions_keep_v1s_errors(client: httpx.Client) -> None:
    assert "JSON" in refusal(client.post(PREDICT, content=b"{"), 400)


@pytest.mark.parametrize("path", ["/v1/images", "/v1", "/mine/v1/images"])
def test_other_paths_below_v1_have_openais_errors(client: httpx.Client, path: str) -> None:
    response = client.get(path)
    assert response.status_code == 404
    assert response.json()["error"]["type"] == "invalid_request_error"


def counts(name: str, outcome: str) -> float:
    labels = {"model_name": name, "protocol": "openai", "outcome": outcome}
    return REGISTRY.get_sample_value("predictor_requests_total", labels) or 0.0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", BODIES)
def test_a_request_is_counted_by_the_model_that_it_names(path: str, stream: bool) -> None:
    with serve() as served:
        served.models.update(AdaptedModel("sql", served.model))
        served.models.update(served.model, "org/echo")
        outcomes = [(name, way) for way in ("ok", "bad_request") for name in ("echo", "sql")]
        before = [counts(*outcome) for outcome in outcomes]
        for name in ("echo", "sql", "org/echo", "nobody"):
            body = {**BODIES[path], "model": name, "stream": stream}
            httpx.post(f"{served.url}/v1/{path}", json=body)
        httpx.post(f"{served.url}/v1/embeddings", json={"model": "sql", "input": "a"})
    changes = [counts(*outcome) - was for outcome, was in zip(outcomes, before, strict=True)]
    assert changes == [2, 1, 1, 1]


@pytest.mark.parametrize("name", ["dummy", "tgi"])
def test_a_placeholder_of_hugging_faces_clients_is_the_model(
    client: httpx.Client, name: str
) -> None:
    body = {"model": name, "prompt": "a"}
    answer = client.post("/v1/completions", json=body)
    assert (answer.status_code, answer.json()["model"]) == (200, "echo")
    assert client.get("/v1/models").json()["models"] == ["echo"]


def test_hugging_faces_client_chats_without_a_models_name(served: Served) -> None:
    with huggingface_hub.InferenceClient(served.url, timeout=30) as hub:
        answer = hub.chat_completion([{"role": "user", "content": "a"}])
    assert answer.choices[0].message.content == "USER: A"
