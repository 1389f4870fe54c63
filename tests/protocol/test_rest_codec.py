from __future__ import annotations

import contextlib
import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictor.errors import RequestError
from predictor.protocol.kserve.decoded_call import decode_call
from predictor.protocol.kserve.rest_codec import (
    LENGTH_HEADER,
    BinaryOutputs,
    Encoded,
    encode_infer_response,
)
from predictor.tasks.answers import Completion
from tests.protocol.transports import parsed

_TEXT = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}
_BINARY = {
    "name": "text",
    "shape": [1],
    "datatype": "BYTES",
    "parameters": {"binary_data_size": 5},
}
_RAW = b"\x01\0\0\0a"


def changed(**keys: Any) -> dict[str, Any]:
    return {"inputs": [{**_TEXT, **keys}]}


def without(key: str) -> dict[str, Any]:
    return {"inputs": [{name: value for name, value in _TEXT.items() if name != key}]}


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        (b"{", "The body is not valid JSON at line 1, column 2."),
        (b"[]", "The body must be an object, not a list."),
        ({}, "The body has no 'inputs'."),
        ({"inputs": {}}, "inputs must be a list, not an object."),
        ({"inputs": None}, "inputs must be a list, not null."),
        ({"inputs": ["a"]}, "inputs[0] must be an object, not a string."),
        (without("name"), "inputs[0] has no 'name'."),
        (without("shape"), "inputs[0] has no 'shape'."),
        (without("datatype"), "inputs[0] has no 'datatype'."),
        (without("data"), "inputs[0] has no 'data'."),
        (changed(name=1), "inputs[0].name must be a string, not an integer."),
        (changed(shape=1), "inputs[0].shape must be a list, not an integer."),
        (changed(datatype=None), "inputs[0].datatype must be a string, not null."),
        (changed(data="a"), "inputs[0].data must be a list, not a string."),
        (changed(parameters=[]), "inputs[0].parameters must be an object, not a list."),
        ({**changed(), "id": 3}, "id must be a string, not an integer."),
        ({**changed(), "id": None}, "id must be a string, not null."),
        ({**changed(), "parameters": None}, "parameters must be an object, not null."),
        ({**changed(), "outputs": {}}, "outputs must be a list, not an object."),
        ({**changed(), "outputs": ["text"]}, "outputs[0] must be an object, not a string."),
        ({**changed(), "outputs": [{}]}, "outputs[0] has no 'name'."),
        ({**changed(), "outputs": [{"name": 1}]}, "outputs[0].name must be a string, not an"),
        (
            {**changed(), "outputs": [{"name": "text", "parameters": {"binary_data": 1}}]},
            "outputs[0].parameters.binary_data must be a boolean, not an integer.",
        ),
        (
            {**changed(), "parameters": {"binary_data_output": "yes"}},
            "parameters.binary_data_output must be a boolean, not a string.",
        ),
    ],
)
def test_a_body_that_is_no_request_is_refused_in_one_sentence(document: Any, sentence: str) -> None:
    with pytest.raises(RequestError) as refusal:
        parsed(document)
    assert str(refusal.value).startswith(sentence)


@pytest.mark.parametrize(
    ("tensor", "tail", "header", "sentence"),
    [
        (_BINARY, _RAW, "x", f"The header {LENGTH_HEADER} must be a whole number."),
        (_BINARY, _RAW, "-1", f"The header {LENGTH_HEADER} must be a whole number."),
        (_BINARY, _RAW, "٣", f"The header {LENGTH_HEADER} must be a whole number."),
        (_BINARY, _RAW, "9" * 30, f"The header {LENGTH_HEADER} must be a whole number."),
        (_BINARY, _RAW, "999", f"The header {LENGTH_HEADER} is 999; the body has "),
        (_BINARY, _RAW + b"x", None, "The inputs need 5 bytes of binary data; there are 6."),
        (_BINARY, _RAW[:-1], None, "The inputs need 5 bytes of binary data; there are 4."),
        (_BINARY, b"", None, f"A request with binary data needs the header {LENGTH_HEADER}."),
        (
            {**_BINARY, "data": ["a"]},
            _RAW,
            None,
            "inputs[0] has both 'data' and 'binary_data_size'",
        ),
        (
            {**_BINARY, "parameters": {"binary_data_size": "5"}},
            _RAW,
            None,
            "inputs[0]'s binary_data_size must be an integer, not a string.",
        ),
        (
            {**_BINARY, "parameters": {"binary_data_size": -5}},
            _RAW,
            None,
            "inputs[0]'s binary_data_size is below 0.",
        ),
        (_TEXT, _RAW, None, "The inputs need 0 bytes of binary data; there are 5."),
    ],
)
def test_wrong_binary_data_are_refused_in_one_sentence(
    tensor: Any, tail: bytes, header: str | None, sentence: str
) -> None:
    with pytest.raises(RequestError) as refusal:
        parsed({"inputs": [tensor]}, tail, header)
    assert str(refusal.value).startswith(sentence)


def test_binary_and_json_tensors_may_be_mixed() -> None:
    top_k = {"name": "top_k", "shape": [1], "datatype": "INT32", "data": [3]}
    seed = {"name": "seed", "shape": [1], "datatype": "INT64"}
    seed["parameters"] = {"binary_data_size": 8}
    request = parsed({"inputs": [_BINARY, top_k, seed]}, _RAW + struct.pack("<q", 9))
    (prompt,) = decode_call(request, model_name="m", model_version="1").request.prompts
    assert (prompt.text, prompt.parameters.top_k, prompt.parameters.seed) == ("a", 3, 9)


def encoded(**keys: Any) -> Encoded:
    request = parsed({"id": "i", "inputs": [_TEXT], **keys})
    exchange = decode_call(request, model_name="m", model_version="1")
    response = exchange.encode([Completion("é", "eos_token", 1, 2)])
    return encode_infer_response(response, BinaryOutputs.of(request))


def test_a_response_is_json_without_null() -> None:
    answer = encoded()
    assert answer.headers == {"Content-Type": "application/json"}
    document = json.loads(answer.body)
    assert document["outputs"][0] == {
        "name": "text",
        "datatype": "BYTES",
        "shape": [1],
        "data": ["é"],
    }
    assert b"null" not in answer.body


def test_a_response_is_binary_where_the_request_says_so() -> None:
    answer = encoded(parameters={"binary_data_output": True})
    end = int(answer.headers[LENGTH_HEADER])
    assert answer.headers["Content-Type"] == "application/octet-stream"
    first, *_, last = json.loads(answer.body[:end])["outputs"]
    assert first["parameters"] == {"binary_data_size": 6}
    assert "data" not in first
    assert last["name"] == "completion_tokens"
    assert answer.body[end:] == b"\x02\0\0\0\xc3\xa9\x04\0\0\0stop\x01\0\0\0\x02\0\0\0"


@pytest.mark.parametrize("usual", [True, False])
def test_an_outputs_own_wish_overrides_the_requests(usual: bool) -> None:
    outputs = [
        {"name": "text", "parameters": {"binary_data": not usual}},
        {"name": "prompt_tokens"},
    ]
    answer = encoded(parameters={"binary_data_output": usual}, outputs=outputs)
    text, tokens = json.loads(answer.body[: int(answer.headers[LENGTH_HEADER])])["outputs"]
    assert ("data" in text, "data" in tokens) == (usual, not usual)


_ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 300)
    | st.floats(allow_nan=False)
    | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
_INPUT = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["text", "stop", "top_k"]) | _ANYTHING,
        "shape": st.lists(st.integers(-1, 3), max_size=2) | _ANYTHING,
        "datatype": st.sampled_from(["BYTES", "INT32", "FP16", "BOOL"]) | _ANYTHING,
        "data": st.lists(st.text(max_size=2), max_size=3) | _ANYTHING,
        "parameters": st.dictionaries(
            st.sampled_from(["binary_data_size", "top_k", "x"]), st.integers(-1, 9)
        )
        | _ANYTHING,
    },
)
_BODY = st.fixed_dictionaries(
    {"inputs": st.lists(_INPUT, max_size=3) | _ANYTHING},
    optional={
        "id": st.text() | _ANYTHING,
        "parameters": st.dictionaries(
            st.sampled_from(["binary_data_output", "stop", "seed", "top_p"]), _ANYTHING
        )
        | _ANYTHING,
        "outputs": st.lists(st.fixed_dictionaries({"name": _ANYTHING})) | _ANYTHING,
    },
)


@given(_BODY | _ANYTHING, st.binary(max_size=12))
def test_any_body_is_a_request_or_refused(document: Any, tail: bytes) -> None:
    with contextlib.suppress(RequestError):
        request = parsed(json.dumps(document).encode(), tail)
        exchange = decode_call(request, model_name="m", model_version="1")
        completions = [Completion("", "eos_token", 0, 0) for _ in exchange.request.prompts]
        response = exchange.encode(completions)
        json.loads(encode_infer_response(response, BinaryOutputs.of(request)).body)
