"""What every route has: ids, API keys, compressed bodies, CORS, access lines, a document."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import logging
import time
import zlib
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import kserve
import numpy as np
import openai
import pytest

from predictor.protocol.http.authentication import ApiKeys
from tests.protocol.stub import MAX_BODY_BYTES, Served, serve
from tests.protocol.wire import INFER, PREDICT, refusal

CALL = {"instances": ["a"]}
KEY = {"Authorization": "Bearer second"}
BEYOND = "The compressed body goes on after its end; send it as one member."


# --- request ids ---


@pytest.mark.parametrize("path", ["/v2/health/live", "/nothing", "/metrics"])
def test_a_request_id_goes_back_with_every_answer(client: httpx.Client, path: str) -> None:
    given = client.get(path, headers={"X-Request-Id": "abc-1"})
    assert given.headers["x-request-id"] == "abc-1"
    first, second = client.get(path), client.get(path)
    assert len(first.headers["x-request-id"]) == 32
    assert first.headers["x-request-id"] != second.headers["x-request-id"]


@pytest.mark.parametrize("name", ["", "a b", "x" * 129, "a\tb", "é".encode()])
def test_a_request_id_that_is_none_is_replaced(client: httpx.Client, name: Any) -> None:
    response = client.get("/", headers={"X-Request-Id": name})
    assert len(response.headers["x-request-id"]) == 32


def test_openais_client_shows_the_request_id(served: Served) -> None:
    url = f"{served.url}/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        answer: Any = client.completions.create(model="echo", prompt="a")
        assert len(answer._request_id) == 32
        with pytest.raises(openai.NotFoundError) as refused:
            client.completions.create(
                model="nobody", prompt="a", extra_headers={"X-Request-Id": "mine"}
            )
    assert refused.value.request_id == "mine"


# --- compressed bodies ---


@pytest.mark.parametrize(
    ("coding", "compress"),
    [("gzip", gzip.compress), ("x-gzip", gzip.compress), ("DEFLATE", zlib.compress)],
)
@pytest.mark.parametrize("chunks", [1, 7])
def test_a_compressed_body_is_inflated(
    client: httpx.Client, coding: str, compress: Any, chunks: int
) -> None:
    body = compress(json.dumps({"instances": ["a" * 100_000]}).encode())
    size = len(body) // chunks + 1
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    content: Any = body if chunks == 1 else iter(pieces)
    response = client.post(PREDICT, content=content, headers={"Content-Encoding": coding})
    assert response.json()["predictions"][0]["text"] == "A" * 100_000


def test_an_inflated_body_has_the_limits_of_a_body(client: httpx.Client) -> None:
    body = gzip.compress(b" " * (64 * MAX_BODY_BYTES))
    response = client.post(PREDICT, content=body, headers={"Content-Encoding": "gzip"})
    assert "larger than the limit" in refusal(response, 413)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"{}", "The body is not of its Content-Encoding."),
        (gzip.compress(b"{}", mtime=0)[:-9], "The compressed body is cut short."),
        (b"", "The compressed body is cut short."),
        (gzip.compress(b"{}", mtime=0) + b"{}", BEYOND),
        (gzip.compress(b"{}", mtime=0) * 2, BEYOND),
        (iter([gzip.compress(b"{}", mtime=0), b"", b"0" * 1000]), BEYOND),
        (iter([gzip.compress(b"{}", mtime=0)[:-1], gzip.compress(b"{}")[-1:] + b"0"]), BEYOND),
    ],
)
def test_a_body_that_is_not_compressed_is_400(
    client: httpx.Client, content: Any, sentence: str
) -> None:
    response = client.post(PREDICT, content=content, headers={"Content-Encoding": "gzip"})
    assert refusal(response, 400) == sentence


def test_a_body_that_inflates_to_nothing_has_the_limit_of_a_body(client: httpx.Client) -> None:
    empty_block = b"\x00\x00\x00\xff\xff"
    blocks = [b"\x78\x9c", *([empty_block * 4096] * (MAX_BODY_BYTES // 4096 // 5 * 2))]
    for path in (PREDICT, "/test/typed"):
        body: Any = iter(blocks)
        response = client.post(path, content=body, headers={"Content-Encoding": "deflate"})
        assert "larger than the limit" in refusal(response, 413)


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, gzip"])
def test_another_coding_is_415(client: httpx.Client, coding: str) -> None:
    response = client.post(PREDICT, content=b"", headers={"Content-Encoding": coding})
    assert "gzip and deflate are" in refusal(response, 415)
    assert response.headers["accept-encoding"] == "gzip, deflate"


# --- API keys ---


@pytest.fixture(scope="module")
def guarded() -> Iterator[Served]:
    keys = ApiKeys(["first", "second"])
    with serve(keys=keys, allowed_origins=["https://a.example"], access_log=True) as served:
        yield served


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", PREDICT),
        ("POST", INFER),
        ("POST", "/v1/completions"),
        ("POST", "/v2/models/echo/generate"),
        ("POST", "/embed"),
        ("GET", "/v1/models"),
        ("GET", "/v2/models/echo"),
        ("GET", "/openapi.json"),
        ("POST", "/metrics"),
        ("GET", "/nothing"),
    ],
)
def test_a_request_without_a_key_is_401(guarded: Served, method: str, path: str) -> None:
    for headers in ({}, {"Authorization": "Bearer third"}, {"Authorization": "Basic first"}):
        response = httpx.request(method, guarded.url + path, headers=headers)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.headers["x-request-id"]


@pytest.mark.parametrize(
    "path",
    ["/", "/metrics", "/v2/health/live", "/v2/health/ready", "/v1/models/echo"]
    + ["/v2/models/echo/ready", "/v2/models/echo/versions/1/ready"],
)
def test_a_probe_needs_no_key(guarded: Served, path: str) -> None:
    assert httpx.get(guarded.url + path).status_code == 200


def test_each_key_opens(guarded: Served) -> None:
    for key in ("first", "second"):
        headers = {"Authorization": f"Bearer {key}"}
        assert httpx.post(guarded.url + PREDICT, json=CALL, headers=headers).status_code == 200
    with openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="first", max_retries=0) as client:
        assert client.completions.create(model="echo", prompt="a").choices[0].text == "A"
    wrong = openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="x", max_retries=0)
    with wrong as client, pytest.raises(openai.AuthenticationError) as refused:
        client.completions.create(model="echo", prompt="a")
    assert refused.value.code == "invalid_api_key"


def test_grpc_needs_a_key_as_well(guarded: Served) -> None:
    tensor = kserve.InferInput("text", [1], "BYTES")
    tensor.set_data_from_numpy(np.array(["a"], dtype=object))
    call = kserve.InferRequest("echo", [tensor])

    async def ask(headers: Any) -> Any:
        async with kserve.InferenceGRPCClient(guarded.grpc_address, retries=0) as client:
            assert await client.is_server_ready()
            return await client.infer(call, headers=headers)

    assert asyncio.run(ask([("authorization", "Bearer first")])).outputs[0].name == "text"
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        asyncio.run(ask(None))
    assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED


# --- CORS ---


def test_a_page_of_an_allowed_origin_may_ask(guarded: Served) -> None:
    wanted = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    preflight = httpx.options(f"{guarded.url}/v1/completions", headers=wanted)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "https://a.example"
    answer = httpx.post(guarded.url + PREDICT, json=CALL, headers={**wanted, **KEY})
    assert answer.headers["access-control-allow-origin"] == "https://a.example"
    other = httpx.get(guarded.url, headers={"Origin": "https://b.example"})
    assert "access-control-allow-origin" not in other.headers


def test_no_origin_is_allowed_by_default(client: httpx.Client) -> None:
    response = client.get("/", headers={"Origin": "https://a.example"})
    assert "access-control-allow-origin" not in response.headers


# --- access lines ---


def access_lines(served: Served, caplog: pytest.LogCaptureFixture) -> list[str]:
    """The lines of all requests; each is written after its answer."""
    deadline = time.monotonic() + 30
    while served.tasks() and time.monotonic() < deadline:
        time.sleep(0.005)
    # uvicorn logs its own line of a request where a test before has let it.
    records = [record for record in caplog.records if record.name == "predictor.access"]
    return [record.getMessage() for record in records]


def test_a_request_is_one_line_without_its_text(
    guarded: Served, caplog: pytest.LogCaptureFixture
) -> None:
    headers = {**KEY, "X-Request-Id": "abc"}
    with caplog.at_level(logging.INFO, logger="predictor.access"):
        httpx.get(f"{guarded.url}/v2/health/ready")
        body = {"text_input": "secret"}
        url = f"{guarded.url}/v2/models/echo/generate?secret=1"
        assert httpx.post(url, json=body, headers=headers).status_code == 200
        httpx.post(guarded.url + PREDICT, json=CALL)
        (line, refused) = access_lines(guarded, caplog)
    assert "secret" not in line + refused
    assert line.startswith("request_id=abc method=POST path=/v2/models/echo/generate status=200 ")
    assert " seconds=0." in line
    assert "status=401" in refused


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/a%0Arequest_id=x", "/a%0Arequest_id%3Dx"),
        ("/a%20status=200", "/a%20status%3D200"),
        ("/a%0D%1B%5B31m%E2%80%A8", "/a%0D%1B%5B31m%E2%80%A8"),
        ("/v1/models/echo:predict", PREDICT),
        ("/" + "%0A" * 200, "/" + "%0A" * 124 + "..."),
    ],
)
def test_a_path_cannot_forge_a_line(
    guarded: Served, caplog: pytest.LogCaptureFixture, path: str, shown: str
) -> None:
    with caplog.at_level(logging.INFO, logger="predictor.access"):
        httpx.post(guarded.url + path)
        (line,) = access_lines(guarded, caplog)
    assert f" path={shown} status=401 seconds=" in line


@pytest.mark.parametrize(
    ("name", "keys", "status"),
    [
        ("echo", KEY, "OK"),
        ("nobody", KEY, "NOT_FOUND"),
        ("echo", {}, "UNAUTHENTICATED"),
    ],
)
def test_a_call_over_grpc_is_one_line_without_its_text(
    guarded: Served, caplog: pytest.LogCaptureFixture, name: str, keys: Any, status: str
) -> None:
    async def infer() -> None:
        request = kserve.InferRequest(
            name, [kserve.InferInput("text", [1], "BYTES", np.array([b"secret"]))]
        )
        headers = {key.lower(): value for key, value in keys.items()} | {"x-request-id": "abc"}
        async with kserve.InferenceGRPCClient(guarded.grpc_address, retries=0) as client:
            with contextlib.suppress(grpc.aio.AioRpcError):
                await client.infer(request, headers=list(headers.items()))

    with caplog.at_level(logging.INFO, logger="predictor.access"):
        asyncio.run(infer())
        deadline = time.monotonic() + 30
        while not access_lines(guarded, caplog) and time.monotonic() < deadline:
            time.sleep(0.005)  # the line comes after the answer
        (line,) = access_lines(guarded, caplog)
    assert "secret" not in caplog.text
    method = "/inference.GRPCInferenceService/ModelInfer"
    assert line.startswith(f"request_id=abc method=gRPC path={method} status={status} ")


# --- the document ---


def test_the_document_describes_the_routes_that_are_served(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    assert document["info"]["title"] == "accelerate-predictor"
    paths = document["paths"]
    assert "requestBody" in paths["/v1/chat/completions"]["post"]
    assert paths["/v2/models/{model}/infer"]["post"]["parameters"][0]["name"] == "model"
    assert {"/openai/v1/embeddings", "/embed", "/v1/models/{model}"} <= paths.keys()
    assert not [path for path in paths if "model_name" in path or "repository/models" in path]
    assert "/predictions/{model}" not in paths
    assert client.get("/docs").status_code == 404


def test_the_documents_page_is_served_by_setting() -> None:
    with serve(docs=True, torchserve=True) as served:
        page = httpx.get(f"{served.url}/docs")
        paths = httpx.get(f"{served.url}/openapi.json").json()["paths"]
    assert "/openapi.json" in page.text
    assert "/predictions/{model}" in paths
