"""Two servers as their users see them: nothing here is private to the predictor.

A model that generates and one that embeds, each with part of it on disk. Every protocol gives the
same answer, and that of transformers or sentence-transformers for the same model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import Checkpoints
from tests.encoding.checkpoints import minilm_folder
from tests.server.process import Served, serve

PROMPTS = ["The weather", "is nice and", "I stay at home"]
NEW_TOKENS = 12
SENTENCES = ["A man is playing the guitar on a stage.", "The stock market fell.", "short"]


def openai_client(server: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/openai/v1", api_key="none", max_retries=0)


def post(server: Served, path: str, body: dict[str, Any], **headers: str) -> httpx.Response:
    response = httpx.post(f"{server.url}{path}", json=body, headers=headers, timeout=120)
    assert response.status_code == 200, response.text
    return response


def over_v1(server: Served, texts: Sequence[str], **parameters: Any) -> list[Any]:
    body = {"instances": list(texts), "parameters": parameters}
    predictions: list[Any] = post(server, "/v1/models/m:predict", body).json()["predictions"]
    return predictions


def over_v2(server: Served, texts: Sequence[str], **parameters: Any) -> dict[str, Any]:
    tensor = {"name": "text", "shape": [len(texts)], "datatype": "BYTES", "data": list(texts)}
    body = {"inputs": [tensor], "parameters": parameters}
    outputs = post(server, "/v2/models/m/infer", body).json()["outputs"]
    return {output["name"]: output["data"] for output in outputs}


def generated(folder: Path, texts: Sequence[str]) -> list[str]:
    """The greedy reply of transformers' own ``generate`` to each text by itself."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    replies = []
    for text in texts:
        ids = tokenizer(text, return_tensors="pt").input_ids
        output = model.generate(ids, max_new_tokens=NEW_TOKENS, do_sample=False)
        replies.append(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))
    return replies


@pytest.fixture(scope="module")
def expected(checkpoints: Checkpoints) -> list[str]:
    return generated(checkpoints("bloom"), PROMPTS)


def test_half_of_the_model_is_on_disk(served: Served) -> None:
    properties = httpx.get(f"{served.url}/v2/models/m").json()["properties"]
    device_map = json.loads(properties["placement"])["device_map"]
    assert "disk" in device_map.values()


def test_v1_v2_and_openai_give_the_reply_of_generate(served: Served, expected: list[str]) -> None:
    greedy = {"max_new_tokens": NEW_TOKENS, "temperature": 0}
    assert [each["text"] for each in over_v1(served, PROMPTS, **greedy)] == expected
    assert over_v2(served, PROMPTS, **greedy)["text"] == expected
    completion = openai_client(served).completions.create(
        model="m", prompt=PROMPTS, max_tokens=NEW_TOKENS, temperature=0
    )
    assert [choice.text for choice in completion.choices] == expected
    assert completion.usage is not None
    counts = over_v2(served, PROMPTS, **greedy)["completion_tokens"]
    assert completion.usage.completion_tokens == sum(counts)


def test_streams_give_the_same_reply_in_parts(served: Served, expected: list[str]) -> None:
    chunks = openai_client(served).completions.create(
        model="m", prompt=PROMPTS[0], max_tokens=NEW_TOKENS, temperature=0, stream=True
    )
    parts = [chunk.choices[0].text for chunk in chunks]
    assert len(parts) > 1
    assert "".join(parts) == expected[0]
    body = {
        "instances": PROMPTS,
        "parameters": {"max_new_tokens": NEW_TOKENS, "temperature": 0},
    }
    events = post(served, "/v1/models/m:predict", body, accept="text/event-stream").text
    replies = [""] * len(PROMPTS)
    for line in filter(None, events.splitlines()):
        event = json.loads(line.removeprefix("data: "))
        replies[event["index"]] += event["text"]
    assert replies == expected


def test_each_call_is_in_the_metrics_of_kserves_dashboards(served: Served) -> None:
    over_v1(served, PROMPTS[:1], max_new_tokens=1)
    over_v2(served, PROMPTS[:1], max_new_tokens=1)
    metrics = httpx.get(f"{served.url}/metrics").text
    for step in ("preprocess", "predict", "postprocess"):
        name = f'request_{step}_seconds_count{{model_name="m"}} '
        (count,) = (line for line in metrics.splitlines() if line.startswith(name))
        assert float(count.removeprefix(name)) >= 2


@pytest.fixture(scope="module")
def embedding() -> Iterator[Served]:
    """all-MiniLM-L6-v2 with part of its layers on disk."""
    layers = {f"encoder.layer.{n}": "disk" if n % 2 else "cpu" for n in range(6)}
    device_map = {"embeddings": "cpu", **layers, "pooler": "cpu"}
    with serve(minilm_folder(), f"--device_map={json.dumps(device_map)}") as server:
        yield server.await_ready()


def test_embeddings_are_those_of_sentence_transformers(embedding: Served) -> None:
    reference = SentenceTransformer(str(minilm_folder()), device="cpu").encode(SENTENCES)
    expected = torch.tensor(reference)
    v1 = torch.tensor(over_v1(embedding, SENTENCES))
    torch.testing.assert_close(v1, expected, atol=1e-5, rtol=0)
    flat = over_v2(embedding, SENTENCES)["embedding"]
    torch.testing.assert_close(torch.tensor(flat).view_as(v1), v1, atol=1e-6, rtol=0)
    response = openai_client(embedding).embeddings.create(model="m", input=SENTENCES)
    vectors = torch.tensor([item.embedding for item in response.data])
    torch.testing.assert_close(vectors, v1, atol=1e-6, rtol=0)
    tei = post(embedding, "/embed", {"inputs": SENTENCES}).json()
    torch.testing.assert_close(torch.tensor(tei), v1, atol=1e-6, rtol=0)
