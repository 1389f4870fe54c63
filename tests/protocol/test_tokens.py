"""vLLM's routes for tokens, health and the version."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

import predictor
from predictor.admission import AdmissionController, AdmissionLimits
from predictor.tasks.text_length import lengths_of
from predictor.tasks.text_tokens import TextTokens
from tests.checkpoints import byte_tokenizer
from tests.protocol.stub import Served

TOKENIZER = byte_tokenizer()
CHAT = [{"role": "user", "content": "hi"}]


@pytest.fixture(autouse=True)
def tokens(served: Served) -> None:
    served.model.tokens = text_tokens()


def text_tokens(admission: AdmissionController | None = None) -> TextTokens:
    return TextTokens(
        TOKENIZER,
        64,
        len(TOKENIZER),
        lambda turns: TOKENIZER("chat").input_ids,
        lengths_of(TOKENIZER),
        admission,
    )


@pytest.mark.parametrize("more", [{}, {"model": "echo"}, {"add_special_tokens": False}])
def test_a_prompt_becomes_tokens_and_comes_back(client: httpx.Client, more: Any) -> None:
    document = client.post("/tokenize", json={"prompt": "héllo", **more}).json()
    assert list(document) == ["count", "max_model_len", "tokens", "token_strs"]
    assert (document["count"], document["max_model_len"]) == (6, 64)
    assert len(document["tokens"]) == 6
    assert document["token_strs"] is None
    back = client.post("/detokenize", json={"tokens": document["tokens"], **more})
    assert back.json() == {"prompt": "héllo"}


def test_tokens_have_names_if_requested(client: httpx.Client) -> None:
    body = {"prompt": "a b", "return_token_strs": True, "unheard_of": 1}
    assert client.post("/tokenize", json=body).json()["token_strs"] == ["a", "Ġ", "b"]


def test_a_conversation_becomes_tokens(client: httpx.Client) -> None:
    body = {"messages": CHAT, "add_generation_prompt": True}
    assert client.post("/tokenize", json=body).json()["count"] == len("chat")


def test_anthropics_route_counts_the_tokens_of_a_conversation(client: httpx.Client) -> None:
    body = {"model": "echo", "messages": CHAT, "system": "s"}
    response = client.post("/v1/messages/count_tokens", json=body)
    assert response.json() == {"input_tokens": len("chat")}
    refused = client.post("/v1/messages/count_tokens", json={**body, "messages": []})
    assert refused.json()["error"]["message"] == "messages is empty; give at least one."


@pytest.mark.parametrize(
    ("path", "body", "sentence"),
    [
        ("/tokenize", {}, "The body needs one of 'prompt' and 'messages'."),
        (
            "/tokenize",
            {"prompt": "a", "messages": CHAT},
            "The body needs one of 'prompt' and 'messages'.",
        ),
        ("/tokenize", {"prompt": ["a"]}, "prompt must be a string, not a list."),
        ("/tokenize", {"messages": []}, "messages is empty; give at least one."),
        ("/tokenize", {"prompt": "a", "chat_template": "x"}, "chat_template is not supported: "),
        ("/detokenize", {}, "tokens must be a list, not null."),
        ("/detokenize", {"tokens": ["a"]}, "tokens must be an integer, not a string."),
        ("/detokenize", {"tokens": [-1]}, "A token id is not between 0 and "),
        ("/detokenize", {"tokens": [10**9]}, "A token id is not between 0 and "),
    ],
)
def test_a_wrong_body_is_refused_in_openais_form(
    client: httpx.Client, path: str, body: Any, sentence: str
) -> None:
    response = client.post(path, json=body)
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith(sentence)


def test_a_long_text_is_counted_and_a_large_one_that_is_too_long_is_not(
    client: httpx.Client,
) -> None:
    assert client.post("/tokenize", json={"prompt": "a" * 100}).json()["count"] == 100
    response = client.post("/tokenize", json={"prompt": "a" * (64 * 1024 + 1)})
    assert response.json()["error"]["code"] == "context_length_exceeded"
    assert "A text of 65537 characters has more than 64 tokens" in response.text


@pytest.mark.parametrize(
    ("path", "body"), [("/tokenize", {"prompt": "a" * 90}), ("/detokenize", {"tokens": [1] * 90})]
)
def test_texts_are_admitted_as_those_of_other_requests(
    served: Served, client: httpx.Client, path: str, body: Any
) -> None:
    admission = AdmissionController(AdmissionLimits(4, 2**20, sequences=8, tokens=100))
    served.model.tokens = text_tokens(admission)
    assert client.post(path, json=body).status_code == 200
    other = admission.enter(1, 50)
    assert client.post(path, json=body).status_code == 429
    other.release()
    assert client.post(path, json=body).status_code == 200
    assert (admission.running, admission.tokens) == (0, 0)


def test_an_unknown_model_is_not_found(client: httpx.Client) -> None:
    response = client.post("/tokenize", json={"model": "nobody", "prompt": "a"})
    assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")


def test_health_is_that_of_the_models(served: Served, client: httpx.Client) -> None:
    assert (client.get("/health").status_code, client.get("/health").content) == (200, b"")
    served.model.ready = False
    assert client.get("/health").status_code == 503
    assert client.post("/tokenize", json={"prompt": "a"}).status_code == 503


def test_the_version_is_that_of_this_server(client: httpx.Client) -> None:
    assert client.get("/version").json() == {"version": predictor.__version__}
