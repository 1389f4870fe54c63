from __future__ import annotations

import contextlib
import math
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kserve import InferInput, InferRequest

from predictor.errors import RequestError
from predictor.protocol.kserve.open_shapes import close_shape
from predictor.protocol.kserve.tensors import DATATYPES, elements, to_raw


def tensor(datatype: str, shape: Any, data: Any = None, raw: bytes | None = None) -> InferInput:
    built = InferInput("x", shape, datatype, data)
    InferRequest("m", [built], raw_inputs=[raw])
    return built


def test_flat_and_nested_data_are_the_same_tensor() -> None:
    nested = tensor("BYTES", [2, 1], [["a"], ["b"]])
    assert elements(nested) == elements(tensor("BYTES", [2, 1], ["a", "b"])) == ["a", "b"]


def test_a_scalar_tensor_has_one_element() -> None:
    assert elements(tensor("FP32", [], [0.5])) == [0.5]


def test_a_floating_point_element_is_rounded_to_its_type_over_every_transport() -> None:
    raw = tensor("FP32", [1], raw=np.float32(0.7).tobytes())
    assert elements(tensor("FP32", [1], [0.7])) == elements(raw)


@pytest.mark.parametrize(
    ("built", "sentence"),
    [
        (tensor("BF16", [1], [1]), "Input 'x' has datatype 'BF16'; known are "),
        (tensor("BYTES", [2], ["a"]), "Input 'x' has 1 elements; its shape [2] says 2."),
        (tensor("BYTES", [-1], ["a"]), "Input 'x' has a dimension below 0 or above"),
        (tensor("BYTES", [2**63], ["a"]), "Input 'x' has a dimension below 0 or above"),
        (tensor("BYTES", [1] * 33, ["a"]), "Input 'x' has more than 32 dimensions."),
        (tensor("BYTES", [1.5], ["a"]), "Input 'x' has a number in its shape instead of"),
        (tensor("BYTES", [True], ["a"]), "Input 'x' has a boolean in its shape instead of"),
        (tensor("BYTES", [2], [["a"], ["b"]]), "Input 'x' has data nested more deeply"),
        (tensor("BYTES", [1, 2], [["a"], ["b"]]), "Input 'x' has nested data that is not of"),
        (tensor("BYTES", [2, 1], [["a"], "b"]), "Input 'x' has nested data that is not of"),
        (tensor("BYTES", [1], [3]), "Input 'x' is BYTES; element 0 must not be an integer."),
        (tensor("BYTES", [1], [None]), "Input 'x' is BYTES; element 0 must not be null."),
        (tensor("BYTES", [1], [b"\xff"]), "Input 'x' has element 0 that is not valid UTF-8."),
        (tensor("BOOL", [1], [1]), "Input 'x' is BOOL; element 0 must not be an integer."),
        (tensor("BOOL", [1], ["false"]), "Input 'x' is BOOL; element 0 must not be a string."),
        (tensor("INT8", [1], [128]), "Input 'x' has element 0 out of INT8's range."),
        (tensor("UINT64", [1], [-1]), "Input 'x' has element 0 out of UINT64's range."),
        (tensor("INT32", [1], [1.0]), "Input 'x' is INT32; element 0 must not be a number."),
        (tensor("INT32", [1], [True]), "Input 'x' is INT32; element 0 must not be a boolean."),
        (tensor("FP32", [1], [1e300]), "Input 'x' has element 0 out of FP32's range."),
        (tensor("FP64", [1], [10**400]), "Input 'x' has element 0 out of FP64's range."),
        (tensor("FP64", [1], [math.nan]), "Input 'x' has element 0 that is not finite."),
        (tensor("FP64", [1], [True]), "Input 'x' is FP64; element 0 must not be a boolean."),
        (tensor("FP16", [1], [1.0]), "Input 'x' is FP16, which can be sent as binary data only."),
        (tensor("BYTES", [1], None), "Input 'x' must have a list of data, not null."),
        (tensor("INT32", [1], raw=b"123"), "Input 'x' has 3 bytes of data; its shape needs 4."),
        (tensor("BYTES", [1], raw=b"\x01"), "Input 'x' has binary data that ends within element 0"),
        (tensor("BYTES", [1], raw=b"\x05\0\0\0ab"), "Input 'x' has binary data that ends within"),
        (tensor("BYTES", [1], raw=b"\x01\0\0\0\xff"), "Input 'x' has element 0 that is not valid"),
        (tensor("BYTES", [2], raw=b"\x01\0\0\0a"), "Input 'x' has 1 elements; its shape says 2."),
        (tensor("BYTES", [0], raw=b"\x01\0\0\0a"), "Input 'x' has 1 elements; its shape says 0."),
    ],
)
def test_what_is_no_tensor_is_refused_in_one_sentence(built: InferInput, sentence: str) -> None:
    with pytest.raises(RequestError) as refusal:
        elements(built)
    assert str(refusal.value).startswith(sentence)


def test_a_wrong_tensors_sentence_never_quotes_an_element() -> None:
    with pytest.raises(RequestError) as refusal:
        elements(tensor("INT32", [1], ["my secret prompt"]))
    assert "secret" not in str(refusal.value)


@given(st.lists(st.text()))
def test_texts_survive_their_binary_form(texts: list[str]) -> None:
    raw = to_raw(texts, "BYTES")
    assert elements(tensor("BYTES", [len(texts)], raw=raw)) == texts


@given(st.lists(st.integers(-(2**31), 2**31 - 1)))
def test_numbers_survive_their_binary_form(numbers: list[int]) -> None:
    raw = to_raw(numbers, "INT32")
    assert elements(tensor("INT32", [len(numbers)], raw=raw)) == numbers


@given(st.sampled_from(DATATYPES), st.lists(st.integers(0, 4), max_size=3), st.binary(max_size=40))
def test_any_bytes_are_a_tensor_or_refused(datatype: str, shape: list[int], raw: bytes) -> None:
    with contextlib.suppress(RequestError):
        assert len(elements(tensor(datatype, shape, raw=raw))) == math.prod(shape)


_NUMBERS = st.integers() | st.floats() | st.booleans() | st.none() | st.text(max_size=3)


@given(
    st.sampled_from(DATATYPES),
    st.lists(st.integers(-1, 3), max_size=3),
    st.recursive(_NUMBERS, lambda inner: st.lists(inner, max_size=3), max_leaves=8),
)
def test_any_data_are_a_tensor_or_refused(datatype: str, shape: list[int], data: Any) -> None:
    with contextlib.suppress(RequestError):
        assert len(elements(tensor(datatype, shape, data))) == math.prod(shape)


def test_binary_texts_are_framed_as_the_protocol_says() -> None:
    assert to_raw(["é"], "BYTES") == struct.pack("<I", 2) + b"\xc3\xa9"


FRAMES = to_raw(["a", "bc", "d", "e"], "BYTES")


@pytest.mark.parametrize(
    ("built", "shape"),
    [
        (tensor("BYTES", [-1], ["a"]), [1]),
        (tensor("BYTES", [-1], []), [0]),
        (tensor("BYTES", [-1, 2], ["a", "b", "c", "d"]), [2, 2]),
        (tensor("BYTES", [-1, 2], [["a", "b"], ["c", "d"]]), [2, 2]),
        (tensor("BYTES", [1, -1], [["a", "b", "c"]]), [1, 3]),
        (tensor("BYTES", [-1], raw=FRAMES), [4]),
        (tensor("INT32", [2, -1], raw=bytes(32)), [2, 4]),
        (tensor("FP32", [-1], [0.5, 1.5]), [2]),
    ],
)
def test_one_open_dimension_is_as_large_as_the_data(built: Any, shape: list[int]) -> None:
    close_shape(built)
    assert built.shape == shape
    assert len(elements(built)) == math.prod(shape)


@pytest.mark.parametrize(
    ("built", "sentence"),
    [
        (tensor("BYTES", [-1, -1], ["a"]), "Input 'x' has a dimension below 0 or above"),
        (tensor("BYTES", [-2], ["a"]), "Input 'x' has a dimension below 0 or above"),
        (tensor("BYTES", [-1.0], ["a"]), "Input 'x' has a number in its shape instead of"),
        (tensor("BYTES", [-1, 2], ["a"]), "Input 'x' has 1 elements, which do not fill the sha"),
        (tensor("BYTES", [-1, 0], ["a"]), "Input 'x' has 1 elements, which do not fill the sha"),
        (tensor("BYTES", [-1, "a"], ["a"]), "Input 'x' has a string in its shape instead of"),
        (tensor("BYTES", [-1], [["a"]]), "Input 'x' has data nested more deeply than its shape"),
        (tensor("BYTES", [-1, 1], [["a"], "b"]), "Input 'x' has nested data that is not of"),
        (tensor("BYTES", [-1], "a"), "Input 'x' must have a list of data, not a string."),
        (tensor("BYTES", [-1], raw=FRAMES[:-1]), "Input 'x' has binary data that ends within"),
        (tensor("INT32", [-1], raw=b"12345"), "Input 'x' has 5 bytes of data; its shape needs 4."),
        (tensor("BF16", [-1], [1]), "Input 'x' has datatype 'BF16'; known are "),
    ],
)
def test_an_open_dimension_forgives_nothing_else(built: Any, sentence: str) -> None:
    def read() -> None:
        close_shape(built)
        elements(built)

    with pytest.raises(RequestError) as refusal:
        read()
    assert str(refusal.value).startswith(sentence)
