from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictor.errors import RequestError
from predictor.protocol.kserve.decoded_call import decode_call
from predictor.tasks.answers import Completion
from predictor.tasks.request import GenerationParameters, GenerationRequest, Prompt

_PLAIN = GenerationParameters()


def decoded(document: Any) -> GenerationRequest:
    return decode_call(document, model_name="m", model_version="1").request


def test_strings_and_objects_are_instances() -> None:
    document = {"instances": ["a", {"text": "b"}, {"prompt": "c"}, {"data": "d"}]}
    assert decoded(document).prompts == tuple(Prompt(text, _PLAIN) for text in "abcd")


def test_a_body_as_bytes_is_decoded_too() -> None:
    assert decoded(b'{"instances": ["a"]}') == decoded({"instances": ["a"]})


def test_an_instances_parameters_override_the_requests() -> None:
    document = {
        "instances": ["a", {"text": "b", "parameters": {"top_k": 2, "seed": None}}],
        "parameters": {"top_k": 1, "seed": 7},
    }
    first, second = decoded(document).prompts
    assert first.parameters == GenerationParameters(top_k=1, seed=7)
    assert second.parameters == GenerationParameters(top_k=2, seed=7)


def test_inputs_are_instances_and_nulls_are_absent() -> None:
    document = {
        "inputs": ["a", {"text": "b", "prompt": None, "parameters": None}],
        "instances": None,
    }
    assert decoded(document | {"parameters": None}) == decoded({"instances": ["a", "b"]})


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        ({}, "The body has no 'instances'."),
        ({"instances": []}, "instances is empty; give at least one prompt."),
        ({"instances": "a"}, "instances must be a list, not a string."),
        ({"instances": None}, "The body has no 'instances'."),
        ({"inputs": 3}, "inputs must be a list, not an integer."),
        ({"instances": ["a", 3]}, "instances[1] must be a string or an object, not an integer."),
        ({"instances": ["a"], "parameters": []}, "parameters must be an object, not a list."),
        (
            {"instances": ["a"], "paramters": {}},
            "Unknown key 'paramters' in the body; did you mean 'parameters'?",
        ),
        (
            {"instances": ["a"], "signature_name": "x"},
            "Unknown key 'signature_name' in the body; known are instances, inputs, parameters.",
        ),
        (
            {"instances": [{"txt": "a"}]},
            "Unknown key 'txt' in instances[0]; did you mean 'text'?",
        ),
        ({"instances": [{}]}, "instances[0] needs one of text, prompt, data, body; it has none."),
        (
            {"instances": [{"text": "a", "data": "b"}]},
            "instances[0] needs one of text, prompt, data, body; it has text and data.",
        ),
        ({"instances": [{"text": 1}]}, "instances[0].text must be a string, not an integer."),
        (
            {"instances": ["a"], "parameters": {"top_p": 2}},
            "top_p must be above 0 and at most 1, not 2.",
        ),
        (
            {"instances": ["a", {"text": "b", "parameters": {"top_k": -2}}]},
            "instances[1]: top_k must be between 0 and 2147483647.",
        ),
    ],
)
def test_a_wrong_body_is_refused_in_one_sentence(document: Any, sentence: str) -> None:
    with pytest.raises(RequestError) as refusal:
        decoded(document)
    assert str(refusal.value) == sentence


def test_predictions_come_in_the_order_of_the_instances() -> None:
    exchange = decode_call({"instances": ["a", "b"]}, model_name="m", model_version="1")
    answer = exchange.encode([Completion("A", "eos_token", 1, 2), Completion("B", "length", 3, 4)])
    assert answer == {
        "predictions": [
            {"text": "A", "finish_reason": "stop", "prompt_tokens": 1, "completion_tokens": 2},
            {"text": "B", "finish_reason": "length", "prompt_tokens": 3, "completion_tokens": 4},
        ]
    }


_ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["instances", "parameters", "text", "prompt", "data", "stop", "top_k"])
            | st.text(max_size=4),
            inner,
            max_size=4,
        )
    ),
    max_leaves=16,
)


@given(_ANYTHING)
def test_any_json_value_is_a_request_or_refused(value: Any) -> None:
    with contextlib.suppress(RequestError):
        assert decoded(json.dumps(value).encode()).prompts


@given(st.fixed_dictionaries({"instances": _ANYTHING}, optional={"parameters": _ANYTHING}))
def test_any_instances_are_a_request_or_refused(document: Any) -> None:
    with contextlib.suppress(RequestError):
        assert decoded(document).prompts
