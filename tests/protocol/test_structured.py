"""OpenAI's and vLLM's keys for the form of a reply."""

from __future__ import annotations

from typing import Any

import pytest

from predictor.errors import RequestError
from predictor.protocol.openai.request import decode_chat, decode_completion
from predictor.protocol.openai.responses.request import decode_response
from predictor.tasks.request import Grammar

ANY_OBJECT = Grammar("json_schema", '{"type": "object"}')
SCHEMA = {"type": "integer"}
INTEGER = Grammar("json_schema", '{"type": "integer"}')


def format_of(**schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "n", **schema}}}


@pytest.mark.parametrize(
    ("keys", "grammar"),
    [
        ({}, None),
        ({"response_format": None, "guided_json": None}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, ANY_OBJECT),
        (format_of(schema=SCHEMA), INTEGER),
        (format_of(schema=SCHEMA, strict=True, description="d"), INTEGER),
        (
            format_of(schema=SCHEMA, strict=False),
            Grammar("json_schema", '{"type": "integer"}', is_lenient=True),
        ),
        ({"guided_json": SCHEMA}, INTEGER),
        ({"guided_json": '{"type": "integer"}'}, INTEGER),
        ({"guided_regex": "a+", "guided_decoding_backend": "x"}, Grammar("regex", "a+")),
        ({"guided_choice": ["a", "b"]}, Grammar("choice", '["a", "b"]')),
        ({"guided_grammar": "root ::= x"}, Grammar("grammar", "root ::= x")),
        ({"structured_outputs": {}}, None),
        ({"structured_outputs": {"json": SCHEMA}}, INTEGER),
        ({"structured_outputs": {"regex": "a", "choice": None}}, Grammar("regex", "a")),
        ({"structured_outputs": {"json_object": True}}, ANY_OBJECT),
        ({"response_format": {"type": "text"}, "guided_regex": "a"}, Grammar("regex", "a")),
    ],
)
def test_a_form_has_several_spellings(keys: dict[str, Any], grammar: Grammar | None) -> None:
    chat = decode_chat({"messages": [{"role": "user", "content": "a"}], **keys})
    completion = decode_completion({"prompt": "a", **keys})
    for call in (chat, completion):
        assert call.request.prompts[0].parameters.grammar == grammar


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        (
            {"response_format": {"type": "xml"}},
            "response_format.type must be one of text, json_object, json_schema, not 'xml'.",
        ),
        ({"response_format": "json"}, "response_format must be an object, not a string."),
        ({"response_format": {}}, "response_format.type must be a string, not null."),
        (
            {"response_format": {"type": "json_schema"}},
            "response_format.json_schema must be an object, not null.",
        ),
        (
            format_of(),
            "response_format.json_schema.schema must be a JSON schema, which is an object.",
        ),
        (
            format_of(schema=SCHEMA, strict="yes"),
            "response_format.json_schema.strict must be a boolean, not a string.",
        ),
        ({"guided_json": [SCHEMA]}, "guided_json must be a JSON schema, which is an object."),
        ({"guided_json": "{"}, "guided_json is a text that is no JSON."),
        ({"guided_regex": ""}, "guided_regex is empty."),
        ({"guided_regex": 5}, "guided_regex must be a string, not an integer."),
        ({"guided_choice": []}, "guided_choice must be a list of strings, at least one."),
        ({"guided_choice": ["a", 1]}, "guided_choice must be a list of strings, at least one."),
        (
            {"guided_regex": "a", "guided_json": SCHEMA},
            "guided_json and guided_regex cannot be combined; give one of them.",
        ),
        (
            {"structured_outputs": {"regex": "a", "json": SCHEMA}},
            "structured_outputs takes one of json, regex, choice, grammar and json_object.",
        ),
        (
            {"structured_outputs": {"structural_tag": "{}"}},
            "structured_outputs.structural_tag is not supported; ",
        ),
    ],
)
def test_what_is_no_form_is_refused(keys: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RequestError) as refused:
        decode_completion({"prompt": "a", **keys})
    assert str(refused.value).startswith(sentence)


@pytest.mark.parametrize(
    ("keys", "ignored"),
    [
        (format_of(schema=SCHEMA, title="t"), "response_format.json_schema.title"),
        (
            {"response_format": {"type": "json_schema", "x": 1, "json_schema": {"schema": SCHEMA}}},
            "response_format.x",
        ),
        ({"response_format": {"type": "text", "json_schema": 5}}, None),
        ({"structured_outputs": {"json": SCHEMA, "x": 1}}, "structured_outputs.x"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
    ],
)
def test_other_keys_of_nested_objects_are_ignored_by_name(
    keys: dict[str, Any], ignored: str | None
) -> None:
    chat = decode_chat({"messages": [{"role": "user", "content": "a"}], **keys})
    for call in (chat, decode_completion({"prompt": "a", **keys})):
        assert call.ignored == (() if ignored is None else (ignored,))
    if ignored and "json" in str(keys):
        assert chat.request.prompts[0].parameters.grammar == INTEGER


def test_other_keys_of_the_format_of_a_response_are_ignored_by_name() -> None:
    form = {"type": "json_schema", "name": "n", "schema": SCHEMA, "x": 1, "y": None}
    call = decode_response({"input": "a", "text": {"format": form}})
    assert call.ignored == ("text.format.x",)
    assert call.request.prompts[0].parameters.grammar == INTEGER
