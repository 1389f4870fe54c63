"""V2's infer over REST in its binary form, and by version."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from tests.recorded.forms import Rest
from tests.recorded.requests.common import FIELDS, OTHER, PROMPT
from tests.recorded.tensors import LENGTH, binary, tensor, texts

_FEW = {"max_new_tokens": 6}
_BINARY = {"binary_data_output": True}
_INPUT = texts("text", PROMPT, OTHER)
_JSON = {"inputs": [texts("text", OTHER)], "parameters": _FEW}

Payload = tuple[object, Mapping[str, str]]


def _changed(inputs: list[dict[str, Any]], change: Callable[[Any], object]) -> Payload:
    """Returns a binary request whose JSON was changed."""
    body, headers = binary(inputs)
    length = int(headers[LENGTH])
    document = json.loads(body[:length])
    change(document)
    text = json.dumps(document).encode()
    return text + body[length:], {LENGTH: str(len(text))}


def _mixed() -> Payload:
    """Returns a request with a parameter in binary and the prompt in JSON."""

    def change(document: Any) -> None:
        document["inputs"].append(texts("text", OTHER))
        document["parameters"] = {**_FEW, "temperature": 0.9}

    return _changed([tensor("seed", "INT32", 3)], change)


def _sized(size: object) -> Payload:
    def change(document: Any) -> None:
        document["inputs"][0]["parameters"]["binary_data_size"] = size

    return _changed([texts("text", "a")], change)


def _announced(length: str) -> Payload:
    """Returns a binary request whose header says another length."""
    return binary([_INPUT])[0], {LENGTH: length}


_CUT = tensor("text", "UINT8", 9, 0, 0, 0, 97)
_BROKEN = {"name": "text", "shape": [1], "datatype": "BYTES", "data": [b"\xff\xfe"]}
_ONE_BINARY = [{"name": "text", "parameters": {"binary_data": True}}]
_OUTPUTS = [{"name": "text", "parameters": {"binary_data": False}}, {"name": "prompt_tokens"}]

_FORMS: dict[str, Payload] = {
    "input": binary([_INPUT], parameters=_FEW),
    "input and output": binary([_INPUT], parameters=_FEW | _BINARY),
    "output": ({"inputs": [_INPUT], "parameters": _FEW | _BINARY}, {}),
    "output but one": ({"inputs": [_INPUT], "parameters": _FEW | _BINARY, "outputs": _OUTPUTS}, {}),
    "one output": ({"inputs": [_INPUT], "parameters": _FEW, "outputs": _ONE_BINARY}, {}),
    "numbers": binary(
        [
            _INPUT,
            tensor("max_new_tokens", "INT64", 2, 4),
            tensor("temperature", "FP16", 0.5),
            tensor("top_p", "FP64", 0.9),
            tensor("seed", "UINT8", 9),
            tensor("return_full_text", "BOOL", False, True),
            texts("stop", "zzz"),
        ]
    ),
    "mixed": _mixed(),
    "JSON with the header": (
        json.dumps(_JSON).encode(),
        {LENGTH: str(len(json.dumps(_JSON).encode()))},
    ),
    "binary_data is a text": (
        {"inputs": [_INPUT], "parameters": {"binary_data_output": "true"}},
        {},
    ),
    "data and size": _changed([_INPUT], lambda d: d["inputs"][0].update(data=["a", "b"])),
    "size below 0": _sized(-1),
    "size is a text": _sized("5"),
    "no header": (binary([_INPUT])[0], {}),
    "header is a word": _announced("long"),
    "header is too large": _announced("60000"),
    "header is below 0": _announced("-1"),
    "header is too small": _announced("5"),
    "bytes missing": binary([_INPUT], cut=3),
    "bytes left": (binary([_INPUT])[0] + b"more", binary([_INPUT])[1]),
    "element cut": _changed([_CUT], lambda d: d["inputs"][0].update(datatype="BYTES")),
    "not UTF-8": binary([_BROKEN]),
    "bytes of another shape": binary([_INPUT, {**tensor("seed", "INT32", 1), "shape": [2]}]),
    "element of another shape": binary([{**_INPUT, "shape": [3]}]),
    "not a number": binary([_INPUT, tensor("top_p", "FP32", float("nan"))]),
}


def _of_task(server: str) -> Payload:
    inputs = [texts(name, text) for name, text in FIELDS[server].items()]
    return binary(inputs, id="seven", parameters=_BINARY)


_VERSION = "/v2/models/demo/versions"

REQUESTS = [
    *(
        Rest("demo", f"v2/binary/{name}", "/v2/models/demo/infer", body, headers=headers)
        for name, (body, headers) in _FORMS.items()
    ),
    *(
        Rest(
            server,
            "v2/binary/fields",
            f"/v2/models/{server}/infer",
            _of_task(server)[0],
            headers=_of_task(server)[1],
        )
        for server in FIELDS
    ),
    Rest("demo", "v2/version", f"{_VERSION}/1/infer", _JSON),
    Rest("demo", "v2/unknown version", f"{_VERSION}/2/infer", _JSON),
    Rest("demo", "v2/unknown model", "/v2/models/other/infer", _JSON),
]
