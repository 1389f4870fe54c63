"""Tools, calls in the history and options of the chat template in requests for chats."""

from __future__ import annotations

import json
from typing import Any

import pytest

from predictor.errors import RequestError
from predictor.protocol.openai.request import decode_body, decode_chat
from predictor.protocol.openai.response import ChatFormat, Chunks, Envelope, encode
from predictor.tasks.answers import Completion, Piece
from predictor.tasks.request import Conversation, ForcedCalls
from predictor.tasks.tool_calls import CallPart, ToolCall

HELLO = {"role": "user", "content": "a"}


def tool(name: str = "f", **function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **function}}


NODE = {
    "$id": "https://example.org/node",
    "type": "object",
    "properties": {"next": {"$ref": "#/$defs/node"}, "same": {"$ref": "#"}},
    "$defs": {"node": {"type": "null"}},
}
DEEP = '{"a": ' * 300 + "{}" + "}" * 300
TWO = [tool("f", parameters=NODE), tool("g")]


def decoded(messages: list[Any] | None = None, **keys: Any) -> Conversation:
    call = decode_chat({"messages": messages or [HELLO], **keys})
    text = call.request.prompts[0].text
    assert isinstance(text, Conversation)
    return text


def grammar(**keys: Any) -> Any:
    given = decode_chat({"messages": [HELLO], **keys}).request.prompts[0].parameters.grammar
    return None if given is None else json.loads(given.text)


# --- tools ---


@pytest.mark.parametrize(
    ("keys", "names", "forced"),
    [
        ({}, [], None),
        ({"tools": []}, [], None),
        ({"tools": TWO}, ["f", "g"], None),
        ({"tools": TWO, "tool_choice": "auto"}, ["f", "g"], None),
        ({"tools": TWO, "tool_choice": None}, ["f", "g"], None),
        ({"tools": TWO, "tool_choice": "none"}, [], None),
        ({"tools": TWO, "tool_choice": "required"}, ["f", "g"], ForcedCalls()),
        ({"tools": TWO, "tool_choice": tool("g")}, ["f", "g"], ForcedCalls("g")),
    ],
)
def test_tools_are_offered_by_choice(
    keys: dict[str, Any], names: list[str], forced: ForcedCalls | None
) -> None:
    conversation = decoded(**keys)
    assert [each["function"]["name"] for each in conversation.tools] == names
    assert conversation.forced == forced


def test_one_call_is_made_if_no_parallel_ones_are_wanted() -> None:
    assert not decoded(tools=TWO).is_single
    assert decoded(tools=TWO, parallel_tool_calls=False).is_single
    schema = grammar(tools=TWO, tool_choice="required", parallel_tool_calls=False)
    assert (schema["minItems"], schema["maxItems"]) == (1, 1)


def test_forced_calls_are_a_form_of_the_reply() -> None:
    assert grammar(tools=TWO) is None
    assert grammar(tools=TWO, tool_choice=tool("g")) == {"type": "object"}
    assert grammar(tools=TWO, tool_choice=tool("f")) == NODE
    schema = grammar(tools=TWO, tool_choice="required")
    assert schema["minItems"] == 1
    first, second = schema["items"]["anyOf"]
    assert first["properties"] == {
        "name": {"const": "f"},
        "parameters": {"$ref": "#/$defs/tool0"},
    }
    assert second["properties"]["name"] == {"const": "g"}
    moved = schema["$defs"]["tool0"]
    assert "$id" not in moved
    assert moved["properties"]["next"] == {"$ref": "#/$defs/tool0/$defs/node"}
    assert moved["properties"]["same"] == {"$ref": "#/$defs/tool0"}


@pytest.mark.parametrize("choice", ["required", tool("f")])
def test_what_cannot_be_enforced_counts_for_strict_functions_alone(choice: Any) -> None:
    for strict in (False, True):
        tools = [tool("f", strict=strict), tool("g")]
        call = decode_chat({"messages": [HELLO], "tools": tools, "tool_choice": choice})
        given = call.request.prompts[0].parameters.grammar
        assert given is not None
        assert given.is_lenient != strict


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"tools": {}}, "tools must be a list, not an object."),
        ({"tools": [tool()] * 2}, "tools has two functions of the name 'f'."),
        ({"tools": [{"type": "code"}]}, "tools[0].type must be 'function'."),
        ({"tools": [{"type": "function"}]}, "tools[0].function must be an object, not null."),
        ({"tools": [tool("a b")]}, "tools[0].function.name must have 1 to 128 letters, digits,"),
        ({"tools": [tool(parameters=[])]}, "tools[0].function.parameters must be an object"),
        ({"tools": [tool()] * 257}, "A request has at most 256"),
        ({"tool_choice": "required"}, "tool_choice needs tools; give at least one."),
        ({"tools": TWO, "tool_choice": "any"}, "tool_choice must be one of none, auto, required,"),
        ({"tools": TWO, "tool_choice": 5}, "tool_choice must be an object, not an integer."),
        ({"tools": TWO, "tool_choice": {"type": "x"}}, "tool_choice.type must be 'function'."),
        ({"tools": TWO, "tool_choice": tool("h")}, "tool_choice names 'h', which is not in tools."),
        (
            {"tools": TWO, "tool_choice": "required", "guided_regex": "a"},
            "tool_choice cannot force a call of a reply that has another form.",
        ),
        ({"parallel_tool_calls": 1}, "parallel_tool_calls must be a boolean, not an integer."),
        ({"reasoning_effort": "much"}, "reasoning_effort must be one of none, minimal, low,"),
        (
            {"chat_template_kwargs": {"tokenize": True}},
            "chat_template_kwargs cannot set 'tokenize'.",
        ),
        ({"chat_template_kwargs": []}, "chat_template_kwargs must be an object, not a list."),
    ],
)
def test_wrong_tools_and_options_are_refused(keys: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RequestError) as refused:
        decode_chat({"messages": [HELLO], **keys})
    assert str(refused.value).startswith(sentence)


@pytest.mark.parametrize(
    ("keys", "options"),
    [
        ({}, {}),
        ({"chat_template_kwargs": {"enable_thinking": False}}, {"enable_thinking": False}),
        ({"reasoning_effort": "high"}, {"reasoning_effort": "high"}),
        ({"reasoning_effort": "none"}, {"reasoning_effort": "none", "enable_thinking": False}),
        (
            {"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": True}},
            {"reasoning_effort": "none", "enable_thinking": True},
        ),
    ],
)
def test_options_reach_the_chat_template(keys: dict[str, Any], options: dict[str, Any]) -> None:
    assert decoded(**keys).template_options == options


# --- history ---


def test_calls_and_their_results_stand_in_the_history() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    assistant = {"role": "assistant", "content": None, "tool_calls": [call], "annotations": []}
    result = {
        "role": "tool",
        "tool_call_id": "c1",
        "name": "f",
        "content": [{"type": "text", "text": "2"}],
    }
    *_, first, second = decoded([HELLO, assistant, result]).messages
    assert (first.role, first.content) == ("assistant", "")
    assert first.extra["tool_calls"] == [
        {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    ]
    assert (second.role, second.content) == ("tool", "2")
    assert second.extra == {"tool_call_id": "c1", "name": "f"}


@pytest.mark.parametrize("text", ["", "no json", "[1]", "[" * 9000, '{"a": "\\ud800"}', DEEP])
def test_arguments_that_a_model_wrote_wrongly_may_be_sent_back(text: str) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": text}}
    (message,) = decoded([{"role": "assistant", "tool_calls": [call]}]).messages
    assert message.extra["tool_calls"][0]["function"]["arguments"] == (text or {})


def test_reasoning_may_be_sent_back() -> None:
    turn = {"role": "assistant", "content": "b", "reasoning_content": "c"}
    (message,) = decoded([turn]).messages
    assert message.extra == {"reasoning_content": "c"}


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ({"role": "assistant"}, "messages[0] has no 'content'."),
        ({"role": "tool"}, "messages[0] has no 'content'."),
        (
            {"role": "assistant", "tool_calls": {}},
            "messages[0].tool_calls must be a list, not an object.",
        ),
        (
            {"role": "assistant", "tool_calls": [{"id": "a"}]},
            "messages[0].tool_calls[0].function must be an object, not null.",
        ),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": 5}}]},
            "messages[0].tool_calls[0].function.arguments must be a string, not an integer.",
        ),
        (
            {"role": "tool", "content": "a", "tool_call_id": 5},
            "messages[0].tool_call_id must be a string, not an integer.",
        ),
        ({"role": "user", "content": "a", "function_call": {"name": "f"}}, "messages[0].function_"),
    ],
)
def test_a_wrong_history_is_refused(message: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RequestError) as refused:
        decoded([message])
    assert str(refused.value).startswith(sentence)


def test_tools_and_history_count_as_tokens_in_flight() -> None:
    small = decode_chat({"messages": [HELLO]}).request.most_tokens
    large = decode_chat({"messages": [HELLO], "tools": [tool(description="d" * 5000)]})
    assert large.request.most_tokens > small + 5000


# --- responses ---

CALL = decode_chat({"messages": [HELLO], "tools": TWO})
FORM = ChatFormat()


@pytest.mark.parametrize(
    ("text", "ending", "content", "reason"),
    [("", "eos_token", None, "tool_calls"), ("Hm", "length", "Hm", "length")],
)
def test_calls_and_reasoning_are_parts_of_the_message(
    text: str, ending: Any, content: str | None, reason: str
) -> None:
    calls = (ToolCall("c1", "f", "{}"),)
    completion = Completion(text, ending, 1, 2, reasoning="Think", calls=calls)
    document: Any = encode(FORM, Envelope.new(FORM, "m"), CALL, [completion])
    (choice,) = document["choices"]
    assert choice["finish_reason"] == reason
    assert choice["message"]["content"] == content
    assert choice["message"]["reasoning_content"] == "Think"
    assert choice["message"]["tool_calls"] == [
        {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    ]


def test_calls_are_streamed_in_parts() -> None:
    chunks = Chunks(FORM, Envelope.new(FORM, "m"), CALL)
    pieces = [
        Piece(0, "", None, 1, 1, reasoning="Think"),
        Piece(0, "", None, 1, 2, calls=(CallPart(0, '{"a', "c1", "f"),)),
        Piece(0, "", "eos_token", 1, 3, calls=(CallPart(0, '":1}'),)),
    ]
    events: list[Any] = [event for piece in pieces for event in chunks.encode(piece)]
    deltas = [event["choices"][0]["delta"] for event in events]
    assert deltas[1:] == [
        {"reasoning_content": "Think"},
        {
            "tool_calls": [
                {
                    "index": 0,
                    "id": "c1",
                    "type": "function",
                    "function": {"name": "f", "arguments": '{"a'},
                }
            ]
        },
        {"tool_calls": [{"index": 0, "function": {"arguments": '":1}'}}]},
    ]
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(
    ("messages", "keys", "ignored"),
    [
        ([HELLO | {"id": "m1"}], {}, ("messages[].id",)),
        ([HELLO | {"id": None}, HELLO | {"annotations": []}], {}, ()),
        (
            [{"role": "assistant", "content": "a", "provider_specific_fields": {"x": None}}] * 2,
            {},
            ("messages[].provider_specific_fields",),
        ),
        (
            [{"role": "assistant", "content": "", "thinking_blocks": [], "reasoning_details": [1]}],
            {"x": 1},
            ("x", "messages[].thinking_blocks", "messages[].reasoning_details"),
        ),
        (
            [{"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {}}]}],
            {},
            ("messages[].content[].cache_control",),
        ),
        ([HELLO], {"tools": [tool(returns={"type": "null"})]}, ("tools[].function.returns",)),
        ([HELLO], {"structured_outputs": {"regex": "a", "backend": "xgrammar"}}, ()),
    ],
)
def test_keys_that_other_servers_add_are_ignored(
    messages: list[Any], keys: dict[str, Any], ignored: tuple[str, ...]
) -> None:
    call = decode_chat({"messages": messages, **keys})
    assert call.ignored == ignored
    text = call.request.prompts[0].text
    assert isinstance(text, Conversation)
    assert all(each["function"].keys() <= {"name"} for each in text.tools)
    assert not any(message.extra for message in text.messages)


# --- large numbers and deep values ---


@pytest.mark.parametrize(
    "keys",
    [
        {"tools": [tool(parameters={"maximum": 2**64})]},
        {"tools": [tool(parameters={"maximum": 2**64})], "tool_choice": "required"},
        {"chat_template_kwargs": {"a": -(2**80)}},
    ],
)
def test_integers_may_have_more_than_64_bits(keys: dict[str, Any]) -> None:
    assert decoded(**keys).size


@pytest.mark.parametrize("levels", [300, 900, 1010])
@pytest.mark.parametrize(
    "keys",
    [
        '"tools": [{"type": "function", "function": {"name": "f", "parameters": DEEP}}]',
        '"tool_choice": "required", "tools": [{"type": "function", "function": {"name": "f", '
        '"parameters": DEEP}}]',
        '"guided_json": DEEP',
        '"chat_template_kwargs": DEEP',
        '"structured_outputs": {"json": DEEP}',
        '"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": DEEP}}',
    ],
)
def test_values_that_are_nested_too_deeply_are_refused(keys: str, levels: int) -> None:
    deep = '{"a": ' * levels + "{}" + "}" * levels
    body = '{"model": "m", "messages": [{"role": "user", "content": "a"}], ' + keys + "}"
    _, call = decode_body(body.replace("DEEP", deep).encode(), decode_chat)
    assert isinstance(call, RequestError)
    assert "nested too deeply" in str(call)


def test_a_schema_as_text_is_refused_if_it_is_nested_too_deeply() -> None:
    with pytest.raises(RequestError, match="nested too deeply"):
        decoded(guided_json=DEEP)
