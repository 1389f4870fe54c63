from __future__ import annotations

import pytest
import torch
from bitsandbytes.functional import int8_vectorwise_dequant, int8_vectorwise_quant
from hypothesis import given, settings
from hypothesis import strategies as st

from predictor.errors import CheckpointError
from predictor.linear.formats.bitsandbytes import BitsAndBytes4, BitsAndBytes8
from predictor.linear.formats.format import TensorSpec
from tests.linear.formats.checks import check_format, specs
from tests.linear.formats.packers import Packed, bitsandbytes4


def quantised(shape: tuple[int, int], kind: str, block: int = 64, *, nested: bool = True) -> Packed:
    """Random weights as bitsandbytes stores them, and the matrix that it makes of them again."""
    return bitsandbytes4(torch.randn(shape), kind, block, nested=nested)


@settings(deadline=None, max_examples=40)
@given(
    out_features=st.integers(1, 600),
    in_features=st.one_of(st.integers(1, 200), st.sampled_from([64, 128])),
    kind=st.sampled_from(["nf4", "fp4"]),
    block=st.sampled_from([32, 64, 128, 4096]),
    nested=st.booleans(),
)
def test_weights_are_those_of_bitsandbytes(
    out_features: int, in_features: int, kind: str, block: int, nested: bool
) -> None:
    packed, expected = quantised((out_features, in_features), kind, block, nested=nested)
    check_format(BitsAndBytes4(kind, in_features), packed, expected)


def test_inputs_are_read_from_the_text_if_they_are_not_known() -> None:
    packed, expected = quantised((300, 96), "nf4")
    assert torch.equal(BitsAndBytes4().unpack(packed, 256, 300, torch.float32), expected[256:])


def test_a_text_that_is_not_one_is_refused() -> None:
    packed, _ = quantised((64, 96), "nf4")
    packed["weight.quant_state.bitsandbytes__nf4"] = torch.zeros(20, dtype=torch.uint8)
    with pytest.raises(CheckpointError, match="does not say the shape and the offset"):
        BitsAndBytes4().unpack(packed, 0, 64, torch.float32)


def test_unpacking_sees_tensors_that_are_filled_again() -> None:
    packed, _ = quantised((64, 96), "nf4")
    other, expected = quantised((64, 96), "nf4")
    weights = BitsAndBytes4(in_features=96)
    weights.unpack(packed, 0, 64, torch.float32)
    for role, tensor in packed.items():
        if len(tensor) != len(other[role]):
            packed[role] = other[role]
        else:
            tensor.copy_(other[role])
    assert torch.equal(weights.unpack(packed, 0, 64, torch.float32), expected)


@pytest.mark.parametrize("nested", [True, False])
def test_tensors_are_those_that_are_accepted(nested: bool) -> None:
    weights = BitsAndBytes4(nested=nested)
    tensors = weights.tensors(300, 320)
    assert weights.accept(tensors, 300, 320) == tensors
    stored = specs(quantised((300, 320), "nf4", nested=nested)[0])
    text = "weight.quant_state.bitsandbytes__nf4"
    assert {**tensors, text: stored[text]} == stored


@pytest.mark.parametrize(
    ("role", "spec", "sentence"),
    [
        ("weight", TensorSpec(torch.uint8, (64, 1)), r"'weight' of shape \(64, 1\) instead"),
        ("weight.absmax", TensorSpec(torch.uint8, (5,)), "'weight.absmax' of shape"),
        ("weight.absmax", TensorSpec(torch.float32, (2,)), "'weight.absmax' of dtype float32"),
        ("weight.shift", TensorSpec(torch.float32, (2,)), "'weight.shift', which is not part"),
    ],
)
def test_other_tensors_are_refused(role: str, spec: TensorSpec, sentence: str) -> None:
    stored = {**BitsAndBytes4().tensors(8, 32), role: spec}
    with pytest.raises(CheckpointError, match=sentence):
        BitsAndBytes4().accept(stored, 8, 32)


def test_the_other_kind_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"no tensor '[a-z._]+__fp4'"):
        BitsAndBytes4("fp4").accept(BitsAndBytes4().tensors(8, 32), 8, 32)


@settings(deadline=None, max_examples=10)
@given(out_features=st.integers(1, 600), in_features=st.integers(1, 200))
def test_bytes_are_those_of_bitsandbytes(out_features: int, in_features: int) -> None:
    weight, largest, _ = int8_vectorwise_quant(torch.randn(out_features, in_features).half())
    packed = {"weight": weight, "SCB": largest}
    expected = weight.float() * (largest / 127)[:, None]
    torch.testing.assert_close(expected, int8_vectorwise_dequant(weight, largest))
    check_format(BitsAndBytes8(), packed, expected)


def test_the_order_of_bytes_is_left_out() -> None:
    tensors = BitsAndBytes8().tensors(8, 32)
    stored = {**tensors, "weight_format": TensorSpec(torch.uint8, ())}
    assert BitsAndBytes8().accept(stored, 8, 32) == tensors
