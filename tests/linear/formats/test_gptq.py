from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from predictor.errors import CheckpointError
from predictor.linear.formats.format import TensorSpec
from predictor.linear.formats.gptq import Gptq
from tests.linear.formats.checks import check_format
from tests.linear.formats.packers import words_of


def packed_gptq(
    weights: Gptq, out_features: int, in_features: int
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Random tensors of a GPTQ checkpoint, and the matrix that they hold by definition."""
    top = 2**weights.bits
    groups = in_features // (weights.group or in_features)
    quantised = torch.randint(0, top, (out_features, in_features))
    zeros = torch.randint(0, top, (groups, out_features))
    if weights.symmetric:
        zeros = torch.full_like(zeros, top // 2)
    scales = (torch.rand(groups, out_features) + 0.1).half()
    group_of_input = torch.arange(in_features) * groups // in_features
    if weights.act_order:
        group_of_input = group_of_input[torch.randperm(in_features)]
    shift = quantised - zeros.t()[:, group_of_input]
    matrix = shift.float() * scales.t().float()[:, group_of_input]
    stored_zeros = (zeros - int(weights.zeros_less_one)) % top
    packed = {
        "qweight": words_of(quantised, weights.bits).t().contiguous(),
        "qzeros": words_of(stored_zeros, weights.bits),
        "scales": scales,
        "g_idx": group_of_input.to(torch.int32),
    }
    return packed, matrix


@settings(deadline=None, max_examples=60)
@given(
    bits=st.sampled_from([4, 8]),
    group=st.sampled_from([0, 32, 128]),
    symmetric=st.booleans(),
    act_order=st.booleans(),
    zeros_less_one=st.booleans(),
    words=st.integers(1, 80),
    groups=st.integers(1, 4),
)
def test_weights_are_those_of_the_definition(
    bits: int,
    group: int,
    symmetric: bool,
    act_order: bool,
    zeros_less_one: bool,
    words: int,
    groups: int,
) -> None:
    weights = Gptq(bits, group, symmetric, act_order, zeros_less_one)
    packed, expected = packed_gptq(weights, words * 8, groups * (group or 24))
    check_format(weights, packed, expected)


def test_words_hold_the_inputs_of_one_output_from_the_lowest_bits_on() -> None:
    packed = {
        "qweight": torch.tensor([[0x76543210, 0x01234567]], dtype=torch.int32).repeat(1, 4),
        "qzeros": torch.zeros(1, 1, dtype=torch.int32),
        "scales": torch.ones(1, 8, dtype=torch.float16),
    }
    weights = Gptq(4, 0, symmetric=False, zeros_less_one=False)
    unpacked = weights.unpack(packed, 0, 8, torch.float32)
    assert unpacked[0].tolist() == list(range(8))
    assert unpacked[1].tolist() == list(reversed(range(8)))


def test_symmetric_weights_need_no_zero_points() -> None:
    assert set(Gptq().tensors(8, 128)) == {"qweight", "scales"}


def test_tensors_are_those_that_are_accepted() -> None:
    for weights in (Gptq(), Gptq(8, 32, symmetric=False, act_order=True)):
        tensors = weights.tensors(304, 256)
        assert weights.accept(tensors, 304, 256) == tensors
    assert Gptq(8, 32, symmetric=False, act_order=True).tensors(304, 256) == {
        "qweight": TensorSpec(torch.int32, (64, 304)),
        "qzeros": TensorSpec(torch.int32, (8, 76)),
        "scales": TensorSpec(torch.float16, (8, 304)),
        "g_idx": TensorSpec(torch.int32, (256,)),
    }


def test_titles_name_the_groups() -> None:
    assert Gptq(4, 128).title == "gptq int4 (groups of 128)"
    assert Gptq(8, 0, act_order=True).title == "gptq int8 (per channel, act-order)"


@pytest.mark.parametrize(
    ("out_features", "in_features", "sentence"),
    [
        (8, 120, "has 120 inputs, which is not a multiple of 128"),
        (12, 128, "has 12 outputs, which is not a multiple of 8"),
        (8, 256, r"'qweight' of shape \(16, 8\) instead of \(32, 8\)"),
    ],
)
def test_other_shapes_are_refused(out_features: int, in_features: int, sentence: str) -> None:
    stored = Gptq().tensors(8, 128)
    with pytest.raises(CheckpointError, match=sentence):
        Gptq().accept(stored, out_features, in_features)


def test_other_tensors_are_refused() -> None:
    stored = {**Gptq().tensors(8, 128), "B": TensorSpec(torch.int32, (8, 8))}
    with pytest.raises(CheckpointError, match="'B', which is not part of its format"):
        Gptq().accept(stored, 8, 128)
