"""Whole answers and events, checked strictly by the types of OpenAI's own client."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

from predictor.protocol.openai.request import decode_chat
from predictor.protocol.openai.response import ChatFormat, Envelope, encode
from predictor.tasks.answers import Completion as Reply
from predictor.tasks.answers import ScoredToken
from predictor.tasks.tool_calls import ToolCall

PROMPT: dict[str, Any] = {"model": "echo", "prompt": ["ab", "c"]}
TALK: dict[str, Any] = {"model": "echo", "messages": [{"role": "user", "content": "hé"}]}
USAGE = {"stream": True, "stream_options": {"include_usage": True}}


def check(kind: type[BaseModel], body: bytes | str) -> Any:
    """Validates JSON without the leniency of the client, which takes any."""
    return kind.model_validate_json(body, strict=True)


@pytest.mark.parametrize(
    ("path", "kind", "body"),
    [
        ("completions", Completion, PROMPT),
        ("completions", Completion, {**PROMPT, "logprobs": 2, "n": 2, "echo": True}),
        ("chat/completions", ChatCompletion, TALK),
        ("chat/completions", ChatCompletion, {**TALK, "logprobs": True, "top_logprobs": 2}),
        ("chat/completions", ChatCompletion, {**TALK, "n": 2, "max_tokens": 1}),
    ],
    ids=str,
)
def test_whole_answers_are_of_openais_types(
    client: httpx.Client, path: str, kind: type[BaseModel], body: dict[str, Any]
) -> None:
    response = client.post(f"/v1/{path}", json=body)
    assert response.status_code == 200
    assert check(kind, response.content).choices


@pytest.mark.parametrize("more", [{}, USAGE, {**USAGE, "logprobs": 1, "n": 2}], ids=str)
def test_events_of_completions_are_of_openais_types(
    client: httpx.Client, more: dict[str, Any]
) -> None:
    events = events_of(client, "completions", {**PROMPT, "stream": True, **more})
    for event in map(json.loads, events):
        for choice in event["choices"]:  # `null` until the last, as OpenAI's server has it
            choice["finish_reason"] = choice["finish_reason"] or "stop"
        assert check(Completion, json.dumps(event)).id


@pytest.mark.parametrize(
    "more", [{}, USAGE, {**USAGE, "logprobs": True, "top_logprobs": 2, "n": 2}], ids=str
)
def test_events_of_chats_are_of_openais_types(client: httpx.Client, more: dict[str, Any]) -> None:
    events = events_of(client, "chat/completions", {**TALK, "stream": True, **more})
    assert [check(ChatCompletionChunk, event) for event in events]


def events_of(client: httpx.Client, path: str, body: dict[str, Any]) -> list[str]:
    """The data of the events of a stream, without the last, which is no JSON."""
    lines = client.post(f"/v1/{path}", json=body).text.split("\n\n")
    *events, done = [line.removeprefix("data: ") for line in lines if line]
    assert done == "[DONE]"
    return events


def test_models_are_of_openais_type(client: httpx.Client) -> None:
    listed = client.get("/openai/v1/models").json()
    assert listed["object"] == "list"
    for each in (*listed["data"], client.get("/openai/v1/models/echo").json()):
        assert check(Model, json.dumps(each)).id == "echo"


def test_a_chat_with_reasoning_and_calls_is_of_openais_type() -> None:
    token = ScoredToken(1, "b", -0.5, top=(("b", -0.5), ("c", -1.5)))
    calls = (ToolCall("c1", "f", "{}"), ToolCall("c2", "g", '{"x": 1}'))
    reply = Reply("b", "eos_token", 7, 5, (token,), "hm", calls, 3, 2)
    call = decode_chat({**TALK, "logprobs": True, "top_logprobs": 2})
    form = ChatFormat()
    answer = check(ChatCompletion, json.dumps(encode(form, Envelope.new(form, "m"), call, [reply])))
    assert [each.id for each in answer.choices[0].message.tool_calls] == ["c1", "c2"]
    assert answer.usage.completion_tokens_details.reasoning_tokens == 2
