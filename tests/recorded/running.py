"""Starts servers and sends them their requests in order."""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import httpx

from tests.recorded import grpc_client, rest_client
from tests.recorded.forms import Phase, Request, Rest
from tests.recorded.masking import masked
from tests.recorded.servers import SERVERS
from tests.server.process import Served, serve

Answers = dict[str, Any]

_MAKING = threading.Lock()
"""Models are made one at a time, because weights come from torch's one global generator."""

_ON_PROCESSOR = {"CUDA_VISIBLE_DEVICES": ""}
_END_OF_TEXT = "2"
_LONG = {"prompt": ["a"] * 200, "max_tokens": 120, "logit_bias": {_END_OF_TEXT: -100}}
"""A request that keeps a server busy."""


def answers_of(name: str, requests: Sequence[Request]) -> Answers:
    """Returns the answers of one server, by key of the request."""
    server = SERVERS[name]
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        with _MAKING:
            server.make(model)
        with serve(model, *server.all_flags, name=name, environ=_ON_PROCESSOR) as served:
            served.await_ready()
            with httpx.Client(base_url=served.url, timeout=60) as client:
                return _answers(served, client, requests)


def _answers(served: Served, client: httpx.Client, requests: Sequence[Request]) -> Answers:
    groups = {phase: [one for one in requests if one.phase is phase] for phase in Phase}
    with grpc.insecure_channel(served.grpc) as channel:

        def send(phase: Phase) -> Answers:
            return {one.key: _answer(client, channel, one) for one in groups[phase]}

        answers = send(Phase.IDLE)
        if groups[Phase.BUSY] or groups[Phase.DRAINING]:
            with _kept_busy(served):
                answers |= send(Phase.BUSY)
                _drain(served, client)
                answers |= send(Phase.DRAINING)
    return answers


def _answer(client: httpx.Client, channel: grpc.Channel, request: Request) -> Any:
    try:
        if isinstance(request, Rest):
            return masked(rest_client.send(client, request))
        return masked(grpc_client.send(channel, request))
    except Exception as error:
        error.add_note(f"while {request.key} was sent")
        raise


@contextlib.contextmanager
def _kept_busy(served: Served) -> Iterator[None]:
    body = {"model": served.name, "stream": True, **_LONG}
    with (
        httpx.Client(base_url=served.url, timeout=60) as client,
        client.stream("POST", "/openai/v1/completions", json=body) as response,
    ):
        lines = response.iter_lines()  # the connection ends with this iterator
        first = next(lines)
        assert first.startswith("data: "), first
        yield


def _drain(served: Served, client: httpx.Client) -> None:
    served.terminate()
    deadline = time.monotonic() + 20
    while client.get("/v2/health/ready").status_code == 200:
        assert time.monotonic() < deadline, "the server did not begin to drain"
        time.sleep(0.02)
