from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from predictor.errors import CheckpointError
from predictor.linear.formats.format import TensorSpec
from predictor.linear.formats.mxfp4 import Mxfp4
from tests.linear.formats.checks import check_format, specs


def random_mxfp4(out_features: int, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    blocks = torch.randint(0, 256, (out_features, groups, 16), dtype=torch.uint8)
    scales = torch.randint(100, 140, (out_features, groups), dtype=torch.uint8)
    return blocks, scales


def dequantised(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The matrix that transformers makes of gpt-oss's tensors."""
    columns = convert_moe_packed_tensors(blocks[None], scales[None], dtype=torch.float32)
    return columns[0].t().contiguous()


@settings(deadline=None, max_examples=20)
@given(out_features=st.integers(1, 700), groups=st.integers(1, 6))
def test_gpt_oss_weights_are_those_of_transformers(out_features: int, groups: int) -> None:
    blocks, scales = random_mxfp4(out_features, groups)
    expected = dequantised(blocks, scales)
    check_format(Mxfp4(), {"blocks": blocks, "scales": scales}, expected)


@pytest.mark.parametrize(
    ("packed", "scale", "scale_dtype"),
    [
        ("weight_packed", "weight_scale", torch.uint8),
        ("weight", "scale", torch.float8_e8m0fnu),
        ("weight", "weight_scale", torch.uint8),
    ],
)
def test_other_layouts_hold_the_same_bytes(
    packed: str, scale: str, scale_dtype: torch.dtype
) -> None:
    blocks, scales = random_mxfp4(300, 2)
    tensors = {packed: blocks.flatten(1), scale: scales.view(scale_dtype)}
    check_format(Mxfp4(packed, scale), tensors, dequantised(blocks, scales))


def test_weights_of_a_signed_dtype_are_bytes_too() -> None:
    blocks, scales = random_mxfp4(3, 2)
    tensors = {"weight": blocks.flatten(1).view(torch.int8), "scale": scales}
    check_format(Mxfp4(), tensors, dequantised(blocks, scales))


def test_tensors_are_those_that_are_accepted() -> None:
    for weights in (Mxfp4(), Mxfp4("weight_packed", "weight_scale")):
        tensors = weights.tensors(300, 320)
        assert weights.accept(tensors, 300, 320) == tensors
    assert Mxfp4().tensors(300, 320) == {
        "blocks": TensorSpec(torch.uint8, (300, 10, 16)),
        "scales": TensorSpec(torch.uint8, (300, 10)),
    }


def test_inputs_that_are_no_multiple_of_a_group_are_refused() -> None:
    with pytest.raises(CheckpointError, match="has 40 inputs, which is not a multiple of 32"):
        Mxfp4().tensors(8, 40)


def test_tensors_of_another_shape_are_refused() -> None:
    blocks, scales = random_mxfp4(4, 2)
    stored = specs({"blocks": blocks, "scales": scales[:, :1]})
    with pytest.raises(CheckpointError, match=r"'scales' of shape \(4, 1\) instead of \(4, 2\)"):
        Mxfp4().accept(stored, 4, 64)
