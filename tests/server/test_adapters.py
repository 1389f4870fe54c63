"""A LoRA adapter is a model of its own to every client, and takes the base's place in a request."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from transformers import AutoModelForCausalLM

from tests.adapters import write_adapter
from tests.conftest import Checkpoints
from tests.server.process import Served, serve

PROMPT = "The weather"


@pytest.fixture(scope="module")
def adapted(checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder: Path = checkpoints("llama")
    model = AutoModelForCausalLM.from_pretrained(folder)
    root = tmp_path_factory.mktemp("adapters")
    paths = [
        write_adapter(root / name, model, ("q_proj", "down_proj"), seed=seed)
        for seed, name in enumerate(("one", "two"))
    ]
    pairs = [f"{path.name}={path}" for path in paths]
    with serve(folder, "--max_model_len=128", "--lora-modules", *pairs) as server:
        yield server.await_ready()


def by_openai(served: Served, model: str) -> str:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none") as client:
        answer = client.completions.create(model=model, prompt=PROMPT, max_tokens=8, temperature=0)
    return answer.choices[0].text


def by_v1(served: Served, model: str) -> str:
    body: dict[str, Any] = {"instances": [PROMPT], "parameters": {"max_new_tokens": 8}}
    return _post(served, f"/v1/models/{model}:predict", body)["predictions"][0]["text"]


def by_v2(served: Served, model: str) -> str:
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": [PROMPT]}
    body = {"inputs": [tensor], "parameters": {"max_new_tokens": 8}}
    outputs = _post(served, f"/v2/models/{model}/infer", body)["outputs"]
    return next(output["data"][0] for output in outputs if output["name"] == "text")


def _post(served: Served, path: str, body: dict[str, Any]) -> Any:
    response = httpx.post(served.url + path, json=body, timeout=60)
    assert response.status_code == 200, response.text
    return response.json()


def test_every_protocol_picks_an_adapter_by_its_name(adapted: Served) -> None:
    names = (adapted.name, "one", "two")
    texts = [by_openai(adapted, name) for name in names]
    assert len(set(texts)) == 3, "the adapters change nothing"
    assert [by_v1(adapted, name) for name in names] == texts
    assert [by_v2(adapted, name) for name in names] == texts


def test_adapters_are_listed_and_say_their_base(adapted: Served) -> None:
    listed = httpx.get(f"{adapted.url}/openai/v1/models").json()["data"]
    assert [model["id"] for model in listed] == [adapted.name, "one", "two"]
    metadata = httpx.get(f"{adapted.url}/v2/models/one").json()
    assert metadata["properties"]["base"] == adapted.name


def test_an_unknown_adapter_is_no_model(adapted: Served) -> None:
    response = httpx.post(
        f"{adapted.url}/v1/completions", json={"model": "three", "prompt": PROMPT}, timeout=60
    )
    assert response.status_code == 404
    assert "'three'" in response.text or '"three"' in response.text.replace("\\", "")
