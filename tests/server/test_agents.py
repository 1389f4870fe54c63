"""Agents: OpenAI's client against the demo model, with tools, schemas and reasoning."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.server.process import Served, serve

DEMO = Path(__file__).parents[2] / "examples" / "demo-model"
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"$ref": "#/$defs/city"}},
            "required": ["city"],
            "additionalProperties": False,
            "$defs": {"city": {"enum": ["Rome", "Oslo"]}},
        },
    },
}
HELLO: Any = [{"role": "user", "content": "It was raining in"}]
CALL = (
    r'<tool_call>\n\{"name": "get_weather", "arguments": \{"city": "[A-Z][a-z]"\}\}\n</tool_call>'
)
WITH_REASONING = f"<think>\n[a-z]{{4}}\n</think>\n\n[A-Z][a-z]{{3}}\n{CALL}"


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serve(DEMO, "--max_model_len=256", "--reasoning_parser=think") as server:
        yield server.await_ready()


@pytest.fixture
def agent(served: Served) -> Iterator[Any]:
    url = f"{served.url}/openai/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=120) as client:

        def ask(**keys: Any) -> Any:
            given = {"model": served.name, "messages": HELLO, "temperature": 0, "max_tokens": 120}
            return client.chat.completions.create(**{**given, **keys})

        yield ask


def merged(stream: Any) -> tuple[str, str, list[Any], str]:
    """Returns content, reasoning, calls and finish reason of a stream."""
    content, reasoning, calls, ending = "", "", {}, ""
    for chunk in stream:
        (choice,) = chunk.choices
        content += choice.delta.content or ""
        reasoning += getattr(choice.delta, "reasoning_content", None) or ""
        for part in choice.delta.tool_calls or []:
            name, text = calls.get(part.index, ("", ""))
            calls[part.index] = (
                name + (part.function.name or ""),
                text + (part.function.arguments or ""),
            )
        ending = choice.finish_reason or ending
    return content, reasoning, [(name, json.loads(text)) for name, text in calls.values()], ending


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "get_weather"}}]
)
def test_a_call_can_be_forced_of_any_model(agent: Any, choice: Any) -> None:
    keys = {"tools": [TOOL], "tool_choice": choice, "parallel_tool_calls": False}
    answer = agent(**keys).choices[0]
    assert answer.finish_reason == "tool_calls"
    (call,) = answer.message.tool_calls
    arguments = json.loads(call.function.arguments)
    assert (call.function.name, arguments["city"] in ("Rome", "Oslo")) == ("get_weather", True)
    assert answer.message.content is None
    calls = [("get_weather", arguments)]
    assert merged(agent(**keys, stream=True)) == ("", "", calls, "tool_calls")
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    again = agent(messages=[*HELLO, answer.message, result], tools=[TOOL])
    assert again.choices[0].message.content


def test_calls_and_reasoning_are_read_out_of_a_reply(agent: Any) -> None:
    keys = {
        "tools": [TOOL],
        "temperature": 1,
        "seed": 5,
        "extra_body": {"guided_regex": WITH_REASONING},
    }
    answer = agent(**keys).choices[0]
    assert answer.finish_reason == "tool_calls"
    (call,) = answer.message.tool_calls
    message = answer.message
    assert (len(message.content), len(message.reasoning_content)) == (4, 4)
    calls = [(call.function.name, json.loads(call.function.arguments))]
    streamed = merged(agent(**keys, stream=True))
    assert streamed == (message.content, message.reasoning_content, calls, "tool_calls")


def test_a_schema_is_followed_and_a_faulty_one_refused(agent: Any) -> None:
    def form(schema: Any) -> Any:
        return {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}

    schema = {
        "type": "object",
        "properties": {"warm": {"type": "boolean"}},
        "required": ["warm"],
        "additionalProperties": False,
    }
    answer = agent(response_format=form(schema), n=2).choices
    assert [type(json.loads(each.message.content)["warm"]) for each in answer] == [bool, bool]
    with pytest.raises(openai.BadRequestError, match="Invalid type: strin"):
        agent(response_format=form({"type": "strin"}))
    with pytest.raises(openai.BadRequestError, match="max_grammar_size"):
        agent(response_format=form({"enum": ["x" * 70_000]}))


def test_a_chat_does_not_wait_for_the_grammars_of_neighbours(agent: Any) -> None:
    keys = {"extra_body": {"guided_regex": ".?" * 2000}}  # refused after half a second

    def refuse(_number: int) -> float:
        with pytest.raises(openai.BadRequestError, match="schema or grammar"):
            agent(**keys)
        return time.monotonic()

    refuse(0)  # the first one makes the vocabulary
    with ThreadPoolExecutor(6) as pool:
        refusals = [pool.submit(refuse, number) for number in range(6)]
        time.sleep(0.3)
        agent(max_tokens=1)
        answered = time.monotonic()
        later = [each for each in refusals if each.result() > answered]
    assert len(later) >= 3


def test_large_and_deep_tools_are_refused_or_answered(agent: Any) -> None:
    deep: Any = {"type": "string"}
    for _ in range(100):
        deep = {"type": "object", "properties": {"a": deep}}
    function = {"name": "f", "parameters": deep, "description": "d" * 900_000}
    tools: Any = [{"type": "function", "function": function}]
    assert agent(tools=tools, max_tokens=2).choices[0].finish_reason == "length"
    with pytest.raises(openai.BadRequestError, match="schema or grammar"):
        agent(tools=tools, tool_choice="required")
