from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictor.errors import RequestError
from predictor.protocol.kserve import v2
from predictor.protocol.kserve.decoded_call import decode_call
from predictor.tasks.answers import Completion
from predictor.tasks.generation_spec import GenerationSpec
from predictor.tasks.request import GenerationParameters, GenerationRequest, Prompt
from tests.protocol.transports import (
    ALL,
    Tensor,
    as_grpc_contents,
    as_grpc_raw,
    as_json,
    parsed,
    single_precision,
)

Transport = Callable[[list[Tensor], dict[str, Any]], Any]

_TEXT = Tensor("text", "BYTES", ["a", "b"])


def decoded(
    tensors: list[Tensor], parameters: dict[str, Any] | None = None, way: Transport = as_json
) -> GenerationRequest:
    request = way(tensors, parameters or {})
    return decode_call(request, model_name="m", model_version="1").request


def parameters_of(*args: Any, **kwargs: Any) -> list[GenerationParameters]:
    return [prompt.parameters for prompt in decoded(*args, **kwargs).prompts]


@pytest.mark.parametrize("way", ALL)
@pytest.mark.parametrize("name", ["text", "input-0"])
def test_the_one_bytes_input_is_the_prompt_whatever_its_name(way: Transport, name: str) -> None:
    request = decoded([Tensor(name, "BYTES", ["a", "ü"])], way=way)
    assert request == GenerationRequest(
        tuple(Prompt(text, GenerationParameters()) for text in ("a", "ü"))
    )


@pytest.mark.parametrize("way", ALL)
def test_every_parameter_may_be_a_parameter_of_the_request(way: Transport) -> None:
    given_ = {
        "max_new_tokens": 5,
        "temperature": 0.7,
        "top_p": 1,
        "top_k": 3,
        "repetition_penalty": 1.5,
        "seed": 2**40,
        "stop": ["x", "y"],
        "return_full_text": True,
        "presence_penalty": 0.5,
        "frequency_penalty": -1.5,
        "timeout": 2.5,
        "binary_data_output": False,
    }
    expected = GenerationParameters(
        5, 0.7, 1.0, 3, 1.5, 2**40, ("x", "y"), True, 0.5, -1.5, timeout=2.5
    )
    assert parameters_of([_TEXT], given_, way) == [expected, expected]


@pytest.mark.parametrize("way", ALL)
def test_every_parameter_may_be_an_input(way: Transport) -> None:
    tensors = [
        Tensor("max_new_tokens", "INT32", [5, 6]),
        _TEXT,
        Tensor("temperature", "FP32", [0.5]),
        Tensor("top_p", "FP64", [0.9]),
        Tensor("seed", "INT64", [1, 2]),
        Tensor("stop", "BYTES", ["x", "y"]),
        Tensor("return_full_text", "BOOL", [True]),
    ]
    first, second = parameters_of(tensors, way=way)
    assert first == GenerationParameters(5, 0.5, 0.9, None, None, 1, ("x", "y"), True)
    assert second == GenerationParameters(6, 0.5, 0.9, None, None, 2, ("x", "y"), True)


@pytest.mark.parametrize(
    ("name", "given", "meant"),
    [
        ("temperature", "0.7", 0.7),
        ("temperature", "1e-1", 0.1),
        ("top_p", "1", 1.0),
        ("stop", "END", ("END",)),
        ("stop", '["a", "b"]', ("a", "b")),
        ("stop", "[", ("[",)),
        ("stop", "[1]", ("[1]",)),
        ("stop", "3", ("3",)),
    ],
)
@pytest.mark.parametrize("way", [as_json, as_grpc_contents])
def test_a_string_stands_for_what_a_parameter_cannot_be(
    name: str, given: str, meant: Any, way: Transport
) -> None:
    assert getattr(parameters_of([_TEXT], {name: given}, way)[0], name) == meant


@pytest.mark.parametrize("given", ["1" * 500_000 + "x", "1" * 500_000, "." * 500_000])
def test_a_long_string_is_refused_at_once(given: str) -> None:
    with pytest.raises(RequestError, match="temperature must be a"):
        decoded([_TEXT], {"temperature": given})


def test_a_single_precision_input_is_the_same_number_over_every_transport() -> None:
    tensors = [_TEXT, Tensor("temperature", "FP32", [0.7])]
    numbers = {parameters_of(tensors, way=way)[0].temperature for way in ALL}
    assert numbers == {single_precision(0.7)}


def test_as_many_stops_as_prompts_are_stops_for_every_prompt() -> None:
    first, second = parameters_of([_TEXT, Tensor("stop", "BYTES", ["x", "y"])])
    assert first.stop == second.stop == ("x", "y")


@pytest.mark.parametrize(
    ("tensors", "parameters", "sentence"),
    [
        ([], {}, "inputs is empty; give a BYTES tensor with at least one prompt."),
        ([Tensor("text", "BYTES", [], [0])], {}, "Input 'text' has no element; give at least one"),
        ([_TEXT, _TEXT], {}, "Input 'text' is there twice."),
        (
            [_TEXT, Tensor("t2", "BYTES", ["c"])],
            {},
            "inputs must have one BYTES tensor of prompts;",
        ),
        ([Tensor("top_k", "INT32", [1])], {}, "inputs must have one BYTES tensor of prompts; here"),
        (
            [_TEXT, Tensor("max_tokens", "INT32", [1])],
            {},
            "Input 'max_tokens' is neither BYTES nor a parameter; did you mean 'max_new_tokens'?",
        ),
        (
            [_TEXT, Tensor("top_k", "INT32", [1, 2, 3])],
            {},
            "Input 'top_k' has 3 elements instead of 1 or 2.",
        ),
        (
            [_TEXT, Tensor("top_k", "INT32", ["no"] * 3)],
            {},
            "Input 'top_k' has 3 elements instead of 1 or 2.",  # none of which is looked at
        ),
        (
            [_TEXT, Tensor("top_k", "INT32", [1])],
            {"top_k": 1},
            "top_k is given twice, as a parameter and as an input.",
        ),
        ([_TEXT], {"temprature": 1}, "Unknown parameter 'temprature'; did you mean 'temperature'?"),
        ([_TEXT], {"temperature": "hot"}, "temperature must be a number, not a string."),
        ([_TEXT], {"temperature": "nan"}, "temperature must be a number, not a string."),
        ([_TEXT], {"temperature": "9e999"}, "temperature must be a finite number."),
        ([_TEXT], {"return_full_text": "true"}, "return_full_text must be true or false, not a"),
        ([_TEXT], {"max_new_tokens": "5"}, "max_new_tokens must be an integer, not a string."),
        ([_TEXT, Tensor("stop", "INT32", [1])], {}, "stop must be a string or a list of strings."),
        (
            [_TEXT, Tensor("max_new_tokens", "FP32", [1.0])],
            {},
            "max_new_tokens must be an integer, not a number.",
        ),
    ],
)
def test_a_wrong_request_is_refused_in_one_sentence(
    tensors: list[Tensor], parameters: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(RequestError) as refusal:
        decoded(tensors, parameters)
    assert str(refusal.value).startswith(sentence)


def test_a_generation_parameter_of_an_input_is_refused_rather_than_ignored() -> None:
    text = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}
    request = parsed({"inputs": [{**text, "parameters": {"top_k": 1, "content_type": "str"}}]})
    with pytest.raises(RequestError, match="top_k is a parameter of the request, not of input"):
        v2.decode(request, GenerationSpec())


def exchanged(request: Any) -> Any:
    exchange = decode_call(request, model_name="m", model_version="7")
    count = len(exchange.request.prompts)
    return exchange.encode([Completion(f"r{n}", "eos_token", n, n + 1) for n in range(count)])


def with_outputs(*names: str) -> Any:
    text = {"name": "text", "shape": [1, 2], "datatype": "BYTES", "data": [["a", "b"]]}
    return parsed({"id": "i", "inputs": [text], "outputs": [{"name": name} for name in names]})


def test_a_response_has_every_output_in_the_shape_of_the_prompts() -> None:
    answer = exchanged(with_outputs())
    assert (answer.id, answer.model_name, answer.model_version) == ("i", "m", "7")
    assert [(o.name, o.datatype, o.shape, o.data) for o in answer.outputs] == [
        ("text", "BYTES", [1, 2], ["r0", "r1"]),
        ("finish_reason", "BYTES", [1, 2], ["stop", "stop"]),
        ("prompt_tokens", "INT32", [1, 2], [0, 1]),
        ("completion_tokens", "INT32", [1, 2], [1, 2]),
    ]


def test_a_response_has_the_outputs_that_were_asked_for_in_that_order() -> None:
    answer = exchanged(with_outputs("completion_tokens", "text"))
    assert [output.name for output in answer.outputs] == ["completion_tokens", "text"]


def test_an_unknown_output_is_refused_with_the_known_ones() -> None:
    with pytest.raises(RequestError) as refusal:
        exchanged(with_outputs("logits"))
    names = "text, finish_reason, prompt_tokens, completion_tokens"
    assert str(refusal.value) == f"There is no output 'logits'; known are {names}."


def test_an_output_that_is_asked_for_twice_is_refused() -> None:
    with pytest.raises(RequestError, match=r"^Output 'text' is there twice.$"):
        exchanged(with_outputs("text", "text"))


def test_a_request_without_an_id_gets_one() -> None:
    first, second = (exchanged(as_grpc_contents([_TEXT], {})).id for _ in range(2))
    assert first
    assert first != second


def test_grpc_answers_in_the_form_it_was_asked_in() -> None:
    assert exchanged(as_grpc_raw([_TEXT], {})).to_grpc().raw_output_contents
    plain = exchanged(as_grpc_contents([_TEXT], {})).to_grpc()
    assert list(plain.outputs[0].contents.bytes_contents) == [b"r0", b"r1"]
    assert not plain.raw_output_contents


def test_the_metadata_lists_the_prompt_and_the_outputs() -> None:
    signature = v2.signature(GenerationSpec())
    assert signature["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    assert [output["name"] for output in signature["outputs"]] == [
        "text",
        "finish_reason",
        "prompt_tokens",
        "completion_tokens",
    ]


@given(
    texts=st.lists(st.text(), min_size=1, max_size=3),
    temperature=st.floats(0.015625, 100, width=32),
    top_k=st.integers(0, 2**31 - 1),
    stop=st.lists(st.text(min_size=1), max_size=3),
    full=st.booleans(),
    are_inputs=st.booleans(),
)
def test_a_request_is_the_same_over_every_transport(
    texts: list[str],
    temperature: float,
    top_k: int,
    stop: list[str],
    full: bool,
    are_inputs: bool,
) -> None:
    tensors = [Tensor("text", "BYTES", texts)]
    parameters = {"temperature": temperature, "top_k": top_k, "stop": stop}
    if are_inputs:
        tensors.append(Tensor("temperature", "FP32", [parameters.pop("temperature")]))
        tensors.append(Tensor("top_k", "INT32", [parameters.pop("top_k")]))
        tensors.append(Tensor("stop", "BYTES", parameters.pop("stop"), [len(stop)]))
    parameters["return_full_text"] = full
    meant = GenerationParameters(
        temperature=temperature, top_k=top_k, stop=tuple(stop), return_full_text=full
    )
    expected = GenerationRequest(tuple(Prompt(text, meant) for text in texts))
    assert [decoded(tensors, parameters, way) for way in ALL] == [expected] * len(ALL)
