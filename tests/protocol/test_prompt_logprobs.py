"""``prompt_logprobs`` as vLLM has it, and ``echo`` with ``logprobs`` as OpenAI's API had it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from predictor.errors import RequestError
from predictor.protocol.openai.request import decode_chat, decode_completion
from predictor.tasks.request import GenerationParameters
from tests.protocol.stub import serve
from tests.serving import Up, bring_up

DEMO = Path(__file__).parents[2] / "examples" / "demo-model"
TEXT = "Today the weather is really nice"
HELLO = [{"role": "user", "content": TEXT}]


@pytest.fixture(scope="module")
def up() -> Up:
    """In float32: half precision rounds a chunk's logits differently from those of a whole pass."""
    return bring_up(DEMO, device_map="cpu", dtype="float32", max_model_len=64, prefill_chunk=4)


@pytest.fixture(scope="module")
def scoring(up: Up) -> Iterator[httpx.Client]:
    with serve() as served:
        served.model.task = up.task
        with httpx.Client(base_url=served.url, timeout=60) as client:
            yield client


def complete(client: httpx.Client, route: str = "completions", **keys: Any) -> dict[str, Any]:
    body = {"model": "echo", "temperature": 0, **keys}
    response = client.post(f"/v1/{route}", json=body)
    assert response.status_code == 200, response.text
    document: dict[str, Any] = response.json()
    return document


def logprobs_of(up: Up, ids: list[int]) -> list[float]:
    """The log probability of each token but the first, by the whole model at once."""
    with torch.inference_mode():
        logits = up.model(torch.tensor([ids])).logits[0, :-1].float()
    return torch.log_softmax(logits, dim=-1)[range(len(ids) - 1), ids[1:]].tolist()


def test_a_reply_with_its_prompt_has_the_log_probabilities_of_both(
    up: Up, scoring: httpx.Client
) -> None:
    ids = up.task.tokenizer(TEXT).input_ids
    (choice,) = complete(scoring, prompt=ids, echo=True, logprobs=1, max_tokens=1)["choices"]
    lists = choice["logprobs"]
    assert len(set(map(len, lists.values()))) == 1
    assert len(lists["tokens"]) == len(ids) + 1
    assert (lists["token_logprobs"][0], lists["top_logprobs"][0]) == (None, None)
    assert lists["token_logprobs"][1:-1] == pytest.approx(logprobs_of(up, ids), abs=1e-4)
    assert choice["text"].startswith(TEXT)
    assert lists["text_offset"] == sorted(lists["text_offset"])
    for logprob, top in zip(lists["token_logprobs"][1:], lists["top_logprobs"][1:], strict=True):
        assert logprob in top.values()
        assert len(top) <= 2


def test_a_prompt_can_be_scored_without_a_reply(up: Up, scoring: httpx.Client) -> None:
    ids = up.task.tokenizer(TEXT).input_ids
    document = complete(scoring, prompt=[TEXT, TEXT], echo=True, logprobs=0, max_tokens=0)
    for choice in document["choices"]:
        assert choice["text"] == TEXT
        assert choice["finish_reason"] == "length"
        assert len(choice["logprobs"]["tokens"]) == len(ids)
    assert document["usage"]["completion_tokens"] == 0
    bare = complete(scoring, prompt=TEXT, echo=True, max_tokens=0)["choices"][0]
    assert (bare["text"], bare["logprobs"]) == (TEXT, None)


def test_log_probabilities_of_a_prompt_have_vllms_form(up: Up, scoring: httpx.Client) -> None:
    ids = up.task.tokenizer(TEXT).input_ids
    document = complete(scoring, prompt=TEXT, prompt_logprobs=2, max_tokens=1)
    rows = document["choices"][0]["prompt_logprobs"]
    assert document["choices"][0]["logprobs"] is None
    assert rows[0] is None
    for token, row, logprob in zip(ids[1:], rows[1:], logprobs_of(up, ids), strict=True):
        assert row[str(token)]["logprob"] == pytest.approx(logprob, abs=1e-4)
        assert row[str(token)]["decoded_token"] == up.task.tokenizer.decode([token])
        ranks = {each["rank"] for each in row.values()}
        assert {1, 2} <= ranks
        assert len(row) in (2, 3)


def test_chats_have_them_beside_the_choices(scoring: httpx.Client) -> None:
    document = complete(
        scoring, "chat/completions", messages=HELLO, prompt_logprobs=0, max_tokens=2, n=2, seed=1
    )
    assert len(document["prompt_logprobs"]) == document["usage"]["prompt_tokens"]
    assert all(len(row) == 1 for row in document["prompt_logprobs"][1:])
    assert "prompt_logprobs" not in document["choices"][0]


def test_each_list_has_as_many_alternatives_as_it_needs(scoring: httpx.Client) -> None:
    document = complete(
        scoring, prompt=TEXT, echo=True, logprobs=3, prompt_logprobs=1, max_tokens=1
    )
    (choice,) = document["choices"]
    assert all(len(row) <= 2 for row in choice["prompt_logprobs"][1:])
    assert any(len(top) >= 3 for top in choice["logprobs"]["top_logprobs"][1:])
    document = complete(
        scoring, prompt=TEXT, echo=True, logprobs=1, prompt_logprobs=5, max_tokens=1
    )
    (choice,) = document["choices"]
    assert all(len(row) >= 5 for row in choice["prompt_logprobs"][1:])
    assert all(len(top) <= 2 for top in choice["logprobs"]["top_logprobs"][1:])


def test_all_replies_to_a_prompt_have_its_log_probabilities(scoring: httpx.Client) -> None:
    keys = {"echo": True, "logprobs": 1, "prompt_logprobs": 1, "max_tokens": 2, "n": 3}
    document = complete(scoring, prompt=[TEXT, "Anna likes"], seed=1, temperature=1, **keys)
    choices = document["choices"]
    for first in (0, 3):
        scores = [choice["prompt_logprobs"] for choice in choices[first : first + 3]]
        assert scores[0] == scores[1] == scores[2]
        assert all(choice["logprobs"]["top_logprobs"][1] for choice in choices)
    assert choices[0]["prompt_logprobs"] != choices[3]["prompt_logprobs"]


def test_a_stream_begins_with_the_log_probabilities_of_its_prompt(scoring: httpx.Client) -> None:
    keys = {"prompt": [TEXT, "Anna likes"], "echo": True, "logprobs": 2, "n": 2, "seed": 1}
    whole = complete(scoring, max_tokens=3, temperature=1, **keys)
    chunks = streamed(scoring, max_tokens=3, temperature=1, **keys)
    assert whole["choices"] == joined(chunks, 4)
    first = chunks[0]["choices"][0]
    assert first["text"] in (TEXT, "Anna likes")
    assert first["logprobs"]["token_logprobs"][0] is None


def test_a_prompt_alone_can_be_streamed(scoring: httpx.Client) -> None:
    keys = {"prompt": TEXT, "echo": True, "logprobs": 0, "max_tokens": 0}
    assert joined(streamed(scoring, **keys), 1) == complete(scoring, **keys)["choices"]


def streamed(client: httpx.Client, **keys: Any) -> list[dict[str, Any]]:
    """The chunks of a stream."""
    body = {"model": "echo", "temperature": 0, "stream": True, **keys}
    with client.stream("POST", "/v1/completions", json=body) as response:
        assert response.status_code == 200
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def joined(chunks: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """The choices of a whole answer with the parts of a stream."""
    choices: list[dict[str, Any]] = [{"index": n, "text": "", "logprobs": {}} for n in range(count)]
    for part in (part for chunk in chunks for part in chunk["choices"]):
        choice = choices[part["index"]]
        choice["text"] += part["text"]
        choice["finish_reason"] = part["finish_reason"]
        for name, values in (part["logprobs"] or {}).items():
            choice["logprobs"].setdefault(name, []).extend(values)
    return choices


def test_tgi_has_the_tokens_of_the_prompt_in_its_details(up: Up) -> None:
    ids = up.task.tokenizer(TEXT).input_ids
    with serve(tgi=True) as served, httpx.Client(base_url=served.url, timeout=60) as client:
        served.model.task = up.task
        parameters = {"details": True, "decoder_input_details": True, "max_new_tokens": 2}
        for more in ({}, {"best_of": 2, "do_sample": True, "top_n_tokens": 3}):
            body = {"inputs": TEXT, "parameters": parameters | more}
            details = client.post("/generate", json=body).json()["details"]
            for each in (details, *details.get("best_of_sequences", ())):
                prefill = each["prefill"]
                assert [token["id"] for token in prefill] == ids
                assert prefill[0]["logprob"] is None
                scores = [token["logprob"] for token in prefill[1:]]
                assert scores == pytest.approx(logprobs_of(up, ids), abs=1e-4)
                assert len(each["tokens"]) == 2


def test_more_log_probabilities_than_may_be_in_flight_are_refused(scoring: httpx.Client) -> None:
    prompts = [[5] * 60 for _ in range(200)]
    body = {"model": "echo", "prompt": prompts, "prompt_logprobs": 20, "max_tokens": 1}
    refused = scoring.post("/v1/completions", json=body)
    assert refused.status_code == 400
    assert "max_tokens_in_flight" in refused.json()["error"]["message"]


def parameters(**keys: Any) -> GenerationParameters:
    return decode_completion({"prompt": "a", **keys}).request.prompts[0].parameters


def test_nothing_is_scored_that_is_not_needed() -> None:
    assert parameters(echo=True).prompt_logprobs is None
    assert parameters(logprobs=1).prompt_logprobs is None
    assert parameters(echo=True, logprobs=2, prompt_logprobs=1).prompt_logprobs == 2
    assert parameters(max_tokens=0, echo=True).max_new_tokens == 0


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"max_tokens": 0}, "max_tokens must be between 1 and"),
        ({"max_tokens": 0, "echo": False}, "max_tokens must be between 1 and"),
        ({"max_tokens": False, "echo": True}, "max_tokens must be an integer, not a boolean."),
        ({"prompt_logprobs": -1}, "prompt_logprobs must be between 0 and 20."),
        ({"prompt_logprobs": 21}, "prompt_logprobs must be between 0 and 20."),
        ({"prompt_logprobs": "1"}, "prompt_logprobs must be an integer, not a string."),
        ({"echo": True, "logprobs": 6}, "logprobs must be between 0 and 5."),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs cannot be streamed: set"),
    ],
)
def test_what_cannot_be_scored_is_refused(keys: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RequestError) as refused:
        decode_completion({"prompt": "a", **keys})
    assert str(refused.value).startswith(sentence)
    if "echo" not in keys:
        with pytest.raises(RequestError) as of_chats:
            decode_chat({"messages": HELLO, **keys})
        assert str(of_chats.value).startswith(sentence)
