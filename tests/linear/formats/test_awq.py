from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from predictor.errors import CheckpointError
from predictor.linear.formats.awq import Awq
from predictor.linear.formats.format import TensorSpec
from tests.linear.formats.checks import check_format
from tests.linear.formats.packers import awq_words


def packed_awq(
    weights: Awq, out_features: int, in_features: int
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Random tensors of an AWQ checkpoint, and the matrix that they hold by definition."""
    size = weights.group or in_features
    quantised = torch.randint(0, 16, (in_features, out_features))
    zeros = torch.randint(0, 16, (in_features // size, out_features))
    scales = (torch.rand(zeros.shape) + 0.1).half()
    shift = quantised - zeros.repeat_interleave(size, 0)
    matrix = shift.float() * scales.float().repeat_interleave(size, 0)
    packed = {
        "qweight": awq_words(quantised),
        "qzeros": awq_words(zeros),
        "scales": scales,
    }
    return packed, matrix.t()


@settings(deadline=None, max_examples=40)
@given(
    group=st.sampled_from([0, 32, 128]),
    words=st.integers(1, 80),
    groups=st.integers(1, 4),
)
def test_weights_are_those_of_the_definition(group: int, words: int, groups: int) -> None:
    weights = Awq(group)
    packed, expected = packed_awq(weights, words * 8, groups * (group or 24))
    check_format(weights, packed, expected)


def test_words_hold_even_outputs_below_odd_ones() -> None:
    packed = {
        "qweight": torch.tensor([[0x75316420]], dtype=torch.int32),
        "qzeros": torch.zeros(1, 1, dtype=torch.int32),
        "scales": torch.ones(1, 8, dtype=torch.float16),
    }
    unpacked = Awq(0).unpack(packed, 0, 8, torch.float32)
    assert unpacked[:, 0].tolist() == list(range(8))


def test_tensors_are_those_that_are_accepted() -> None:
    tensors = Awq().tensors(304, 256)
    assert Awq().accept(tensors, 304, 256) == tensors
    assert tensors == {
        "qweight": TensorSpec(torch.int32, (256, 38)),
        "qzeros": TensorSpec(torch.int32, (2, 38)),
        "scales": TensorSpec(torch.float16, (2, 304)),
    }


def test_titles_name_the_groups() -> None:
    assert Awq().title == "awq int4 (groups of 128)"
    assert Awq(0).title == "awq int4 (per channel)"


@pytest.mark.parametrize(
    ("out_features", "in_features", "sentence"),
    [
        (8, 120, "has 120 inputs, which is not a multiple of 128"),
        (12, 128, "has 12 outputs, which is not a multiple of 8"),
        (8, 256, r"'qweight' of shape \(128, 1\) instead of \(256, 1\)"),
    ],
)
def test_other_shapes_are_refused(out_features: int, in_features: int, sentence: str) -> None:
    stored = Awq().tensors(8, 128)
    with pytest.raises(CheckpointError, match=sentence):
        Awq().accept(stored, out_features, in_features)
