"""TorchServe's routes: predictions in every form of body, ping, and the models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.recorded.forms import Rest
from tests.recorded.requests.common import FIELDS, PROMPT

_FORM = {"content-type": "application/x-www-form-urlencoded"}
_JSON = {"content-type": "application/json"}
_TEXT = {"content-type": "text/plain"}
_FEW = {"max_new_tokens": 4}


def _multipart(**fields: str | bytes) -> tuple[bytes, dict[str, str]]:
    """Returns a form of several parts; bytes are files."""
    parts = []
    for name, value in fields.items():
        about = f'form-data; name="{name}"' + (
            '; filename="input.txt"' if isinstance(value, bytes) else ""
        )
        head = f"--edge\r\nContent-Disposition: {about}\r\n\r\n".encode()
        parts.append(head + (value if isinstance(value, bytes) else value.encode()) + b"\r\n")
    return b"".join(parts) + b"--edge--\r\n", {"content-type": "multipart/form-data; boundary=edge"}


Payload = tuple[object, Mapping[str, str]]

_PAYLOADS: dict[str, Payload] = {
    "text": (PROMPT.encode(), _TEXT),
    "no content type": (PROMPT.encode(), {}),
    "JSON text": (b'"a text"', _JSON),
    "JSON data": ({"data": PROMPT, "parameters": _FEW}, _JSON),
    "JSON prompt": ({"prompt": PROMPT, "parameters": {**_FEW, "return_full_text": True}}, _JSON),
    "JSON charset": (b'{"text": "a"}', {"content-type": "application/json; charset=utf-8"}),
    "form data": (b"data=a+text%21&other=1", _FORM),
    "form body": (b"body=a+text", _FORM),
    "form unescaped": ("data=Zoë".encode(), _FORM),
    "parts": _multipart(data="a text"),
    "file": _multipart(data=b"a text"),
    "file body": _multipart(other=b"b", body=b"a text"),
    "empty": (b"", {}),
    "JSON number": (b"5", _JSON),
    "JSON list": (["a"], _JSON),
    "JSON without a prompt": ({"parameters": {}}, _JSON),
    "JSON wrong parameter": ({"data": "a", "parameters": {"top_k": -2}}, _JSON),
    "JSON malformed": (b"{", _JSON),
    "form without": (b"text=a", _FORM),
    "form too many": (b"&".join(b"a%d=1" % number for number in range(17)), _FORM),
    "form not UTF-8": (b"data=%ff", _FORM),
    "parts without": _multipart(text="a"),
    "file not UTF-8": _multipart(data=b"\xff\xfe"),
    "parts malformed": (b"nothing", {"content-type": "multipart/form-data; boundary=edge"}),
    "parts without edge": (b"nothing", {"content-type": "multipart/form-data"}),
    "not UTF-8": (b"\xff\xfe", _TEXT),
    "too long": (b"word " * 200, _TEXT),
    "compressed": (b"a", {**_TEXT, "content-encoding": "gzip"}),
    "late": (b"a", {**_TEXT, "x-request-timeout": "0.000001"}),
    "wrong timeout": (b"a", {**_TEXT, "x-request-timeout": "soon"}),
}

_PATHS: dict[str, tuple[str, str]] = {
    "ping": ("GET", "/ping"),
    "models": ("GET", "/models"),
    "model": ("GET", "/models/demo"),
    "model version": ("GET", "/models/demo/1"),
    "model all": ("GET", "/models/demo/all"),
    "unknown model": ("GET", "/models/other"),
    "unknown version": ("GET", "/models/demo/2"),
    "register": ("POST", "/models?url=a.mar"),
    "scale": ("PUT", "/models/demo?min_worker=2"),
    "unregister": ("DELETE", "/models/demo"),
    "predict GET": ("GET", "/predictions/demo"),
    "predict unknown model": ("POST", "/predictions/other"),
    "predict unknown version": ("POST", "/predictions/demo/2"),
    "explain": ("POST", "/explanations/demo"),
    "api description": ("OPTIONS", "/"),
    "query": ("POST", "/predictions/demo?data=a%20text&data=b"),
    "query and PUT": ("PUT", "/predictions/demo/1?data=a%20text"),
}


def _predict(server: str, name: str, body: object, **more: Any) -> Rest:
    return Rest(server, f"torchserve/predict {name}", f"/predictions/{server}", body, **more)


REQUESTS = [
    *(_predict("demo", name, body, headers=headers) for name, (body, headers) in _PAYLOADS.items()),
    _predict("demo", "PUT", PROMPT.encode(), method="PUT"),
    *(
        Rest("demo", f"torchserve/{name}", path, method=method)
        for name, (method, path) in _PATHS.items()
    ),
    *(_predict(s, "fields", fields, headers=_JSON) for s, fields in FIELDS.items()),
    *(
        _predict(s, "text", next(iter(fields.values())).encode(), headers=_TEXT)
        for s, fields in FIELDS.items()
    ),
    *(
        _predict(s, "unknown parameter", {**fields, "parameters": {"z": 1}}, headers=_JSON)
        for s, fields in FIELDS.items()
    ),
    _predict("t5", "text", b"a text", headers=_TEXT),
    _predict("handler", "seed", {"data": "a text", "parameters": {"seed": 3}}, headers=_JSON),
    _predict(
        "handler",
        "cut",
        {"data": "a text " * 20, "parameters": {"temperature": 0}},
        headers=_JSON,
    ),
]
