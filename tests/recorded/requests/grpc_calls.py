"""V2 and health over gRPC."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.recorded.forms import Grpc
from tests.recorded.requests.common import FIELDS, OTHER, PROMPT
from tests.recorded.servers import SERVERS
from tests.recorded.tensors import contents, raw, tensor, texts

_PROMPT = texts("text", PROMPT)
_TWO = texts("text", PROMPT, OTHER)
_FEW = {"max_new_tokens": 6}
_KINDS = {bool: "bool_param", int: "int64_param", str: "string_param"}
_INFER = "ModelInfer"


def _parameters(**values: Any) -> dict[str, Any]:
    return {name: {_KINDS[type(value)]: value} for name, value in values.items()}


def _message(tensors: Mapping[str, Any], *outputs: str, **parameters: Any) -> dict[str, Any]:
    named = {"outputs": [{"name": name} for name in outputs]} if outputs else {}
    return {**tensors, **named, "parameters": _parameters(**parameters)}


_GOOD: dict[str, dict[str, Any]] = {
    "contents": _message(contents(_TWO), **_FEW),
    "raw": _message(raw(_TWO), **_FEW),
    "id": {**_message(contents(_PROMPT), **_FEW), "id": "seven", "model_version": "1"},
    "outputs": _message(contents(_TWO), "completion_tokens", "text", **_FEW),
    "raw outputs": _message(raw(_TWO), "finish_reason", **_FEW),
    "binary output": _message(contents(_PROMPT), binary_data_output=True, **_FEW),
    "shape": _message(contents(texts("input-0", "a", "b", shape=[2, 1])), **_FEW),
    "fractions as texts": _message(
        contents(_PROMPT), temperature="0.7", top_p="0.9", seed=5, **_FEW
    ),
    "stop": _message(contents(_PROMPT), stop='[" to", "zzz"]', **_FEW),
    "full text": _message(contents(_PROMPT), return_full_text=True, timeout="300", **_FEW),
    "tensors": _message(
        contents(
            _TWO,
            tensor("max_new_tokens", "INT32", 3, 5),
            tensor("temperature", "FP32", 0.7),
            tensor("seed", "INT64", 5),
            tensor("return_full_text", "BOOL", True),
            texts("stop", "zzz"),
        )
    ),
    "raw tensors": _message(
        raw(
            _TWO,
            tensor("max_new_tokens", "INT16", 3, 5),
            tensor("top_p", "FP16", 0.5),
            tensor("seed", "UINT64", 5),
        )
    ),
    "defaults": _message(contents(texts("text", OTHER))),
}

_BROKEN = {"name": "text", "shape": [1], "datatype": "BYTES", "data": [b"\xff\xfe"]}

_BAD: dict[str, dict[str, Any]] = {
    "no inputs": _message({}),
    "no prompt": _message(contents(tensor("seed", "INT64", 5))),
    "two prompts": _message(contents(_PROMPT, texts("more", "a"))),
    "name twice": _message(contents(_PROMPT, _PROMPT)),
    "unknown parameter": _message(contents(_PROMPT), max_token=5),
    "wrong parameter": _message(contents(_PROMPT), temperature="hot"),
    "wrong type": _message(contents(_PROMPT), max_new_tokens="5"),
    "out of range": _message(contents(_PROMPT), top_k=-2),
    "no value": {**contents(_PROMPT), "parameters": {"temperature": {}}},
    "unknown output": _message(contents(_PROMPT), "logits"),
    "output twice": _message(contents(_PROMPT), "text", "text"),
    "unknown datatype": {"inputs": [{"name": "text", "shape": [1], "datatype": "STRING"}]},
    "no contents": {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES"}]},
    "other contents": {
        "inputs": [
            {"name": "text", "shape": [1], "datatype": "BYTES", "contents": {"int_contents": [1]}}
        ]
    },
    "raw and contents": {**contents(_PROMPT), "raw_input_contents": [b"\x01\0\0\0a"]},
    "too few raw": {**raw(_PROMPT, tensor("seed", "INT32", 1)), "raw_input_contents": [b""]},
    "raw cut": {**raw(_PROMPT), "raw_input_contents": [b"\x09\0\0\0a"]},
    "raw of another shape": raw({**tensor("seed", "INT32", 1), "shape": [2]}, _PROMPT),
    "not UTF-8": contents(_BROKEN),
    "raw not UTF-8": raw(_BROKEN),
    "shape below 0": contents(texts("text", "a", shape=[-2])),
    "shape of more": contents(texts("text", "a", shape=[2])),
    "no element": {"inputs": [{"name": "text", "shape": [0], "datatype": "BYTES"}]},
    "too many prompts": contents(texts("text", *["a"] * 257)),
    "prompt too long": contents(texts("text", "word " * 200)),
    "reply too long": _message(contents(_PROMPT), max_new_tokens=120),
    "too large": contents(texts("text", "a" * 70000)),
}

_TIMEOUTS = {"0.000001": "late", "0": "zero", "soon": "a word", "300": "enough"}

_PAGES: dict[str, tuple[str, dict[str, Any]]] = {
    "ServerLive": ("ServerLive", {}),
    "ServerReady": ("ServerReady", {}),
    "ServerMetadata": ("ServerMetadata", {}),
    "ModelReady": ("ModelReady", {"name": "demo"}),
    "ModelReady version": ("ModelReady", {"name": "demo", "version": "1"}),
    "ModelReady unknown version": ("ModelReady", {"name": "demo", "version": "2"}),
    "ModelReady unknown model": ("ModelReady", {"name": "other"}),
    "ModelReady no name": ("ModelReady", {}),
    "ModelMetadata unknown model": ("ModelMetadata", {"name": "other"}),
    "ModelMetadata unknown version": ("ModelMetadata", {"name": "demo", "version": "2"}),
    "RepositoryModelLoad": ("RepositoryModelLoad", {"model_name": "demo"}),
    "RepositoryModelUnload": ("RepositoryModelUnload", {"model_name": "demo"}),
    "RepositoryIndex": ("RepositoryIndex", {}),
    "unknown method": ("Nothing", {}),
    "health server": ("Check", {}),
    "health service": ("Check", {"service": "inference.GRPCInferenceService"}),
    "health model": ("Check", {"service": "demo"}),
    "health unknown": ("Check", {"service": "other"}),
    "health watch": ("Watch", {}),
    "health watch unknown": ("Watch", {"service": "other"}),
}


def _infer(server: str, name: str, message: Mapping[str, Any], **metadata: str) -> Grpc:
    headers = {key.replace("_", "-"): value for key, value in metadata.items()}
    return Grpc(server, f"grpc/{name}", _INFER, {"model_name": server, **message}, headers)


def _of_each(server: str) -> dict[str, dict[str, Any]]:
    inputs = [texts(name, text) for name, text in FIELDS[server].items()]
    several = [*inputs[:-1], texts(inputs[-1]["name"], *inputs[-1]["data"] * 2)]
    return {
        "contents": {**_message(contents(*inputs)), "id": "seven"},
        "raw": _message(raw(*several)),
        "unknown parameter": _message(contents(*inputs), zzz=1),
        "unknown output": _message(contents(*inputs), "zzz"),
        "no inputs": {},
    }


_LOGITS = _message(contents(texts("text", "I like it")), "logits", "label")

REQUESTS = [
    *(_infer("demo", name, message) for name, message in {**_GOOD, **_BAD}.items()),
    *(
        _infer("demo", f"timeout {name}", _message(contents(_PROMPT)), x_request_timeout=value)
        for value, name in _TIMEOUTS.items()
    ),
    Grpc("demo", "grpc/unknown model", _INFER, {"model_name": "other", **contents(_PROMPT)}),
    Grpc("demo", "grpc/no model", _INFER, contents(_PROMPT)),
    _infer("demo", "unknown version", {**contents(_PROMPT), "model_version": "2"}),
    *(Grpc("demo", f"grpc/{name}", *call) for name, call in _PAGES.items()),
    *(Grpc(server, "grpc/metadata", "ModelMetadata", {"name": server}) for server in SERVERS),
    _infer("t5", "contents", _message(contents(texts("text", "a text", "b")), **_FEW)),
    _infer("handler", "seed", _message(contents(texts("text", "a text")), seed=3)),
    *(_infer(server, name, m) for server in FIELDS for name, m in _of_each(server).items()),
    _infer("classifier", "logits", _LOGITS),
    _infer("embedder", "few", _message(contents(texts("text", "I like it")), dimensions=8)),
]
