"""Refusals of our HTTP border over real sockets, in front of kserve's own routes."""

from __future__ import annotations

import logging
from typing import Any

import httpx
import pytest

from predictor.errors import GenerationFailed, NotReady
from predictor.protocol.http.errors import NEUTRAL
from tests.protocol.stub import Served
from tests.protocol.wire import BODY, INFER, PREDICT, TEXT, refusal


@pytest.mark.parametrize(
    ("method", "path", "sentence"),
    [
        ("GET", "/v1/models/nobody", "There is no model 'nobody'."),
        ("GET", "/v2/models/nobody", "There is no model 'nobody'."),
        ("GET", "/v2/models/nobody/ready", "There is no model 'nobody'."),
        ("POST", "/v1/models/nobody:predict", "There is no model 'nobody'."),
        ("POST", "/v1/models/nobody:explain", "There is no model 'nobody'."),
        ("POST", "/v2/models/nobody/infer", "There is no model 'nobody'."),
        ("GET", "/v2/models/echo/versions/2", "Model 'echo' has no version '2'; it has '1'."),
        ("GET", "/v2/models/echo/versions/2/ready", "Model 'echo' has no version '2'; it has '1'."),
        (
            "POST",
            "/v2/models/echo/versions/2/infer",
            "Model 'echo' has no version '2'; it has '1'.",
        ),
        ("GET", "/nothing", "There is nothing at this path."),
        ("GET", "/v2/models/" + "x" * 500, "There is no model '" + "x" * 63 + "…'."),
    ],
)
def test_what_is_not_there_is_404(
    client: httpx.Client, method: str, path: str, sentence: str
) -> None:
    assert refusal(client.request(method, path), 404) == sentence


def test_a_wrong_method_is_405_and_names_the_right_ones(client: httpx.Client) -> None:
    response = client.get(INFER)
    assert refusal(response, 405) == "This path does not take this method."
    assert response.headers["allow"] == "POST"


def test_explaining_is_501(client: httpx.Client) -> None:
    response = client.post("/v1/models/echo:explain", json={"instances": ["a"]})
    assert refusal(response, 501) == "This model does not explain; it predicts."


@pytest.mark.parametrize(
    ("path", "content", "sentence"),
    [
        (PREDICT, b"", "The body is not valid JSON at line 1, column 1."),
        (PREDICT, b"[1", "The body is not valid JSON at line 1, column 3."),
        (PREDICT, b"[1]", "The body must be an object, not a list."),
        (PREDICT, b"\xff", "The body is not valid UTF-8 at byte 0."),
        (PREDICT, b'{"instances": []}', "instances is empty; give at least one prompt."),
        (PREDICT, b'{"inputs": []}', "inputs is empty; give at least one prompt."),
        (
            PREDICT,
            b'{"inputs": ["a"], "instances": ["a"]}',
            "The body has both 'instances' and 'inputs'.",
        ),
        (INFER, b'{"inputs": [], "input": []}', "Unknown key 'input' in the body; did you mean"),
        (PREDICT, b"[" * 100_000, "The body's JSON is nested too deeply."),
        (
            PREDICT,
            b'{"instances": ["a"], "parameters": {"seed": ' + b"9" * 99_999 + b"}}",
            "The body has an integer of more than 64 digits.",
        ),
        (
            INFER,
            b'{"inputs": []}',
            "inputs is empty; give a BYTES tensor with at least one prompt.",
        ),
        (INFER, b'{"inputs": NaN}', "The body has NaN, which is not a JSON number."),
        (INFER, b'{"inputs": [{}]}', "inputs[0] has no 'name'."),
    ],
)
def test_a_wrong_body_is_400_in_one_sentence(
    client: httpx.Client, path: str, content: bytes, sentence: str
) -> None:
    assert refusal(client.post(path, content=content), 400).startswith(sentence)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"shape": [2]}, "Input 'text' has 1 elements; its shape [2] says 2."),
        ({"shape": ["x"]}, "Input 'text' has a string in its shape instead of an integer."),
        ({"shape": [257], "data": ["a"] * 257}, "A request has at most 256 prompts; here are 257."),
        ({"shape": [-2]}, "Input 'text' has a dimension below 0 or above 9223372036854775807."),
        ({"shape": [0], "data": []}, "Input 'text' has no element; give at least one prompt."),
        ({"data": [1]}, "Input 'text' is BYTES; element 0 must not be an integer."),
        ({"data": [["a"]]}, "Input 'text' has data nested more deeply than its shape [1]."),
        (
            {"datatype": "FP16", "name": "top_p"},
            "inputs must have one BYTES tensor of prompts; here",
        ),
        ({"datatype": "TEXT"}, "Input 'text' is neither BYTES nor a parameter; known are max_new"),
        ({"parameters": {"top_k": 1}}, "top_k is a parameter of the request, not of input 'text'."),
    ],
)
def test_a_wrong_tensor_is_400_in_one_sentence(
    client: httpx.Client, change: Any, sentence: str
) -> None:
    response = client.post(INFER, json={"inputs": [{**TEXT, **change}]})
    assert refusal(response, 400).startswith(sentence)


def test_an_unknown_output_is_400(client: httpx.Client) -> None:
    response = client.post(INFER, json={**BODY, "outputs": [{"name": "logits"}]})
    assert refusal(response, 400).startswith("There is no output 'logits'; known are text,")


def test_a_models_own_refusal_keeps_its_meaning(served: Served, client: httpx.Client) -> None:
    served.model.failure = NotReady("The server is stopping.")
    assert refusal(client.post(INFER, json=BODY), 503) == "The server is stopping."
    served.model.failure = GenerationFailed("The model failed on this request.")
    assert refusal(client.post(INFER, json=BODY), 500) == "The model failed on this request."


@pytest.mark.parametrize("path", [PREDICT, INFER])
def test_an_unforeseen_error_tells_nothing_but_is_logged(
    served: Served, client: httpx.Client, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    served.model.failure = ZeroDivisionError("something secret")
    with caplog.at_level(logging.ERROR, logger="predictor"):
        body = {"instances": ["a"]} if path == PREDICT else BODY
        assert refusal(client.post(path, json=body), 500) == NEUTRAL
    assert "something secret" in caplog.text


def test_an_unforeseen_error_of_another_route_tells_nothing_either(client: httpx.Client) -> None:
    assert refusal(client.get("/test/unforeseen"), 500) == NEUTRAL


def test_the_frameworks_validation_is_400_without_its_text(client: httpx.Client) -> None:
    response = client.post("/test/typed", json=["x"])
    assert refusal(response, 400) == "body.0 is missing or is not what this path takes."
