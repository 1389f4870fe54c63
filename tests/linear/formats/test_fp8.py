from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from predictor.errors import CheckpointError
from predictor.linear.formats.format import TensorSpec
from predictor.linear.formats.fp8 import Fp8
from tests.linear.formats.checks import check_format, specs

E4M3 = torch.float8_e4m3fn


def random_weight(shape: tuple[int, int], dtype: torch.dtype = E4M3) -> torch.Tensor:
    return torch.randn(shape).to(dtype)


def block_scaled(weight: torch.Tensor, scale: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
    """DeepSeek-V3's definition: each block of the weight is multiplied by its scale."""
    wide = scale.float().repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return weight.float() * wide[: weight.shape[0], : weight.shape[1]]


def random_scale(
    out_features: int, in_features: int, block: tuple[int, int], dtype: torch.dtype
) -> torch.Tensor:
    grid = (-(-out_features // block[0]), -(-in_features // block[1]))
    return (torch.rand(grid) + 0.01).to(dtype)


@settings(deadline=None, max_examples=40)
@given(
    out_features=st.integers(1, 700),
    in_features=st.integers(1, 300),
    block=st.sampled_from([(128, 128), (96, 40), (1, 128), (512, 64), (1, 7)]),
    scale_dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float8_e8m0fnu]),
    dtype=st.sampled_from([E4M3, torch.float8_e5m2]),
)
def test_blocks_are_multiplied_by_their_scales(
    out_features: int,
    in_features: int,
    block: tuple[int, int],
    scale_dtype: torch.dtype,
    dtype: torch.dtype,
) -> None:
    weight = random_weight((out_features, in_features), dtype)
    scale = random_scale(out_features, in_features, block, scale_dtype)
    expected = block_scaled(weight, scale, block)
    check_format(Fp8(block), {"weight": weight, "weight_scale_inv": scale}, expected)


@pytest.mark.parametrize("dtype", [E4M3, torch.float8_e5m2])
def test_every_finite_byte_has_its_value(dtype: torch.dtype) -> None:
    weight = torch.arange(256, dtype=torch.uint8).view(dtype).reshape(1, 256)
    weight = weight[:, weight.float().isfinite()[0]]
    check_format(Fp8(), {"weight": weight, "weight_scale": torch.ones(())}, weight.float())


@pytest.mark.parametrize("name", ["weight_scale_inv", "weight_scale", "scale", "qscale_weight"])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (300,), (300, 1)])
def test_scales_per_output_and_single_scales_are_seen_from_their_shape(
    name: str, shape: tuple[int, ...]
) -> None:
    weight = random_weight((300, 256))
    scale = torch.rand(shape) + 0.1
    expected = weight.float() * scale.reshape(-1, 1)
    check_format(Fp8(), {"weight": weight, name: scale}, expected)


def test_a_block_grid_as_wide_as_the_outputs_is_not_taken_for_scales_per_output() -> None:
    weight = random_weight((2, 256))
    scale = torch.tensor([[0.5, 4.0]])
    expected = block_scaled(weight, scale, (128, 128))
    check_format(Fp8(), {"weight": weight, "weight_scale_inv": scale}, expected)


def test_modelopt_gives_its_grid_two_dimensions_more() -> None:
    weight = random_weight((300, 256))
    scale = torch.rand(3, 2)
    tensors = {"weight": weight, "weight_scale": scale.view(3, 1, 2, 1)}
    check_format(Fp8(), tensors, block_scaled(weight, scale, (128, 128)))


def test_bytes_as_scales_are_powers_of_two() -> None:
    weight = random_weight((40, 64))
    exponents = torch.randint(117, 137, (40, 2), dtype=torch.uint8)
    scale = 2.0 ** (exponents.float() - 127)
    expected = block_scaled(weight, scale, (1, 32))
    check_format(Fp8((1, 32)), {"weight": weight, "weight_scale_inv": exponents}, expected)


def test_tensors_are_those_that_are_accepted() -> None:
    for weights in (Fp8(), Fp8((1, 0), scale="weight_scale"), Fp8((0, 0)), Fp8((1, 32))):
        tensors = weights.tensors(300, 320)
        assert weights.accept(tensors, 300, 320) == tensors
    assert Fp8().tensors(300, 320) == {
        "weight": TensorSpec(E4M3, (300, 320)),
        "weight_scale_inv": TensorSpec(torch.float32, (3, 3)),
    }


def test_titles_name_what_shares_a_scale() -> None:
    assert Fp8().title == "fp8 (block 128x128)"
    assert Fp8((1, 0)).title == "fp8 (per channel)"
    assert Fp8((0, 0)).title == "fp8 (per tensor)"
    assert Fp8((1, 32)).title == "mxfp8"


def test_scales_of_activations_are_left_out() -> None:
    stored = specs({"weight": random_weight((4, 4)), "weight_scale": torch.ones(())})
    with_activations = {**stored, "input_scale": TensorSpec(torch.float32, ())}
    assert Fp8().accept(with_activations, 4, 4) == stored


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"weight": TensorSpec(E4M3, (4, 5))}, r"'weight' of shape \(4, 5\) instead of \(4, 4\)"),
        ({"weight": TensorSpec(torch.int8, (4, 4))}, "'weight' of dtype int8 instead of float8"),
        ({"weight_scale": TensorSpec(torch.float32, (2, 2))}, r"'weight_scale' of shape \(2, 2\)"),
        ({"weight_scale": TensorSpec(torch.int64, ())}, "'weight_scale' of dtype int64"),
        ({"weight_shift": TensorSpec(torch.float32, ())}, "'weight_shift', which is not part"),
    ],
)
def test_other_tensors_are_refused(changed: dict[str, TensorSpec], sentence: str) -> None:
    stored = specs({"weight": random_weight((4, 4)), "weight_scale": torch.ones(())})
    with pytest.raises(CheckpointError, match=sentence):
        Fp8().accept({**stored, **changed}, 4, 4)


def test_weights_without_a_scale_are_refused() -> None:
    with pytest.raises(CheckpointError, match="has no tensor 'weight_scale_inv' or 'weight_scale'"):
        Fp8().accept(specs({"weight": random_weight((4, 4))}), 4, 4)
