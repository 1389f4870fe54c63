"""OpenAI's models, completions and chat completions."""

from __future__ import annotations

from typing import Any

from tests.recorded.forms import Rest
from tests.recorded.requests.common import LOOP, OTHER, PROMPT, label

_USER = {"role": "user", "content": "How is the weather?"}
_SEEDED = {"temperature": 1, "seed": 9}


def _text(**body: Any) -> dict[str, Any]:
    return {"model": "demo", "prompt": PROMPT, "max_tokens": 6, **body}


def _chat(*messages: Any, **body: Any) -> dict[str, Any]:
    return {"model": "demo", "messages": list(messages) or [_USER], "max_tokens": 6, **body}


_COMPLETIONS: dict[str, object] = {
    "greedy": _text(),
    "defaults": {"model": "demo", "prompt": PROMPT},
    "null keys": _text(stop=None, n=None, logprobs=None, suffix=None, stream=None),
    "prompts": _text(prompt=[PROMPT, OTHER]),
    "tokens": _text(prompt=[50, 60, 70]),
    "lists of tokens": _text(prompt=[[50, 60], [70]]),
    "n": _text(n=2, **_SEEDED),
    "n of two prompts": _text(prompt=[PROMPT, OTHER], n=2, **_SEEDED),
    "n greedy": _text(n=2),
    "stop": _text(stop=" to"),
    "stops": _text(stop=["zzz", " to"]),
    "logprobs": _text(logprobs=2),
    "logprobs 0": _text(logprobs=0),
    "echo": _text(echo=True),
    "logit_bias": _text(logit_bias={"50": 100}),
    "ban a token": _text(logit_bias={"50": -100.0, "60": -1}),
    "penalties": _text(prompt=LOOP, presence_penalty=1.5, frequency_penalty=0.5),
    "sampling": _text(top_p=0.9, top_k=30, repetition_penalty=1.2, **_SEEDED),
    "harmless": _text(best_of=1, suffix="", user="a", metadata={}, store=True),
    "empty prompt": _text(prompt=""),
    "no prompt": {"model": "demo"},
    "no prompts": _text(prompt=[]),
    "prompt is a number": _text(prompt=5),
    "prompt of a number and a text": _text(prompt=[5, "a"]),
    "prompt of a text and a number": _text(prompt=["a", 5]),
    "no tokens": _text(prompt=[[]]),
    "unknown token": _text(prompt=[99999]),
    "token below 0": _text(prompt=[-1]),
    "token is true": _text(prompt=[True]),
    "too many prompts": _text(prompt=["a"] * 257),
    "too many replies": _text(n=257),
    "echo and logprobs": _text(echo=True, logprobs=1),
    "stream_options alone": _text(stream_options={"include_usage": True}),
    "unknown stream option": _text(stream=True, stream_options={"usage": True}),
    "unknown key": _text(max_token=5),
    "top_logprobs is chat's": _text(top_logprobs=1),
    "too long": _text(prompt="word " * 200),
    "reply too long": _text(max_tokens=120),
    "no model": {"prompt": PROMPT},
    "unknown model": _text(model="other"),
    "model is a number": _text(model=5),
    "unknown biased token": _text(logit_bias={"99999": 1}),
    "malformed": b'{"model": "demo", ',
    "a list": [],
}

_CHATS: dict[str, object] = {
    "greedy": _chat(),
    "defaults": {"model": "demo", "messages": [_USER]},
    "roles": _chat(
        {"role": "system", "content": "Be kind."},
        {"role": "developer", "content": "Be short."},
        {**_USER, "name": "Ada"},
        {"role": "assistant", "content": "Nice.", "refusal": None, "tool_calls": []},
        _USER,
    ),
    "parts": _chat(
        {"role": "user", "content": [{"type": "text", "text": t} for t in ("How is", " it?")]}
    ),
    "max_completion_tokens": _chat(max_completion_tokens=3),
    "n": _chat(n=2, **_SEEDED),
    "stop": _chat(stop=[" the", "."], max_tokens=20),
    "logprobs": _chat(logprobs=True, top_logprobs=2),
    "logprobs alone": _chat(logprobs=True),
    "logprobs false": _chat(logprobs=False),
    "logit_bias": _chat(logit_bias={"50": 100}),
    "harmless": _chat(tools=[], tool_choice="none", response_format={"type": "text"}),
    "json": _chat(response_format={"type": "json_object"}, max_tokens=12),
    "choice": _chat(guided_choice=["sunny", "raining"], logprobs=True),
    "schema that is none": _chat(guided_json={"type": "strin"}),
    "no messages": {"model": "demo"},
    "empty messages": {"model": "demo", "messages": []},
    "messages is a text": {"model": "demo", "messages": "How?"},
    "unknown role": _chat({"role": "robot", "content": "a"}),
    "no role": _chat({"content": "a"}),
    "no content": _chat({"role": "user"}),
    "content is null": _chat({"role": "user", "content": None}),
    "content is a number": _chat({"role": "user", "content": 5}),
    "image": _chat({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}),
    "part without text": _chat({"role": "user", "content": [{"type": "text"}]}),
    "part without type": _chat({"role": "user", "content": [{"text": "a"}]}),
    "tool calls": _chat({"role": "assistant", "content": "a", "tool_calls": [{}]}),
    "unknown key of a message": _chat({**_USER, "weight": 1}),
    "message is a text": _chat("a"),
    "the template refuses": _chat({"role": "user", "content": "refuse"}),
    "top_logprobs alone": _chat(top_logprobs=2),
    "too many top_logprobs": _chat(logprobs=True, top_logprobs=21),
    "logprobs is a number": _chat(logprobs=1),
    "prompt is not chat's": _chat(prompt="a"),
    "echo is not chat's": _chat(echo=True),
    "wrong max_completion_tokens": _chat(max_completion_tokens=0, max_tokens=5),
}

_USAGE = {"stream": True, "stream_options": {"include_usage": True}}
_STREAMS: dict[str, tuple[str, object]] = {
    "text": ("completions", _text(stream=True)),
    "text usage": ("completions", _text(**_USAGE)),
    "text two": ("completions", _text(prompt=[PROMPT, OTHER], n=2, **_SEEDED, **_USAGE)),
    "text logprobs": ("completions", _text(stream=True, logprobs=1)),
    "text echo": ("completions", _text(stream=True, echo=True)),
    "text stop": ("completions", _text(stream=True, stop=" middle", max_tokens=20)),
    "chat": ("chat/completions", _chat(stream=True)),
    "chat usage": ("chat/completions", _chat(**_USAGE)),
    "chat n": ("chat/completions", _chat(n=2, **_SEEDED, **_USAGE)),
    "chat logprobs": ("chat/completions", _chat(stream=True, logprobs=True, top_logprobs=1)),
    "wrong": ("completions", _text(stream=True, top_p=2)),
    "stream is a text": ("completions", _text(stream="yes")),
}

_WRONG: dict[str, list[Any]] = {
    "max_tokens": [0, "6", 1.5],
    "temperature": [-1, "hot"],
    "top_p": [0, 2],
    "n": [0, "2", True],
    "seed": [-1, "a"],
    "stop": [[""], 5, ["a"] * 17],
    "presence_penalty": [2.5],
    "frequency_penalty": ["a"],
    "logprobs": [6, -1, True],
    "echo": ["yes"],
    "logit_bias": [{"a": 1}, {"5": 101}, [], {"5": "a"}],
    "best_of": [2],
    "suffix": ["end"],
    "stream_options": [5],
}
_REFUSED: dict[str, Any] = {
    "functions": [{}],
    "function_call": "auto",
    "modalities": ["audio"],
    "audio": {},
    "prediction": {},
    "web_search_options": {},
    "moderation": {},
}


def _rest(server: str, path: str, name: str, body: object, **more: Any) -> Rest:
    return Rest(server, f"openai/{path}/{name}", f"/openai/v1/{path}", body, **more)


_LATE = {"x-request-timeout": "0.000001"}

REQUESTS = [
    *(_rest("demo", "completions", name, body) for name, body in _COMPLETIONS.items()),
    *(_rest("demo", "chat/completions", name, body) for name, body in _CHATS.items()),
    *(
        _rest("demo", path, f"events/{name}", body, interleaved=" n" in name or "two" in name)
        for name, (path, body) in _STREAMS.items()
    ),
    *(
        _rest("demo", "completions", f"{name} {label(value)}", _text(**{name: value}))
        for name, values in _WRONG.items()
        for value in values
    ),
    *(
        _rest("demo", "chat/completions", f"{name} is refused", _chat(**{name: value}))
        for name, value in _REFUSED.items()
    ),
    _rest("demo", "completions", "late", _text(), headers=_LATE),
    _rest("demo", "completions", "late in events", _text(stream=True), headers=_LATE),
    *(
        _rest(server, "completions", "of another task", _text(model=server, prompt="a"))
        for server in ("t5", "classifier", "handler")
    ),
    _rest("t5", "chat/completions", "no template", _chat(model="t5")),
    *(
        Rest("demo", f"openai/{name}", f"/openai/v1/{path}", method=method)
        for name, path, method in (
            ("models", "models", "GET"),
            ("model", "models/demo", "GET"),
            ("unknown model", "models/a/b", "GET"),
            ("GET", "completions", "GET"),
            ("unknown path", "images", "POST"),
        )
    ),
    Rest("demo", "openai/no path", "/openai", method="GET"),
]
