"""What every test over HTTP needs."""

from __future__ import annotations

from typing import Any

import httpx

PREDICT = "/v1/models/echo:predict"
INFER = "/v2/models/echo/infer"
TEXT: dict[str, Any] = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}
BODY = {"inputs": [TEXT]}


def refusal(response: httpx.Response, status: int) -> str:
    """Returns the one sentence of an error response."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    document = response.json()
    assert list(document) == ["error"]
    return str(document["error"])
