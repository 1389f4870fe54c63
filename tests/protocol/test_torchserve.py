"""TorchServe's routes over real sockets, as its clients call them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from predictor.errors import (
    DeadlineExceeded,
    GenerationFailed,
    NotReady,
    Overloaded,
    RequestError,
)
from predictor.protocol.response_style import OUR_STYLE, handler_style
from predictor.tasks.request import GenerationParameters
from tests.protocol.stub import MAX_BODY_BYTES, Served, serve
from tests.protocol.wire import INFER, PREDICT

PREDICTIONS = "/predictions/echo"
MULTIPART = {"files": {"data": ("input.txt", b"a text")}}
FORM = {"content-type": "application/x-www-form-urlencoded"}
NOTHING = GenerationParameters()
HANDLER = GenerationParameters(
    temperature=1.0,
    top_p=0.95,
    top_k=60,
    return_full_text=True,
    default_new_tokens=80,
    prompt_limit=80,
)


@pytest.fixture(scope="module")
def running_torchserve() -> Iterator[Served]:
    with serve(torchserve=True) as served:
        yield served


@pytest.fixture
def served(running_torchserve: Served) -> Iterator[Served]:
    """The server of this module, whose model is put right again."""
    yield running_torchserve
    model = running_torchserve.model
    model.ready, model.failure, model.style = True, None, OUR_STYLE
    model.requests.clear()


def refusal(response: httpx.Response, status: int, kind: str) -> str:
    assert response.status_code == status, response.text
    document = response.json()
    assert document["code"] == status
    assert document["type"] == kind
    assert list(document) == ["code", "type", "message"]
    return str(document["message"])


@pytest.mark.parametrize(
    "sent",
    [
        {"content": b"a text"},
        {"content": b"a text", "headers": {"content-type": "text/plain"}},
        {"data": {"data": "a text"}},
        {"data": {"body": "a text"}},
        {"files": {"data": b"a text"}},
        {"files": {"data": ("input.txt", b"a text", "text/plain")}},
        {"files": {"body": ("input.txt", b"a text")}},
        {"params": {"data": "a text"}},
        {"params": {"data": "a text", "other": "ignored"}, "content": b"not this"},
        {"json": "a text"},
        {"json": {"data": "a text"}},
        {"json": {"prompt": "a text"}},
        {"content": b'"a text"', "headers": {"content-type": "application/json; charset=utf-8"}},
    ],
)
@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize("path", [PREDICTIONS, f"{PREDICTIONS}/1"])
def test_a_prompt_is_found_wherever_clients_put_it(
    client: httpx.Client, served: Served, path: str, method: str, sent: dict[str, Any]
) -> None:
    response = client.request(method, path, **sent)
    assert (response.status_code, response.text) == (200, "A TEXT")
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    (request,) = served.model.requests
    assert request.prompts[0].parameters == NOTHING


def test_curl_uploads_a_file_as_the_example_says(served: Served, tmp_path: Path) -> None:
    file = tmp_path / "input.txt"
    file.write_text("Grüße, 世界\n")
    command = ["curl", "--silent", "--fail", f"{served.url}{PREDICTIONS}", "-T", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout == "GRÜSSE, 世界\n"


def test_a_form_may_hold_what_curl_does_not_encode(served: Served) -> None:
    command = [
        "curl",
        "--silent",
        "--fail",
        f"{served.url}{PREDICTIONS}",
        "-d",
        "data=Grüße, 世+界",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout == "GRÜSSE, 世 界"


def test_a_prompt_may_be_in_the_query_of_a_get(client: httpx.Client) -> None:
    response = client.get(PREDICTIONS, params={"data": "héllo"})
    assert (response.status_code, response.text) == (200, "HÉLLO")


@pytest.mark.parametrize(
    "sent", [{"content": "a"}, {"json": {"body": "a"}}, {"data": {"data": "a"}}]
)
def test_sagemakers_route_asks_the_one_model(client: httpx.Client, sent: dict[str, Any]) -> None:
    response = client.post("/invocations", **sent)
    assert (response.status_code, response.text) == (200, "A")


def test_v1_takes_the_handlers_other_key(client: httpx.Client) -> None:
    body = {"instances": [{"body": "a"}]}
    predictions = client.post("/v1/models/echo:predict", json=body).json()["predictions"]
    assert predictions[0]["text"] == "A"


def test_an_object_may_have_parameters(client: httpx.Client, served: Served) -> None:
    body = {"data": "a", "parameters": {"max_new_tokens": 3, "temperature": 0}}
    assert client.post(PREDICTIONS, json=body).status_code == 200
    (request,) = served.model.requests
    expected = GenerationParameters(max_new_tokens=3, temperature=0)
    assert request.prompts[0].parameters == expected


def test_a_header_limits_the_time(client: httpx.Client, served: Served) -> None:
    client.post(PREDICTIONS, content="a", headers={"x-request-timeout": "7"})
    assert served.model.timeouts[-1] == 7


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        ({"data": {"text": "a"}}, "no field 'data' or 'body'"),
        ({"content": b"a=b", "headers": FORM},
         "content type text/plain"),
        ({"json": ["a"]}, "must be a string or an object, not a list"),
        ({"json": {"text": "a", "data": "b"}}, "text and data"),
        ({"json": {"data": 7}}, "must be a string, not an integer"),
        ({"json": {"data": "a", "parameters": {"max_tokens": 1}}}, "Unknown parameter"),
        ({"json": {"instances": ["a"]}}, "Unknown key 'instances'"),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, "not valid JSON"),
        ({"content": b"\xff\xfe"}, "not valid UTF-8"),
        ({"files": {"data": b"\xff\xfe"}}, "not valid UTF-8"),
        ({"content": b"--", "headers": {"content-type": "multipart/form-data"}}, "boundary"),
        ({"files": [("data", b"a")] * 20}, "Too many files"),
        ({"data": {f"f{number}": "a" for number in range(20)}}, "more than 16 fields"),
        ({"content": b"data=%FF", "headers": FORM},
         "not valid UTF-8"),
        ({"content": b"data=\xff", "headers": FORM},
         "not valid UTF-8"),
        ({"content": b"", "headers": {"content-type": "application/json"}}, "not valid JSON"),
        ({"content": b"a", "headers": {"x-request-timeout": "soon"}}, "number of seconds"),
    ],
)  # fmt: skip
def test_what_is_no_prompt_is_refused_in_one_sentence(
    client: httpx.Client, served: Served, sent: dict[str, Any], words: str
) -> None:
    sentence = refusal(client.post(PREDICTIONS, **sent), 400, "BadRequestException")
    assert words in sentence
    assert "\n" not in sentence
    assert served.model.requests == []


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("POST", "/predictions/other", 404, "ModelNotFoundException"),
        ("POST", "/predictions/echo/2", 404, "ModelVersionNotFoundException"),
        ("GET", "/models/other", 404, "ModelNotFoundException"),
        ("GET", "/models/echo/2", 404, "ModelVersionNotFoundException"),
        ("POST", "/predictions", 404, "ResourceNotFoundException"),
        ("POST", "/predictions/echo/1/v1/completions", 404, "ResourceNotFoundException"),
        ("DELETE", "/predictions/echo", 405, "MethodNotAllowedException"),
        ("GET", "/predictions/echo", 400, "BadRequestException"),
        ("GET", "/invocations", 405, "MethodNotAllowedException"),
        ("POST", "/explanations/echo", 404, "ResourceNotFoundException"),
        ("POST", "/models", 405, "MethodNotAllowedException"),
        ("PUT", "/models/echo", 405, "MethodNotAllowedException"),
        ("DELETE", "/models/echo", 405, "MethodNotAllowedException"),
        ("PUT", "/models/echo/1", 405, "MethodNotAllowedException"),
    ],
)
def test_paths_and_methods_have_torchserves_errors(
    client: httpx.Client, method: str, path: str, status: int, kind: str
) -> None:
    refusal(client.request(method, path), status, kind)


@pytest.mark.parametrize(
    ("failure", "status", "kind"),
    [
        (RequestError("no"), 400, "BadRequestException"),
        (NotReady("no"), 503, "ServiceUnavailableException"),
        (DeadlineExceeded("no"), 504, "RequestTimeoutException"),
        (GenerationFailed("no"), 500, "InternalServerException"),
        (KeyError("a secret"), 500, "InternalServerException"),
    ],
)
def test_failures_have_torchserves_form(
    client: httpx.Client, served: Served, failure: Exception, status: int, kind: str
) -> None:
    served.model.failure = failure
    assert "secret" not in refusal(client.post(PREDICTIONS, content="a"), status, kind)


def test_a_full_queue_is_503_with_the_time_to_wait(client: httpx.Client, served: Served) -> None:
    served.model.failure = Overloaded("2 requests are running.", retry_after=3)
    response = client.post(PREDICTIONS, content="a")
    refusal(response, 503, "ServiceUnavailableException")
    assert response.headers["retry-after"] == "3"
    assert client.post(PREDICT, json={"instances": ["a"]}).status_code == 429


def test_a_large_body_is_413(client: httpx.Client) -> None:
    response = client.put(PREDICTIONS, content=b"x" * (MAX_BODY_BYTES + 1))
    refusal(response, 413, "RequestEntityTooLargeException")


def test_ping_tells_the_truth(client: httpx.Client, served: Served) -> None:
    response = client.get("/ping")
    assert (response.status_code, response.json()) == (200, {"status": "Healthy"})
    served.model.ready = False
    response = client.get("/ping")
    assert (response.status_code, response.json()) == (503, {"status": "Unhealthy"})
    refusal(client.post(PREDICTIONS, content="a"), 503, "ServiceUnavailableException")


def test_models_are_listed_and_described(client: httpx.Client) -> None:
    listed = client.get("/models", params={"limit": 1}).json()
    assert listed == {"models": [{"modelName": "echo", "modelUrl": "echo"}]}
    for path in ("/models/echo", "/models/echo/1", "/models/echo/all"):
        (described,) = client.get(path).json()
        (worker,) = described.pop("workers")
        assert worker.pop("memoryUsage") > 2**20
        assert worker == {"id": "1", "status": "READY"}
        assert described == {
            "modelName": "echo",
            "modelVersion": "1",
            "modelUrl": "echo",
            "runtime": "python",
            "minWorkers": 1,
            "maxWorkers": 1,
            "batchSize": 4,
            "maxBatchDelay": 0,
            "responseTimeout": 60,
            "continuousBatching": True,
            "loadedAtStartup": True,
            "jobQueueStatus": {"remainingCapacity": 8, "pendingRequests": 2},
        }


def test_without_the_setting_there_are_no_such_routes() -> None:
    with serve() as plain, httpx.Client(base_url=plain.url) as client:
        for path in (PREDICTIONS, "/ping", "/models", "/models/echo"):
            refusal(client.get(path), 404, "ResourceNotFoundException")


def test_the_handlers_style_holds_for_what_a_request_leaves_open(
    client: httpx.Client, served: Served
) -> None:
    served.model.style = handler_style(80)
    client.put(PREDICTIONS, content="a")
    client.post(PREDICT, json={"instances": ["a", {"data": "b"}]})
    tensor = {"name": "input-0", "shape": [2], "datatype": "BYTES", "data": ["a", "b"]}
    client.post(INFER, json={"inputs": [tensor]})
    client.post(PREDICT, json={"instances": ["a"]}, headers={"accept": "text/event-stream"})
    prompts = [prompt for request in served.model.requests for prompt in request.prompts]
    assert [prompt.parameters for prompt in prompts] == [HANDLER] * 6


def test_what_a_request_says_is_stronger_than_the_handlers_style(
    client: httpx.Client, served: Served
) -> None:
    served.model.style = handler_style(80)
    parameters = {"top_k": 5, "max_new_tokens": 7, "return_full_text": False}
    client.post(PREDICT, json={"instances": [{"data": "a", "parameters": parameters}]})
    (request,) = served.model.requests
    result = request.prompts[0].parameters
    assert (result.top_k, result.max_new_tokens, result.return_full_text) == (5, 7, False)
    assert (result.top_p, result.temperature, result.prompt_limit) == (0.95, 1.0, 80)


def test_other_protocols_keep_a_style_of_their_own(client: httpx.Client, served: Served) -> None:
    served.model.style = handler_style(80)
    client.post("/openai/v1/completions", json={"model": "echo", "prompt": "a"})
    client.post("/v2/models/echo/generate", json={"text_input": "a"})
    for request in served.model.requests:
        result = request.prompts[0].parameters
        assert (result.prompt_limit, result.top_p, result.return_full_text) == (None, None, False)
    assert len(served.model.requests) == 2


def test_envelopes_answer_as_they_did(client: httpx.Client, served: Served) -> None:
    """As TorchServe's `kserve` and `kservev2` envelopes, but with all that was asked for."""
    served.model.style = handler_style(80)
    body = {"instances": [{"data": "My dog is cute"}, {"data": "b"}]}
    assert client.post(PREDICT, json=body).json() == {"predictions": ["MY DOG IS CUTE", "B"]}
    tensor = {"name": "input-0", "shape": [2], "datatype": "BYTES", "data": ["a", "b"]}
    outputs = client.post(INFER, json={"inputs": [tensor]}).json()["outputs"]
    assert outputs[0]["data"] == ["A", "B"]
