from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from predictor.errors import CheckpointError
from predictor.linear.formats.format import TensorSpec
from predictor.linear.formats.nvfp4 import Nvfp4
from tests.linear.formats.checks import check_format, specs
from tests.linear.formats.packers import nvfp4


def compressed(out_features: int, in_features: int) -> dict[str, torch.Tensor]:
    """Random weights as compressed-tensors stores them."""
    return nvfp4(torch.randn(out_features, in_features))[0]


@settings(deadline=None, max_examples=20)
@given(out_features=st.integers(1, 600), groups=st.integers(1, 8))
def test_weights_are_those_of_compressed_tensors(out_features: int, groups: int) -> None:
    packed, matrix = nvfp4(torch.randn(out_features, groups * 16))
    check_format(Nvfp4(), packed, matrix)


def test_modelopt_multiplies_by_its_second_scale() -> None:
    packed = compressed(300, 64)
    divided = Nvfp4().unpack(packed, 0, 300, torch.float32)
    modelopt = {
        "weight": packed["weight_packed"],
        "weight_scale": packed["weight_scale"],
        "weight_scale_2": torch.tensor(0.25),
    }
    unpacked = Nvfp4("weight", "weight_scale_2").unpack(modelopt, 0, 300, torch.float32)
    torch.testing.assert_close(unpacked, divided * packed["weight_global_scale"] / 4)
    check_format(Nvfp4("weight", "weight_scale_2"), modelopt, unpacked)


def test_tensors_are_those_that_are_accepted() -> None:
    for weights in (Nvfp4(), Nvfp4("weight", "weight_scale_2")):
        tensors = weights.tensors(300, 320)
        assert weights.accept(tensors, 300, 320) == tensors


def test_scales_of_activations_are_left_out() -> None:
    stored = specs(compressed(4, 32))
    with_activations = {**stored, "input_global_scale": TensorSpec(torch.float32, (1,))}
    assert Nvfp4().accept(with_activations, 4, 32) == stored


def test_a_matrix_without_its_own_scale_is_refused() -> None:
    stored = specs(compressed(4, 32))
    del stored["weight_global_scale"]
    with pytest.raises(CheckpointError, match="no tensor 'weight_global_scale' or 'weight_scale_2"):
        Nvfp4().accept(stored, 4, 32)


def test_inputs_that_are_no_multiple_of_a_group_are_refused() -> None:
    with pytest.raises(CheckpointError, match="has 40 inputs, which is not a multiple of 16"):
        Nvfp4().accept({}, 8, 40)
