"""Anthropic's messages: blocks in, blocks out, and a stream's events, by the client's own types."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pydantic
import pytest
from anthropic.types import Message, RawMessageStreamEvent, message_create_params

from predictor.errors import EngineBroken, NotReady, Overloaded, RequestError
from predictor.protocol.anthropic.request import (
    IGNORED,
    KEYS,
    REFUSED,
    decode_count,
    decode_message,
)
from predictor.protocol.anthropic.response import MessageEvents, MessageForm
from predictor.protocol.http.authentication import ApiKeys
from predictor.protocol.http.json_body import dump_json
from predictor.tasks.answers import Completion, Piece
from predictor.tasks.request import Conversation, ForcedCalls
from predictor.tasks.tool_calls import CallPart, ToolCall
from tests.protocol.stub import Served, serve

EVENTS: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(RawMessageStreamEvent)
HELLO = [{"role": "user", "content": "a"}]
TOOL = {"name": "f", "input_schema": {"type": "object"}}
BASH = {"type": "bash_20250124", "name": "bash"}


def conversation(messages: Any = HELLO, **keys: Any) -> Conversation:
    return decode_message({"messages": messages, **keys}).conversation


def turns(messages: Any, **keys: Any) -> list[dict[str, Any]]:
    given = conversation(messages, **keys).messages
    return [{"role": each.role, "content": each.content, **each.extra} for each in given]


def text(content: str) -> dict[str, Any]:
    return {"type": "text", "text": content, "cache_control": {"type": "ephemeral"}}


# --- requests ---


def test_a_system_prompt_and_messages_are_texts_or_blocks() -> None:
    messages = [
        {"role": "user", "content": [text("a"), text("b")]},
        {"role": "assistant", "content": "c"},
        {"role": "user", "content": "d"},
    ]
    expected = [
        {"role": "system", "content": "s\nt"},
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "content": "c"},
        {"role": "user", "content": "d"},
    ]
    assert turns(messages, system=[text("s"), text("t")]) == expected
    assert turns(messages, system="s\nt") == expected


def test_uses_of_tools_and_their_results_are_calls_and_turns_of_the_tool() -> None:
    messages = [
        *HELLO,
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "x"},
                {"type": "redacted_thinking", "data": "x"},
                text("b"),
                {"type": "tool_use", "id": "c1", "name": "f", "input": {"x": 1}},
                {"type": "tool_use", "id": "c2", "name": "g", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "c1", "content": [text("5")]},
                {"type": "tool_result", "tool_use_id": "c2", "is_error": True},
                text("go on"),
            ],
        },
    ]
    assert turns(messages)[1:] == [
        {
            "role": "assistant",
            "content": "b",
            "reasoning_content": "hm",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}},
                {"id": "c2", "type": "function", "function": {"name": "g", "arguments": {}}},
            ],
        },
        {"role": "tool", "content": "5", "tool_call_id": "c1", "name": "f"},
        {"role": "tool", "content": "", "tool_call_id": "c2", "name": "g"},
        {"role": "user", "content": "go on"},
    ]


@pytest.mark.parametrize(
    ("choice", "forced", "names"),
    [
        (None, None, ["f"]),
        ({"type": "auto"}, None, ["f"]),
        ({"type": "none"}, None, []),
        ({"type": "any"}, ForcedCalls(), ["f"]),
        ({"type": "tool", "name": "f"}, ForcedCalls("f"), ["f"]),
    ],
)
def test_tools_are_offered_by_choice(choice: Any, forced: Any, names: list[str]) -> None:
    result = conversation(tools=[TOOL], tool_choice=choice)
    assert result.forced == forced
    assert [tool["function"]["name"] for tool in result.tools] == names
    assert all(tool["function"]["parameters"] == TOOL["input_schema"] for tool in result.tools)


def test_tools_of_anthropics_own_are_left_out_and_named() -> None:
    call = decode_message({"messages": HELLO, "tools": [BASH, TOOL, BASH], "strange": 1})
    assert call.ignored == ("strange", "tools[] of type bash_20250124")
    assert conversation(tools=[BASH]).tools == ()


def test_one_tool_is_used_if_no_parallel_ones_are_wanted() -> None:
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    assert conversation(tools=[TOOL], tool_choice=choice).is_single


def test_parameters_have_their_names_here() -> None:
    call = decode_message(
        {
            "messages": HELLO,
            "max_tokens": 5,
            "temperature": 0.5,
            "top_k": 3,
            "stop_sequences": ["x"],
            "stream": True,
            "thinking": {"type": "disabled"},
            "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": {}}},
        }
    )
    parameters = call.request.prompts[0].parameters
    assert (parameters.max_new_tokens, parameters.temperature, parameters.top_k) == (5, 0.5, 3)
    assert parameters.stop == ("x",)
    assert parameters.grammar is not None
    options = {"reasoning_effort": "low", "enable_thinking": False}
    assert call.conversation.template_options == options
    assert call.stream


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({}, "The body has no 'messages'."),
        ({"messages": []}, "messages is empty; give at least one."),
        ({"messages": "a"}, "messages must be a list, not a string."),
        ({"messages": [{"content": "a"}]}, "messages[0] has no 'role'."),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role must be one of user"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content must be a string or"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content is empty; give at"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            "messages[0].content[0] is of type 'image'; only text, tool_result are supported.",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]},
            "messages[0].content[0].tool_use_id must be a string, not null.",
        ),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "c"}]}]},
            "messages[0].content[0].name must be a string, not null.",
        ),
        (
            {"messages": [*HELLO, {"role": "assistant", "content": "b"}]},
            "The last message is the assistant's; no reply is continued.",
        ),
        ({"messages": HELLO, "system": 5}, "system must be a string or a list, not an integer."),
        ({"messages": HELLO, "tools": [{"name": "f"}]}, "tools[0].input_schema must be an object"),
        ({"messages": HELLO, "tools": [TOOL, TOOL]}, "tools has two functions of the name 'f'."),
        ({"messages": HELLO, "tool_choice": {"type": "any"}}, "tool_choice needs tools; give"),
        ({"messages": HELLO, "tool_choice": {"type": "x"}}, "tool_choice.type must be one of auto"),
        ({"messages": HELLO, "tool_choice": "any"}, "tool_choice must be an object, not a string."),
        ({"messages": HELLO, "thinking": {"type": "x"}}, "thinking.type must be one of enabled,"),
        ({"messages": HELLO, "max_tokens": 0}, "max_tokens must be between 1 and"),
        ({"messages": HELLO, "mcp_servers": [{}]}, "mcp_servers is not supported: this server"),
        ({"messages": HELLO, "output_config": {"effort": "x"}}, "output_config.effort must be one"),
    ],
)
def test_what_is_wrong_is_named(body: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RequestError) as refused:
        decode_message(body)
    assert str(refused.value).startswith(sentence)


def test_tokens_are_counted_of_a_conversation_that_ends_in_any_way() -> None:
    messages = [*HELLO, {"role": "assistant", "content": "b"}]
    assert len(decode_count({"messages": messages}).conversation.messages) == 2


def test_each_key_of_anthropics_client_is_in_one_table() -> None:
    keys = message_create_params.MessageCreateParamsBase.__annotations__
    tables = (set(KEYS), set(REFUSED), set(IGNORED))
    assert keys.keys() | {"stream"} <= set().union(*tables)
    assert sum(map(len, tables)) == len(set().union(*tables))


# --- messages ---

CALL = decode_message({"messages": HELLO})


def whole(completion: Completion) -> Message:
    document = MessageForm().whole(CALL, "m", [completion])
    return Message.model_validate(json.loads(json.dumps(document)))


def test_a_reply_is_thinking_a_text_and_uses_of_tools() -> None:
    calls = (ToolCall("c1", "f", '{"x": 1}'), ToolCall("c2", "g", "no JSON"))
    completion = Completion("b", "eos_token", 7, 5, (), "hm", calls, 3)
    message = whole(completion)
    kinds = [block.type for block in message.content]
    assert kinds == ["thinking", "text", "tool_use", "tool_use"]
    assert [block.input for block in message.content if block.type == "tool_use"] == [
        {"x": 1},
        {"arguments": "no JSON"},
    ]
    assert (message.stop_reason, message.stop_sequence) == ("tool_use", None)
    assert message.usage.input_tokens == 4
    assert (message.usage.cache_read_input_tokens, message.usage.output_tokens) == (3, 5)


@pytest.mark.parametrize(
    "arguments",
    [
        '{"a": 36893488147419103232}',
        '{"a": "\\ud800"}',
        '{"a": NaN}',
        '{"a": 1e999}',
        '{"a": ' + "[" * 252 + "]" * 252 + "}",
        '{"a": ' + "[" * 5000 + "]" * 5000 + "}",
        '{"a": "\ud800"}',
    ],
)
def test_arguments_that_no_answer_can_have_are_a_text(arguments: str) -> None:
    calls = (ToolCall("c1", "f", arguments),)
    document: Any = MessageForm().whole(CALL, "m", [Completion("", "eos_token", 1, 1, calls=calls)])
    assert document["content"][0]["input"] == {"arguments": arguments}
    if arguments.isascii():
        dump_json(document)


@pytest.mark.parametrize(
    ("ending", "stop", "reason"),
    [
        ("eos_token", "", "end_turn"),
        ("length", "", "max_tokens"),
        ("stop_sequence", "x", "stop_sequence"),
    ],
)
def test_a_reply_says_why_it_ended(ending: Any, stop: str, reason: str) -> None:
    message = whole(Completion("b", ending, 1, 1, stop=stop))
    assert (message.stop_reason, message.stop_sequence) == (reason, stop or None)


# --- streams ---

PIECES = [
    Piece(0, "", None, 7, 1, reasoning="hm"),
    Piece(0, "b", None, 7, 3, cached_tokens=3),
    Piece(0, "b", None, 7, 4),
    Piece(0, "", None, 7, 5, calls=(CallPart(0, '{"x"', "c1", "f"),)),
    Piece(0, "", "eos_token", 7, 6, calls=(CallPart(0, ": 1}"), CallPart(1, "{}", "c2", "g"))),
]


def test_the_events_of_a_stream_have_anthropics_order() -> None:
    stream = MessageEvents("m")
    named = [event for piece in PIECES for event in stream.encode(piece)]
    events = [EVENTS.validate_python(json.loads(json.dumps(event.data))) for event in named]
    assert [event.name for event in named] == [event.type for event in events]
    assert [(event.type, getattr(event, "index", None)) for event in events] == [
        ("message_start", None),
        ("content_block_start", 0),
        *[("content_block_delta", 0)] * 2,
        ("content_block_stop", 0),
        ("content_block_start", 1),
        *[("content_block_delta", 1)] * 2,
        ("content_block_stop", 1),
        ("content_block_start", 2),
        *[("content_block_delta", 2)] * 2,
        ("content_block_stop", 2),
        ("content_block_start", 3),
        ("content_block_delta", 3),
        ("content_block_stop", 3),
        ("message_delta", None),
        ("message_stop", None),
    ]
    assert events[-2].delta.stop_reason == "tool_use"


# --- the routes ---


@pytest.fixture
def asking(served: Served) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(
        base_url=served.url, api_key="none", max_retries=0, timeout=30
    ) as client:
        yield client


def test_anthropics_client_is_answered(asking: anthropic.Anthropic) -> None:
    body: Any = {"model": "echo", "max_tokens": 9, "messages": HELLO}
    message = asking.messages.create(**body)
    assert [block.text for block in message.content if block.type == "text"] == ["USER: A"]
    with asking.messages.stream(**body) as stream:
        assert "".join(stream.text_stream) == "USER: A"
        assert stream.get_final_message().stop_reason == "end_turn"


def test_anthropics_client_is_refused_in_anthropics_form(
    served: Served, asking: anthropic.Anthropic
) -> None:
    with pytest.raises(anthropic.BadRequestError, match="messages is empty"):
        asking.messages.create(model="echo", max_tokens=9, messages=[])
    with pytest.raises(anthropic.NotFoundError) as refused:
        asking.messages.create(model="nobody", max_tokens=9, messages=HELLO)  # type: ignore[arg-type]
    assert refused.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]
    errors: list[tuple[Exception, str]] = [
        (Overloaded("Full.", retry_after=1), "rate_limit_error"),
        (NotReady("Not now."), "overloaded_error"),
    ]
    for failure, kind in errors:
        served.model.failure = failure
        with pytest.raises(anthropic.APIStatusError) as failed:
            asking.messages.create(model="echo", max_tokens=9, messages=HELLO)  # type: ignore[arg-type]
        assert failed.value.body["error"]["type"] == kind  # type: ignore[index]


def test_a_failure_in_a_stream_reaches_anthropics_client(
    served: Served, asking: anthropic.Anthropic
) -> None:
    served.model.late_failure = EngineBroken("It broke.")
    try:
        with pytest.raises(anthropic.APIStatusError, match=r"It broke\."):
            list(asking.messages.create(model="echo", max_tokens=9, messages=HELLO, stream=True))  # type: ignore[arg-type]
    finally:
        served.model.late_failure = None


def test_anthropics_key_is_one_of_the_api_keys_on_its_routes_alone() -> None:
    body = {"model": "echo", "max_tokens": 9, "messages": HELLO}
    with serve(keys=ApiKeys(["right"])) as served:
        for key, status in (("right", 200), ("wrong", 401)):
            response = httpx.post(
                f"{served.url}/v1/messages", json=body, headers={"x-api-key": key}
            )
            assert response.status_code == status
        other = httpx.post(
            f"{served.url}/v1/chat/completions", json=body, headers={"x-api-key": "right"}
        )
        assert other.status_code == 401
