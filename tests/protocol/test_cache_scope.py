"""Every route hands a request to the model in the scope of its header, and of no other's."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import httpx
import pytest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

from predictor.cache_scope import ScopeHeader, current_scope
from tests.protocol.stub import Served, serve

CHAT = {"model": "echo", "messages": [{"role": "user", "content": "a"}]}
TEXT = {"name": "text", "datatype": "BYTES", "shape": [1]}
ROUTES = [
    ("/v1/models/echo:predict", {"instances": ["a"]}, {}),
    ("/v1/models/echo:predict", {"instances": ["a"]}, {"accept": "text/event-stream"}),
    ("/v2/models/echo/infer", {"inputs": [{**TEXT, "data": ["a"]}]}, {}),
    ("/v2/models/echo/generate", {"text_input": "a"}, {}),
    ("/v2/models/echo/generate_stream", {"text_input": "a"}, {}),
    ("/openai/v1/completions", {"model": "echo", "prompt": "a"}, {}),
    ("/openai/v1/completions", {"model": "echo", "prompt": "a", "stream": True}, {}),
    ("/openai/v1/chat/completions", CHAT, {}),
    ("/openai/v1/chat/completions", {**CHAT, "stream": True}, {}),
    ("/predictions/echo", {"data": "a"}, {}),
]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serve(torchserve=True, scope_header=ScopeHeader("X-Tenant")) as running:
        yield running


def scope(served: Served, path: str, body: object, headers: dict[str, str]) -> bytes:
    response = httpx.post(served.url + path, json=body, headers=headers)
    assert response.status_code == 200, response.text
    return served.model.scopes[-1]


@pytest.mark.parametrize(("path", "body", "headers"), ROUTES)
def test_a_routes_requests_are_of_the_scope_in_their_header(
    served: Served, path: str, body: object, headers: dict[str, str]
) -> None:
    with ScopeHeader("x-tenant").applied([("x-tenant", "a")]):
        wanted = current_scope()
    assert scope(served, path, body, {**headers, "x-tenant": "a"}) == wanted
    assert scope(served, path, body, {**headers, "x-tenant": "b"}) != wanted
    assert scope(served, path, body, headers) != scope(served, path, body, headers)


def test_a_grpc_call_is_of_the_scope_in_its_metadata(served: Served) -> None:
    contents = pb.InferTensorContents(bytes_contents=[b"a"])
    tensor = pb.ModelInferRequest.InferInputTensor(**TEXT, contents=contents)
    request = pb.ModelInferRequest(model_name="echo", inputs=[tensor])
    with grpc.insecure_channel(served.grpc_address) as channel:
        service = GRPCInferenceServiceStub(channel)
        for metadata in ([("x-tenant", "a")], [("x-tenant", "b")], []):
            service.ModelInfer(request, metadata=metadata)
    path, body, _ = ROUTES[0]
    assert scope(served, path, body, {"x-tenant": "a"}) == served.model.scopes[-4]
    assert len(set(served.model.scopes[-4:-1])) == 3


def test_a_body_can_only_make_the_scope_narrower(served: Served) -> None:
    path, body = "/openai/v1/completions", {"model": "echo", "prompt": "a"}
    salted = [
        scope(served, path, {**body, **extra}, {"x-tenant": tenant})
        for tenant in ("a", "b")
        for extra in ({}, {"cache_salt": "1"}, {"cache_salt": "2"}, {"cache_salt": None})
    ]
    assert len(set(salted)) == 6
    refused = httpx.post(served.url + path, json={**body, "cache_salt": 1})
    assert refused.status_code == 400
