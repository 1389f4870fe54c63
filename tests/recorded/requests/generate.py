"""The generate extension, whole and in events."""

from __future__ import annotations

from typing import Any

from tests.recorded.forms import Rest
from tests.recorded.requests.common import LOOP, PROMPT

_PATH = "/v2/models/{}/generate"


def _body(text: str = PROMPT, **parameters: Any) -> dict[str, Any]:
    return {"text_input": text, "parameters": {"max_tokens": 6, "temperature": 0, **parameters}}


_BOTH: dict[str, object] = {
    "greedy": _body(),
    "stop": _body(stop=[" to", "zzz"], max_tokens=12),
    "details": _body(details=True),
    "details to the end": _body(details=True, stop=["."], max_tokens=30),
    "sampled": _body(temperature=0.8, top_p=0.9, top_k=50, seed=4, details=True),
    "default temperature": {"text_input": PROMPT, "parameters": {"seed": 4}},
    "no text": {"parameters": {}},
    "top_k too small": _body(top_k=-2),
}

_WHOLE: dict[str, object] = {
    "penalties": _body(LOOP, repetition_penalty=1.5, presence_penalty=1, frequency_penalty=0.5),
    "defaults with a seed": {"text_input": PROMPT, "parameters": {"seed": 1}},
    "unknown parameter": {"text_input": PROMPT, "parameters": {"seed": 1, "unknown": 3}},
    "unknown keys": {**_body(), "id": "seven", "stream": False},
    "timeout": _body(timeout=300),
    "text is a list": {"text_input": [PROMPT]},
    "parameters is null": {**_body()["parameters"], "text_input": PROMPT, "parameters": None},
    "parameters is a list": {"text_input": PROMPT, "parameters": []},
    "parameter is null": _body(top_p=None),
    "stop is a text": _body(stop=" to"),
    "stop is empty": _body(stop=[""]),
    "details is a text": _body(details="yes"),
    "max_tokens is 0": _body(max_tokens=0),
    "max_tokens is a text": _body(max_tokens="6"),
    "temperature below 0": _body(temperature=-1),
    "seed is a fraction": _body(seed=1.5),
    "too long": _body("word " * 200),
    "reply too long": _body(max_tokens=120),
    "malformed": b'{"text_input": ',
}

_LATE = {"x-request-timeout": "0.000001"}


def _rest(name: str, kind: str, body: object, server: str = "demo", **more: Any) -> Rest:
    suffix = "_stream" if kind == "stream" else ""
    return Rest(server, f"generate/{kind}/{name}", _PATH.format(server) + suffix, body, **more)


REQUESTS = [
    *(_rest(name, kind, body) for kind in ("whole", "stream") for name, body in _BOTH.items()),
    *(_rest(name, "whole", body) for name, body in _WHOLE.items()),
    _rest("late", "whole", _body(max_tokens=100), headers=_LATE),
    _rest("late", "stream", _body(max_tokens=100), headers=_LATE),
    _rest("unicode", "stream", _body("日本 🙂", seed=11, temperature=2, max_tokens=12)),
    _rest("t5", "whole", _body("a text"), "t5"),
    _rest("t5", "stream", _body("a text"), "t5"),
    _rest("classifier", "whole", _body("a text"), "classifier"),
    _rest("handler", "whole", _body("a text"), "handler"),
    Rest("demo", "generate/version", "/v2/models/demo/versions/1/generate", _body()),
    Rest("demo", "generate/unknown version", "/v2/models/demo/versions/2/generate", _body()),
    Rest("demo", "generate/unknown model", "/v2/models/other/generate", _body()),
    Rest("demo", "generate/GET", "/v2/models/demo/generate", method="GET"),
]
