"""The generate extension over real sockets, held against its own OpenAPI document."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from openapi_schema_validator import OAS31Validator

from predictor.errors import DeadlineExceeded, GenerationFailed, NotReady, Overloaded
from predictor.protocol.kserve.generate import Events
from predictor.tasks.answers import Piece, ScoredToken
from predictor.tasks.request import GenerationParameters, Prompt
from tests.protocol.stub import MAX_BODY_BYTES, EchoModel, Served
from tests.skips import skip_or_fail

SPEC = Path(__file__).parents[3] / "shared" / "spec" / "generate_rest.yaml"
PLAIN = "/v2/models/echo"
MODELS = [PLAIN, "/v2/models/echo/versions/1"]
DETAILS = {"text_input": "ab", "parameters": {"details": True}}
A = {"id": 65, "text": "A", "logprob": -0.5, "special": False}
B = {"id": 66, "text": "B", "logprob": -1.0, "special": False}
ABOUT = {"model_name": "echo", "model_version": "1"}


def check(schema: str, document: Any) -> None:
    """Holds a response against the document; without it the test is skipped, or fails if told."""
    if not SPEC.exists():
        skip_or_fail(f"the extension's OpenAPI document is not at {SPEC}", "REQUIRE_SHARED")
    components = yaml.safe_load(SPEC.read_text())["components"]
    whole = {"$ref": f"#/components/schemas/{schema}", "components": components}
    errors = [error.message for error in OAS31Validator(whole).iter_errors(document)]
    assert not errors


def refusal(response: httpx.Response, status: int) -> str:
    assert response.status_code == status, response.text
    document = response.json()
    assert list(document) == ["error"]
    return str(document["error"])


def events(response: httpx.Response) -> list[Any]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    *blocks, rest = response.text.split("\n\n")
    assert rest == ""
    return [json.loads(block.removeprefix("data: ")) for block in blocks]


@pytest.mark.parametrize("model", MODELS)
def test_a_text_is_continued(client: httpx.Client, model: str) -> None:
    response = client.post(f"{model}/generate", json={"text_input": "héllo"})
    assert response.status_code == 200
    assert response.json() == {"text_output": "HÉLLO", **ABOUT}


def test_details_are_in_the_answer_if_requested(client: httpx.Client) -> None:
    document = client.post(f"{PLAIN}/generate", json=DETAILS).json()
    assert document["details"] == {"finish_reason": "eos_token", "logprobs": [A, B]}


@pytest.mark.parametrize("model", MODELS)
def test_a_stream_has_an_event_for_each_piece(client: httpx.Client, model: str) -> None:
    response = client.post(f"{model}/generate_stream", json={"text_input": "ab"})
    assert events(response) == [{"text_output": "A", **ABOUT}, {"text_output": "B", **ABOUT}]


def test_a_streams_last_event_has_the_details(client: httpx.Client) -> None:
    assert events(client.post(f"{PLAIN}/generate_stream", json=DETAILS)) == [
        {"text_output": "A", **ABOUT, "token": A},
        {
            "text_output": "B",
            **ABOUT,
            "token": B,
            "details": {"finish_reason": "eos_token", "token": B},
        },
    ]


def test_a_last_piece_without_a_token_repeats_the_last_token() -> None:
    first, second = ScoredToken(65, "A", -0.5), ScoredToken(66, "B", -1.0)
    stream = Events(EchoModel())
    assert list(stream.encode(Piece(0, "AB", None, 1, 2, (first, second)))) == [
        {"text_output": "", **ABOUT, "token": A},
        {"text_output": "AB", **ABOUT, "token": B},
    ]
    assert list(stream.encode(Piece(0, "", "length", 1, 2))) == [
        {"text_output": "", **ABOUT, "details": {"finish_reason": "length", "token": B}}
    ]


def test_every_response_follows_the_document(client: httpx.Client) -> None:
    for body in ({"text_input": "ab"}, DETAILS):
        check("GenerateResponse", client.post(f"{PLAIN}/generate", json=body).json())
        for event in events(client.post(f"{PLAIN}/generate_stream", json=body)):
            check("GenerateStreamResponse", event)
    check("GenerateErrorResponse", client.post(f"{PLAIN}/generate", json={}).json())


def test_the_extensions_defaults_hold(served: Served, client: httpx.Client) -> None:
    client.post(f"{PLAIN}/generate", json={"text_input": "a"})
    defaults = GenerationParameters(default_new_tokens=20, temperature=1.0)
    assert served.model.requests[-1].prompts == (Prompt("a", defaults),)


@pytest.mark.parametrize("is_flat", [False, True])
def test_parameters_reach_the_model(served: Served, client: httpx.Client, is_flat: bool) -> None:
    given = {
        "temperature": 0,
        "top_p": 0.5,
        "max_tokens": 3,
        "stop": ["x"],
        "details": False,
        "top_k": 4,
        "seed": 5,
        "repetition_penalty": 1.5,
        "presence_penalty": 1,
        "frequency_penalty": -1,
        "timeout": 6,
    }
    body = {"text_input": "a", "id": "42", **(given if is_flat else {"parameters": given})}
    assert client.post(f"{PLAIN}/generate", json=body).status_code == 200
    assert served.model.requests[-1].prompts[0].parameters == GenerationParameters(
        max_new_tokens=3,
        temperature=0.0,
        top_p=0.5,
        top_k=4,
        repetition_penalty=1.5,
        presence_penalty=1.0,
        frequency_penalty=-1.0,
        seed=5,
        stop=("x",),
        timeout=6.0,
        default_new_tokens=20,
    )


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({}, "The body has no 'text_input'."),
        ({"text_input": None}, "The body has no 'text_input'."),
        ({"text_input": ["a"]}, "text_input must be a string, not a list."),
        ({"text_input": "a", "parameters": 3}, "parameters must be an object, not an integer."),
        ({"text_input": "a", "top_p": 2}, "top_p must be above 0 and at most 1, not 2."),
        ({"text_input": "a", "topp": 1}, "Unknown key 'topp' in the body; did you mean 'top_p'?"),
        (
            {"text_input": "a", "parameters": {"watermark": True}},
            "Unknown key 'watermark' in parameters; known are max_tokens,",
        ),
        (
            {"text_input": "a", "top_p": 1, "parameters": {"top_p": 1}},
            "top_p is given twice, in the body and in its parameters.",
        ),
    ],
)
def test_a_wrong_body_is_refused_in_one_sentence(
    client: httpx.Client, body: Any, sentence: str
) -> None:
    for verb in ("generate", "generate_stream"):
        assert refusal(client.post(f"{PLAIN}/{verb}", json=body), 422).startswith(sentence)


def test_a_stream_is_asked_for_at_its_own_path(client: httpx.Client) -> None:
    body = {"text_input": "a", "stream": True}
    assert client.post(f"{PLAIN}/generate_stream", json=body).status_code == 200
    sentence = "stream is true; replies are streamed at generate_stream."
    assert refusal(client.post(f"{PLAIN}/generate", json=body), 422) == sentence
    assert client.post(f"{PLAIN}/generate", json={**body, "stream": False}).status_code == 200


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"max_tokens": 0}, "max_tokens must be between 1 and 2147483647."),
        ({"max_tokens": "9"}, "max_tokens must be an integer, not a string."),
        ({"temperature": -1}, "temperature must be 0 (greedy) or between 0.01 and 100, not -1."),
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1, not 1.5."),
        ({"stop": 3}, "stop must be a list, not an integer."),
        ({"stop": [1]}, "stop must be a string or a list of strings."),
        ({"details": 1}, "details must be a boolean, not an integer."),
        ({"timeout": 0}, "timeout must be a number of seconds above 0, not 0."),
    ],
)
def test_a_wrong_parameter_is_refused_in_one_sentence(
    client: httpx.Client, parameters: dict[str, Any], sentence: str
) -> None:
    body = {"text_input": "a", "parameters": parameters}
    assert refusal(client.post(f"{PLAIN}/generate", json=body), 422) == sentence


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (GenerationFailed("No."), 424),
        (Overloaded("No.", retry_after=3), 429),
        (NotReady("No."), 503),
        (DeadlineExceeded("No."), 504),
    ],
)
@pytest.mark.parametrize("verb", ["generate", "generate_stream"])
def test_a_failure_has_the_documents_status(
    served: Served, client: httpx.Client, failure: Exception, status: int, verb: str
) -> None:
    served.model.failure = failure
    response = client.post(f"{PLAIN}/{verb}", json={"text_input": "a"})
    assert refusal(response, status) == "No."
    assert response.headers.get("retry-after") == ("3" if status == 429 else None)


def test_a_failure_in_a_stream_is_its_last_event(
    served: Served, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served.model, "late_failure", GenerationFailed("Failed."))
    last = events(client.post(f"{PLAIN}/generate_stream", json={"text_input": "a"}))[-1]
    assert last == {"error": "Failed."}


def test_errors_that_are_not_the_bodys_keep_their_status(
    served: Served, client: httpx.Client
) -> None:
    body = {"text_input": "a"}
    assert "no model" in refusal(client.post("/v2/models/nobody/generate", json=body), 404)
    versioned = "/v2/models/echo/versions/2/generate"
    assert "no version" in refusal(client.post(versioned, json=body), 404)
    refusal(client.get(f"{PLAIN}/generate"), 405)
    refusal(client.post(f"{PLAIN}/generate", content=b" " * (MAX_BODY_BYTES + 1)), 413)
    served.model.ready = False
    refusal(client.post(f"{PLAIN}/generate", json={}), 503)


def test_the_header_limits_the_time(served: Served, client: httpx.Client) -> None:
    headers = {"x-request-timeout": "2.5"}
    client.post(f"{PLAIN}/generate", json={"text_input": "a"}, headers=headers)
    assert served.model.timeouts[-1] == 2.5
