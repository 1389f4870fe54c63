"""Calls of functions as models write them."""

from __future__ import annotations

import json

import orjson

from predictor.tasks.tool_calls import as_json, name_and_arguments


def test_half_a_surrogate_pair_in_arguments_stays_an_escape() -> None:
    written = r'{"name": "f", "arguments": {"a": "\ud800", "b": "\u00e4\ud83d\ude00"}}'
    call = name_and_arguments(json.loads(written))
    assert call == ("f", '{"a": "\\ud800", "b": "ä😀"}')
    orjson.dumps(call)
    assert json.loads(call[1]) == json.loads(written)["arguments"]
    in_a_string = json.loads(r'{"name": "f", "arguments": "{\"a\": \"\ud800\"}"}')
    assert name_and_arguments(in_a_string) == ("f", '{"a": "\\ud800"}')


def test_other_objects_of_a_model_can_be_written_too() -> None:
    assert as_json({"a": "\udc00"}) == '{"a": "\\udc00"}'
