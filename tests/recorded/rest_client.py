"""Sends requests over HTTP and returns the answers as JSON values."""

from __future__ import annotations

import base64
import json
from typing import Any

import httpx

from tests.recorded.forms import Keep, Rest
from tests.recorded.reducing import families, routes
from tests.recorded.tensors import LENGTH, unpack

_PLUMBING = {
    *("connection", "content-length", "date", "server", "transfer-encoding", "x-request-id")
}
"""Headers of the transport."""


def send(client: httpx.Client, request: Rest) -> dict[str, Any]:
    """Returns the answer to a request."""
    body = request.body
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body, ensure_ascii=False).encode()
    content: Any = iter([body]) if request.chunked else body
    response = client.request(
        request.method, request.path, content=content, headers=dict(request.headers)
    )
    headers = {name: value for name, value in response.headers.items() if name not in _PLUMBING}
    return {"status": response.status_code, "headers": headers} | _kept(response, request)


def _kept(response: httpx.Response, request: Rest) -> dict[str, Any]:
    if not response.content:
        return {}
    if request.keep is Keep.METRICS:
        return {"families": families(response.text)}
    if request.keep is Keep.SCHEMA:
        return {"routes": routes(response.json())}
    kind = response.headers.get("content-type", "").partition(";")[0]
    if kind == "application/json":
        return {"json": _readable(response.json())}
    if kind == "application/octet-stream":
        return {"json": _with_tensors(response)}
    if kind == "text/event-stream":
        return {"events": _events(response.text, interleaved=request.interleaved)}
    return {"text": response.text}


def _with_tensors(response: httpx.Response) -> Any:
    """Returns the JSON of a V2 answer, with its binary outputs decoded."""
    end = int(response.headers[LENGTH])
    document, tail = json.loads(response.content[:end]), response.content[end:]
    for output in document["outputs"]:
        size = output.get("parameters", {}).get("binary_data_size", 0)
        if size:
            output["binary"] = unpack(output["datatype"], tail[:size])
        tail = tail[size:]
    return document | ({"rest": len(tail)} if tail else {})


def _events(text: str, *, interleaved: bool) -> list[Any]:
    """Returns the data of server-sent events; interleaved ones are sorted by reply."""
    blocks = text.split("\n\n")
    data = [block.removeprefix("data: ") for block in blocks if block]
    events = [json.loads(one) if one.startswith("{") else one for one in data]
    return sorted(events, key=_reply) if interleaved else events


def _reply(event: Any) -> float:
    choices = event.get("choices", [event]) if isinstance(event, dict) else []
    return choices[0].get("index", 0) if choices else float("inf")


def _readable(document: Any) -> Any:
    """Returns a document with base64 vectors and the placement decoded."""
    if isinstance(document, dict) and isinstance(document.get("data"), list):
        for row in document["data"]:
            if isinstance(row, dict) and isinstance(row.get("embedding"), str):
                row["embedding"] = {"base64": unpack("FP32", base64.b64decode(row["embedding"]))}
    properties = document.get("properties") if isinstance(document, dict) else None
    if isinstance(properties, dict) and "placement" in properties:
        properties["placement"] = json.loads(properties["placement"])
    return document
