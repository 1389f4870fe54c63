"""OpenAI's responses: items in, items out, and a stream's events, by the client's own types."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import openai
import pydantic
import pytest
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import Response, ResponseStreamEvent, response_create_params

from predictor.errors import EngineBroken, RequestError
from predictor.protocol.http.json_body import dump_json
from predictor.protocol.openai.responses.events import ResponseEvents, ResponseForm
from predictor.protocol.openai.responses.output import Envelope
from predictor.protocol.openai.responses.request import IGNORED, KEYS, REFUSED, decode_response
from predictor.tasks.answers import Completion, Piece, ScoredToken
from predictor.tasks.request import Conversation, ForcedCalls
from predictor.tasks.tool_calls import CallPart, ToolCall
from tests.protocol.stub import Served

EVENTS: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(ResponseStreamEvent)
FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object"}}
SEARCH = {"type": "web_search"}
LOGPROBS = "message.output_text.logprobs"


def conversation(given: Any = "a", **keys: Any) -> Conversation:
    text = decode_response({"input": given, **keys}).request.prompts[0].text
    assert isinstance(text, Conversation)
    return text


def turns(given: Any, **keys: Any) -> list[dict[str, Any]]:
    messages = conversation(given, **keys).messages
    return [{"role": each.role, "content": each.content, **each.extra} for each in messages]


def message(role: str, content: Any) -> dict[str, Any]:
    return {"type": "message", "role": role, "content": content}


def call_item(name: str = "f", identity: str = "c1", **keys: Any) -> dict[str, Any]:
    arguments = keys.pop("arguments", '{"x": 1}')
    return {"type": "function_call", "call_id": identity, "name": name, "arguments": arguments}


def template_call(name: str, identity: str) -> dict[str, Any]:
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": {"x": 1}}}


# --- requests ---


def test_an_input_is_a_text_or_messages() -> None:
    assert turns("a") == [{"role": "user", "content": "a"}]
    parts = [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]
    given = [{"role": "user", "content": parts}, message("assistant", "c"), message("user", "d")]
    assert turns(given) == [
        {"role": "user", "content": "ab"},
        {"role": "assistant", "content": "c"},
        {"role": "user", "content": "d"},
    ]


def test_instructions_and_leading_messages_of_the_system_are_one_message() -> None:
    given = [message("developer", "b"), message("user", "c"), message("system", "d")]
    assert turns(given, instructions="a") == [
        {"role": "system", "content": "a\n\nb"},
        {"role": "user", "content": "c"},
        {"role": "system", "content": "d"},
    ]


def test_what_an_assistant_thinks_writes_and_calls_in_a_row_is_one_message() -> None:
    reasoning = {
        "type": "reasoning",
        "id": "rs_1",
        "summary": [{"type": "summary_text", "text": "-"}],
        "content": [{"type": "reasoning_text", "text": "hm"}],
        "encrypted_content": None,
    }
    text = message("assistant", [{"type": "output_text", "text": "b", "annotations": []}])
    output = {"type": "function_call_output", "call_id": "c2", "output": "5"}
    given = [message("user", "a"), reasoning, text, call_item(), call_item("g", "c2"), output, text]
    assert turns(given) == [
        {"role": "user", "content": "a"},
        {
            "role": "assistant",
            "content": "b",
            "reasoning_content": "hm",
            "tool_calls": [template_call("f", "c1"), template_call("g", "c2")],
        },
        {"role": "tool", "content": "5", "tool_call_id": "c2", "name": "g"},
        {"role": "assistant", "content": "b"},
    ]


def test_reasoning_that_is_encrypted_or_summed_up_leaves_no_turn() -> None:
    sealed = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"}
    assert turns([message("user", "a"), sealed]) == [{"role": "user", "content": "a"}]


@pytest.mark.parametrize(
    ("keys", "forced", "names"),
    [
        ({}, None, []),
        ({"tools": [FUNCTION]}, None, ["f"]),
        ({"tools": [FUNCTION], "tool_choice": "none"}, None, []),
        ({"tools": [FUNCTION], "tool_choice": "required"}, ForcedCalls(), ["f"]),
        (
            {"tools": [FUNCTION], "tool_choice": {"type": "function", "name": "f"}},
            ForcedCalls("f"),
            ["f"],
        ),
        ({"tools": [SEARCH], "tool_choice": "auto"}, None, []),
        (
            {
                "tools": [FUNCTION, {**FUNCTION, "name": "g"}],
                "tool_choice": {
                    "type": "allowed_tools",
                    "mode": "required",
                    "tools": [{"type": "function", "name": "g"}],
                },
            },
            ForcedCalls(),
            ["g"],
        ),
    ],
)
def test_functions_are_offered_by_choice(keys: Any, forced: Any, names: list[str]) -> None:
    result = conversation(**keys)
    assert result.forced == forced
    assert [tool["function"]["name"] for tool in result.tools] == names


def test_tools_that_are_no_functions_are_left_out_and_named() -> None:
    call = decode_response({"input": "a", "tools": [SEARCH, FUNCTION, SEARCH], "strange": 1})
    assert call.ignored == ("strange", "tools[] of type web_search")


def test_a_format_is_the_grammar_of_the_reply() -> None:
    schema = {"type": "object"}
    form = {"type": "json_schema", "name": "n", "schema": schema, "strict": True}
    call = decode_response({"input": "a", "text": {"format": form, "verbosity": "low"}})
    grammar = call.request.prompts[0].parameters.grammar
    assert grammar is not None
    assert json.loads(grammar.text) == schema
    assert not grammar.is_lenient


def test_parameters_have_their_names_here() -> None:
    call = decode_response(
        {
            "input": "a",
            "max_output_tokens": 5,
            "temperature": 0.5,
            "top_k": 3,
            "include": [LOGPROBS, "reasoning.encrypted_content"],
            "top_logprobs": 2,
            "reasoning": {"effort": "none", "summary": "auto"},
            "stream": True,
        }
    )
    (prompt,) = call.request.prompts
    assert prompt.parameters.max_new_tokens == 5
    assert (prompt.parameters.temperature, prompt.parameters.top_k) == (0.5, 3)
    assert prompt.parameters.logprobs == 2
    assert isinstance(prompt.text, Conversation)
    options = {"reasoning_effort": "none", "enable_thinking": False}
    assert prompt.text.template_options == options
    assert call.stream


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({}, "The body has no 'input'."),
        ({"input": []}, "input is empty; give at least one item."),
        ({"input": 5}, "input must be a string or a list, not an integer."),
        ({"input": [5]}, "input[0] must be an object, not an integer."),
        ({"input": [{"content": "a"}]}, "input[0] has no 'role'."),
        ({"input": [message("tool", "a")]}, "input[0].role must be one of system,"),
        ({"input": [{"role": "user"}]}, "input[0] has no 'content'."),
        (
            {"input": [message("user", [{"type": "input_image", "image_url": "x"}])]},
            "input[0].content[0] is of type 'input_image'; only 'input_text' and",
        ),
        ({"input": [{"type": "computer_call"}]}, "input[0] is of type 'computer_call'; only"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0] names an item of another"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input[0].call_id must be a string"),
        ({"input": [call_item(arguments=5)]}, "input[0].arguments must be a string, not an"),
        ({"input": "a", "previous_response_id": "x"}, "previous_response_id is not supported: no"),
        ({"input": "a", "conversation": "x"}, "conversation is not supported: no response is"),
        ({"input": "a", "background": True}, "background is not supported: a response"),
        ({"input": "a", "tools": [{"name": "f"}]}, "tools[0].type must be a string, not null."),
        ({"input": "a", "tools": [{"type": "function"}]}, "tools[0].name must be a string"),
        ({"input": "a", "tools": [FUNCTION] * 2}, "tools has two functions of the name 'f'."),
        ({"input": "a", "tools": [SEARCH], "tool_choice": "required"}, "tool_choice needs tools"),
        ({"input": "a", "tool_choice": "some"}, "tool_choice must be one of none, auto, required"),
        ({"input": "a", "tool_choice": SEARCH}, "tool_choice.type must be 'function' or 'allowed"),
        ({"input": "a", "text": {"format": {"type": "x"}}}, "text.format.type must be one of"),
        (
            {"input": "a", "text": {"format": {"type": "json_schema", "schema": 5}}},
            "text.format.schema must be a JSON schema",
        ),
        ({"input": "a", "max_output_tokens": 0}, "max_output_tokens must be between 1 and"),
        ({"input": "a", "reasoning": {"effort": "huge"}}, "reasoning.effort must be one of"),
        ({"input": "a", "include": [5]}, "include[0] must be a string, not an integer."),
        ({"input": "a", "instructions": 5}, "instructions must be a string, not an integer."),
    ],
)
def test_what_is_wrong_is_named(body: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RequestError) as refused:
        decode_response(body)
    assert str(refused.value).startswith(sentence)


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, json.loads("[" * 252 + "]" * 252)])
def test_what_no_answer_can_repeat_is_refused_before_it_is_generated(value: Any) -> None:
    schema = {"type": "object", "x": value}
    for key, given in {
        "metadata": {"a": value},
        "user": value,
        "text": {"verbosity": value},
        "tools": [{**FUNCTION, "parameters": schema}],
    }.items():
        with pytest.raises(RequestError, match=f"{key} cannot be repeated in the answer"):
            decode_response({"input": "a", key: given})


def test_the_deepest_value_that_is_accepted_can_be_answered() -> None:
    for levels in range(255):
        body = {"input": "a", "metadata": json.loads("[" * levels + "]" * levels or "{}")}
        try:
            call = decode_response(body)
        except RequestError:
            break
    assert levels > 200
    call = decode_response({"input": "a", "metadata": json.loads("[" * 200 + "]" * 200)})
    for event in ResponseEvents(Envelope.new(call, "m")).opening():
        dump_json(event.data)


def test_the_event_of_an_error_can_always_be_written() -> None:
    call = replace(decode_response({"input": "a"}), echo={"metadata": 2**64})
    failed = ResponseEvents(Envelope.new(call, "m")).error(500, "It broke.")
    dump_json(failed.data)
    assert EVENTS.validate_python(failed.data).response.tools == []


def test_each_key_of_openais_client_is_in_one_table() -> None:
    keys = response_create_params.ResponseCreateParamsBase.__annotations__
    tables = (set(KEYS), set(REFUSED), set(IGNORED))
    assert keys.keys() | {"stream"} <= set().union(*tables)
    assert sum(map(len, tables)) == len(set().union(*tables))


def test_a_long_conversation_takes_linear_time() -> None:
    many = 20_000
    given = [call_item(identity=f"c{number}") for number in range(many)]
    given += [message("system", "a")] * many
    assert len(turns(given)) == many + 1


# --- responses ---


def envelope(**keys: Any) -> Envelope:
    return Envelope.new(decode_response({"input": "a", **keys}), "m")


def whole(completion: Completion, **keys: Any) -> Response:
    call = decode_response({"input": "a", "tools": [FUNCTION], **keys})
    document = ResponseForm().whole(call, "m", [completion])
    return Response.model_validate(json.loads(json.dumps(document)), strict=False)


CALLS = (ToolCall("c1", "f", "{}"), ToolCall("c2", "g", '{"x": 1}'))
TOKEN = ScoredToken(1, "b", -0.5, top=(("b", -0.5), ("c", -1.5)))


def test_a_reply_is_reasoning_a_message_and_calls() -> None:
    completion = Completion("b", "eos_token", 7, 5, (TOKEN,), "hm", CALLS, 3, 2)
    response = whole(completion, metadata={"k": "v"}, instructions="be", temperature=0.5)
    assert response.status == "completed"
    kinds = [item.type for item in response.output]
    assert kinds == ["reasoning", "message", "function_call", "function_call"]
    reasoning, text, first, second = response.output
    assert reasoning.content[0].text == "hm"  # type: ignore[union-attr]
    assert response.output_text == "b"
    assert text.content[0].logprobs[0].top_logprobs[1].token == "c"  # type: ignore[union-attr]
    assert (first.call_id, first.name, first.arguments) == ("c1", "f", "{}")  # type: ignore[union-attr]
    assert second.call_id == "c2"  # type: ignore[union-attr]
    assert response.usage is not None
    usage = response.usage
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (7, 5, 12)
    assert usage.input_tokens_details.cached_tokens == 3
    assert usage.output_tokens_details.reasoning_tokens == 2
    assert (response.metadata, response.instructions) == ({"k": "v"}, "be")


def test_a_reply_that_is_cut_is_incomplete() -> None:
    response = whole(Completion("b", "length", 1, 1, reasoning="hm"))
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert [item.status for item in response.output] == ["completed", "incomplete"]  # type: ignore[union-attr]


def test_a_reply_of_nothing_is_an_empty_message() -> None:
    assert [item.type for item in whole(Completion("", "eos_token", 1, 1)).output] == ["message"]


# --- streams ---

PIECES = [
    Piece(0, "", None, 7, 1, reasoning="h"),
    Piece(0, "", None, 7, 2, reasoning="m"),
    Piece(0, "b", None, 7, 3, (TOKEN,)),
    Piece(0, "b", None, 7, 4),
    Piece(0, "", None, 7, 5, calls=(CallPart(0, '{"x"', "c1", "f"),)),
    Piece(0, "", None, 7, 6, calls=(CallPart(0, ": 1}"), CallPart(1, "", "c2", "g"))),
    Piece(0, "", "eos_token", 7, 7, calls=(CallPart(1, "{}"),), cached_tokens=3),
]


def streamed(pieces: list[Piece], **keys: Any) -> list[Any]:
    events = ResponseEvents(envelope(**keys))
    named = [*events.opening(), *(event for piece in pieces for event in events.encode(piece))]
    documents = [json.loads(json.dumps(event.data)) for event in named]
    assert [event.name for event in named] == [document["type"] for document in documents]
    assert [document["sequence_number"] for document in documents] == list(range(len(named)))
    return [EVENTS.validate_python(document) for document in documents]


def test_the_events_of_a_stream_have_openais_order() -> None:
    names = [event.type.removeprefix("response.") for event in streamed(PIECES)]
    assert names == [
        "created",
        "in_progress",
        *("output_item.added", "content_part.added"),
        *("reasoning_text.delta", "reasoning_text.delta", "reasoning_text.done"),
        *("content_part.done", "output_item.done"),
        *("output_item.added", "content_part.added"),
        *("output_text.delta", "output_text.delta", "output_text.done"),
        *("content_part.done", "output_item.done"),
        *("output_item.added", "function_call_arguments.delta", "function_call_arguments.delta"),
        *("function_call_arguments.done", "output_item.done"),
        *("output_item.added", "function_call_arguments.delta"),
        *("function_call_arguments.done", "output_item.done"),
        "completed",
    ]


def test_openais_helper_puts_a_stream_together() -> None:
    state: ResponseStreamState[Any] = ResponseStreamState(input_tools=[], text_format=openai.omit)
    for event in streamed(PIECES):
        state.handle_event(event)
    response = state._completed_response
    assert response is not None
    assert response.output_text == "bb"
    calls = [item for item in response.output if item.type == "function_call"]
    assert [(call.call_id, call.arguments) for call in calls] == [("c1", '{"x": 1}'), ("c2", "{}")]


def test_a_stream_ends_with_what_the_whole_reply_would_be() -> None:
    *_, last = streamed(PIECES)
    completion = Completion(
        "bb",
        "eos_token",
        7,
        7,
        (TOKEN,),
        "hm",
        (ToolCall("c1", "f", '{"x": 1}'), ToolCall("c2", "g", "{}")),
        3,
    )
    expected = whole(completion, tools=[])
    for response in (last.response, expected):
        response.id, response.completed_at, response.created_at = "", None, 0
        for item in response.output:
            item.id = ""
    assert last.response == expected


def test_a_stream_that_is_cut_ends_incomplete() -> None:
    *_, item, last = streamed([Piece(0, "b", None, 1, 1), Piece(0, "c", "length", 1, 2)])
    assert (item.item.status, last.type) == ("incomplete", "response.incomplete")
    assert last.response.output_text == "bc"


def test_of_a_stream_that_is_cut_the_last_item_alone_is_incomplete() -> None:
    last = Piece(0, "b", "length", 1, 2, calls=(CallPart(0, "{", "c1", "f"),))
    *_, end = streamed([last])
    assert [item.status for item in end.response.output] == ["completed", "incomplete"]


def test_an_error_in_a_stream_is_a_failed_response() -> None:
    events = ResponseEvents(envelope())
    list(events.opening())
    failed = EVENTS.validate_python(events.error(500, "It broke.").data)
    assert (failed.type, failed.response.error.message) == ("response.failed", "It broke.")


# --- the route ---


@pytest.fixture(params=["/openai/v1", "/v1"])
def asking(served: Served, request: Any) -> Iterator[openai.OpenAI]:
    url = f"{served.url}{request.param}"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=30) as client:
        yield client


def test_openais_client_is_answered(asking: openai.OpenAI) -> None:
    response = asking.responses.create(model="echo", input="a")
    assert response.output_text == "USER: A"
    with asking.responses.stream(model="echo", input="a") as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        assert stream.get_final_response().output_text == "USER: A"
    assert deltas == list("USER: A")


def test_openais_client_is_refused_in_openais_form(asking: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="no response is stored"):
        asking.responses.create(model="echo", input="a", previous_response_id="resp_1")
    with pytest.raises(openai.NotFoundError):
        asking.responses.create(model="nobody", input="a")


def test_a_failure_in_a_stream_reaches_openais_client(
    served: Served, asking: openai.OpenAI
) -> None:
    served.model.late_failure = EngineBroken("It broke.")
    try:
        *_, last = asking.responses.create(model="echo", input="a", stream=True)
    finally:
        served.model.late_failure = None
    assert last.type == "response.failed"
    assert last.response.error is not None
    assert last.response.error.message == "It broke."


def test_events_have_their_names(client: httpx.Client) -> None:
    body = {"model": "echo", "input": "a", "stream": True}
    text = client.post("/v1/responses", json=body).text
    assert text.startswith('event: response.created\ndata: {"type":"response.created"')
