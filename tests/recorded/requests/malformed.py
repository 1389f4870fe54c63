"""Malformed bodies and headers, sent to one path of each protocol."""

from __future__ import annotations

from typing import Any

from tests.recorded.forms import Rest
from tests.recorded.requests.common import OTHER, PROMPT
from tests.recorded.tensors import texts

_PREDICT = "/v1/models/demo:predict"
_FEW = {"max_new_tokens": 3}
_GOOD = {"instances": [OTHER], "parameters": _FEW}

_BODIES: dict[str, bytes] = {
    "empty": b"",
    "a word": b"hello",
    "cut": b'{"instances": ["a"]',
    "trailing comma": b'{"instances": ["a"],}',
    "second line": b'{"instances":\n ["a" "b"]}',
    "two documents": b'{"instances": ["a"]} {}',
    "a list": b'["a"]',
    "a text": b'"a"',
    "null": b"null",
    "not UTF-8": b'{"instances": ["\xff"]}',
    "UTF-16": '{"instances": ["a"]}'.encode("utf-16"),
    "byte order mark": b'\xef\xbb\xbf{"instances": ["a"]}',
    "half a pair": b'{"instances": ["\\ud83d"]}',
    "control character": b'{"instances": ["a\nb"]}',
    "NaN": b'{"instances": ["a"], "parameters": {"top_p": NaN}}',
    "Infinity": b'{"instances": ["a"], "parameters": {"top_p": -Infinity}}',
    "large number": b'{"instances": ["a"], "parameters": {"top_p": 1e999}}',
    "long integer": b'{"instances": ["a"], "parameters": {"seed": %s}}' % (b"9" * 65),
    "integer of 64 digits": b'{"instances": ["a"], "parameters": {"seed": %s}}' % (b"9" * 64),
    "nested deeply": b"[" * 60000,
    "nested deeply inside": b'{"instances": ' + b"[" * 30000 + b"]" * 30000 + b"}",
    "one byte too many": b" " * (64 * 1024 + 1),
}

_HEADERS: dict[str, dict[str, str]] = {
    "text/plain": {"content-type": "text/plain"},
    "charset": {"content-type": "application/json; charset=utf-8"},
    "identity": {"content-encoding": "identity"},
    "gzip": {"content-encoding": "gzip"},
    "long coding": {"content-encoding": "z" * 100},
    "timeout": {"x-request-timeout": "300"},
    "timeout 0": {"x-request-timeout": "0"},
    "timeout below 0": {"x-request-timeout": "-1"},
    "timeout word": {"x-request-timeout": "soon"},
    "timeout nan": {"x-request-timeout": "nan"},
    "timeout inf": {"x-request-timeout": "inf"},
    "late": {"x-request-timeout": "0.000001"},
    "request id": {"x-request-id": "seven"},
}

_INFER = {"inputs": [texts("text", PROMPT)]}
_ELSEWHERE: dict[str, tuple[str, object]] = {
    "v2": ("/v2/models/demo/infer", _INFER),
    "openai": ("/openai/v1/completions", {"model": "demo", "prompt": PROMPT}),
    "chat": ("/openai/v1/chat/completions", {"model": "demo", "messages": []}),
    "generate": ("/v2/models/demo/generate", {"text_input": PROMPT}),
    "generate_stream": ("/v2/models/demo/generate_stream", {"text_input": PROMPT}),
    "torchserve": ("/predictions/demo", PROMPT.encode()),
    "embeddings": ("/openai/v1/embeddings", {"model": "demo", "input": "a"}),
    "tei": ("/embed", {"inputs": "a"}),
    "index": ("/v2/repository/index", {}),
}


def _rest(name: str, body: object = None, path: str = _PREDICT, **more: Any) -> Rest:
    return Rest("demo", f"malformed/{name}", path, body, **more)


def _everywhere() -> list[Rest]:
    rows = []
    for name, (path, body) in _ELSEWHERE.items():
        late = {"x-request-timeout": "0.000001"}
        rows += [
            _rest(f"{name}/empty", b"", path),
            _rest(f"{name}/not UTF-8", b"\xff", path),
            _rest(f"{name}/NaN", b'{"a": NaN}', path, headers={"content-type": "application/json"}),
            _rest(f"{name}/gzip", body, path, headers={"content-encoding": "gzip"}),
            _rest(f"{name}/too large", b" " * 70000, path),
            _rest(f"{name}/wrong timeout", body, path, headers={"x-request-timeout": "0"}),
            _rest(f"{name}/late", body, path, headers=late),
        ]
    return rows


REQUESTS = [
    *(_rest(name, body) for name, body in _BODIES.items()),
    _rest("no body"),
    _rest(
        "as large as may be",
        b'{"instances": ["a"], "parameters": {"max_new_tokens": 1}}'.ljust(64 * 1024),
    ),
    _rest("chunked", _GOOD, chunked=True),
    _rest("chunked and too large", b" " * 70000, chunked=True),
    *(_rest(f"header {name}", _GOOD, headers=headers) for name, headers in _HEADERS.items()),
    _rest("late events", _GOOD, headers={**_HEADERS["late"], "accept": "text/event-stream"}),
    _rest(
        "wrong timeout of events",
        _GOOD,
        headers={"x-request-timeout": "x", "accept": "text/event-stream"},
    ),
    *_everywhere(),
]
