"""Weights as 8-bit integers, quantised by ourselves."""

from __future__ import annotations

import pytest
import torch

from predictor.errors import CheckpointError
from predictor.linear.formats.format import ROWS, TensorSpec
from predictor.linear.formats.int8 import SCALE, WEIGHT, Int8
from tests.linear.formats.checks import check_format


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_matrix_is_kept_within_half_a_step(dtype: torch.dtype) -> None:
    matrix = torch.randn(2 * ROWS + 3, 40).to(dtype)
    before = matrix.clone()
    packed = Int8().quantise(matrix)
    assert torch.equal(matrix, before)
    expected = packed[WEIGHT].float() * packed[SCALE].float()[:, None]
    check_format(Int8(), packed, expected)
    half_a_step = matrix.float().abs().amax(1, keepdim=True) / 127 / 2
    assert ((expected - matrix.float()).abs() <= half_a_step * 1.51).all()


def test_the_rounding_of_the_scale_costs_little_but_at_the_largest_weight() -> None:
    matrix = torch.randn(64, 512)
    packed = Int8().quantise(matrix)
    error = Int8().unpack(packed, 0, 64, torch.float32) - matrix
    step = matrix.abs().amax(1, keepdim=True) / 127
    assert (error / step).square().mean() < 1.02 / 12


def test_zeros_stay_zeros() -> None:
    packed = Int8().quantise(torch.zeros(4, 8))
    assert torch.equal(Int8().unpack(packed, 0, 4, torch.float32), torch.zeros(4, 8))


def test_parts_of_a_matrix_are_quantised_alike() -> None:
    matrix = torch.randn(2 * ROWS, 8)
    whole = Int8().quantise(matrix)
    parts = [Int8().quantise(rows) for rows in matrix.split(ROWS)]
    for role, tensor in whole.items():
        assert torch.equal(torch.cat([part[role] for part in parts]), tensor)


def test_another_shape_is_refused() -> None:
    stored = {WEIGHT: TensorSpec(torch.int8, (4, 9)), SCALE: TensorSpec(torch.bfloat16, (4,))}
    with pytest.raises(CheckpointError, match="of shape"):
        Int8().accept(stored, 4, 8)
