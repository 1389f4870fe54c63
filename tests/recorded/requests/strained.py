"""Requests to a server that is at its limit, or that drains after SIGTERM."""

from __future__ import annotations

from typing import Any

from tests.recorded.forms import Grpc, Phase, Request, Rest
from tests.recorded.requests.common import OTHER
from tests.recorded.tensors import contents, texts

_POST: dict[str, tuple[str, object]] = {
    "v1": ("/v1/models/demo:predict", {"instances": [OTHER]}),
    "v2": ("/v2/models/demo/infer", {"inputs": [texts("text", OTHER)]}),
    "generate": ("/v2/models/demo/generate", {"text_input": OTHER}),
    "generate_stream": ("/v2/models/demo/generate_stream", {"text_input": OTHER}),
    "completions": ("/openai/v1/completions", {"model": "demo", "prompt": OTHER}),
    "chat": (
        "/openai/v1/chat/completions",
        {"model": "demo", "messages": [{"role": "user", "content": OTHER}], "stream": True},
    ),
    "torchserve": ("/predictions/demo", OTHER.encode()),
    "wrong": ("/v1/models/demo:predict", {"instances": []}),
    "embeddings": ("/openai/v1/embeddings", {"model": "demo", "input": "a"}),
    "index": ("/v2/repository/index", {}),
}

_GET = {
    "root": "/",
    "ready": "/v2/health/ready",
    "live": "/v2/health/live",
    "v1 model": "/v1/models/demo",
    "v2 model ready": "/v2/models/demo/ready",
    "ping": "/ping",
    "describe": "/models/demo",
}

_CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "ModelInfer": ("ModelInfer", {"model_name": "demo", **contents(texts("text", OTHER))}),
    "ModelReady": ("ModelReady", {"name": "demo"}),
    "ServerReady": ("ServerReady", {}),
    "ServerLive": ("ServerLive", {}),
    "Check": ("Check", {}),
}


def _requests(phase: Phase) -> list[Request]:
    name = phase.name.lower()
    return [
        *(
            Rest("demo", f"{name}/{n}", path, body, phase=phase)
            for n, (path, body) in _POST.items()
        ),
        *(Rest("demo", f"{name}/{n}", path, method="GET", phase=phase) for n, path in _GET.items()),
        Rest(
            "demo",
            f"{name}/events",
            *_POST["v1"],
            headers={"accept": "text/event-stream"},
            phase=phase,
        ),
        *(Grpc("demo", f"{name}/grpc {n}", *call, phase=phase) for n, call in _CALLS.items()),
    ]


REQUESTS = [*_requests(Phase.BUSY), *_requests(Phase.DRAINING)]
