from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from compressed_tensors.compressors import IntQuantizationCompressor, PackedQuantizationCompressor
from hypothesis import given, settings
from hypothesis import strategies as st

from predictor.errors import CheckpointError
from predictor.linear.formats.format import TensorSpec
from predictor.linear.formats.integers import Integers, PackedIntegers
from tests.linear.formats.checks import check_format, specs
from tests.linear.formats.packers import arguments, compressed

STRATEGIES = st.sampled_from([("group", 32), ("group", 128), ("channel", 0), ("tensor", 0)])


@settings(deadline=None, max_examples=40)
@given(
    bits=st.sampled_from([4, 8]),
    strategy=STRATEGIES,
    symmetric=st.booleans(),
    out_features=st.integers(9, 600),  # of fewer, the library cannot unpack the zero points
    groups=st.integers(1, 4),
    scale_dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_packed_integers_are_those_of_compressed_tensors(
    bits: int,
    strategy: tuple[str, int],
    symmetric: bool,
    out_features: int,
    groups: int,
    scale_dtype: torch.dtype,
) -> None:
    name, group = strategy
    weight = torch.randn(out_features, groups * (group or 24)) + 0.3
    args = arguments(bits, name, group, symmetric=symmetric)
    packed, expected = compressed(PackedQuantizationCompressor, weight, args, group, scale_dtype)
    weights = PackedIntegers(bits, group, symmetric=symmetric, whole=name == "tensor")
    check_format(weights, packed, expected)


@settings(deadline=None, max_examples=30)
@given(
    strategy=STRATEGIES,
    symmetric=st.booleans(),
    out_features=st.integers(1, 600),
    groups=st.integers(1, 4),
)
def test_integers_are_those_of_compressed_tensors(
    strategy: tuple[str, int], symmetric: bool, out_features: int, groups: int
) -> None:
    name, group = strategy
    weight = torch.randn(out_features, groups * (group or 25)) + 0.3
    args = arguments(8, name, group, symmetric=symmetric)
    packed, expected = compressed(IntQuantizationCompressor, weight, args, group)
    weights = Integers(group, symmetric=symmetric, whole=name == "tensor")
    check_format(weights, packed, expected)


def test_integers_may_have_a_scale_per_block() -> None:
    weight = torch.randint(-128, 128, (300, 200), dtype=torch.int8)
    scale = torch.rand(3, 2)
    wide = scale.repeat_interleave(128, 0)[:300].repeat_interleave(128, 1)[:, :200]
    expected = weight.float() * wide
    check_format(Integers(block=(128, 128)), {"weight": weight, "weight_scale": scale}, expected)


@pytest.mark.parametrize("symmetric", [True, False])
def test_inputs_take_the_scale_of_the_group_that_an_activation_order_gives_them(
    symmetric: bool,
) -> None:
    weight = torch.randn(300, 128)
    args = arguments(4, "group", 32, symmetric=symmetric)
    packed, expected = compressed(PackedQuantizationCompressor, weight, args, 32)
    weights = PackedIntegers(4, 32, symmetric=symmetric)
    order = torch.arange(128, dtype=torch.int32) // 32
    check_format(weights, {**packed, "weight_g_idx": order}, expected)
    reversed_scales = weights.unpack({**packed, "weight_g_idx": 3 - order}, 0, 300, torch.float32)
    mirrored = {**packed, "weight_scale": packed["weight_scale"].flip(1)}
    if not symmetric:
        mirrored["weight_zero_point"] = packed["weight_zero_point"].flip(1)
    assert torch.equal(reversed_scales, weights.unpack(mirrored, 0, 300, torch.float32))


def test_all_zero_points_may_be_in_one_word() -> None:
    args = arguments(4, "group", 32, symmetric=False)
    packed, expected = compressed(PackedQuantizationCompressor, torch.randn(16, 64), args, 32)
    half = {role: packed[role][:8] for role in ("weight_packed", "weight_scale")}
    zero_points = packed["weight_zero_point"][:1]
    weights = PackedIntegers(4, 32, symmetric=False)
    check_format(weights, {**half, "weight_zero_point": zero_points}, expected[:8])


def test_tensors_are_those_that_are_accepted() -> None:
    for weights in (
        PackedIntegers(4, 64),
        PackedIntegers(8, symmetric=False),
        PackedIntegers(4, whole=True, symmetric=False),
        Integers(),
        Integers(64, symmetric=False),
        Integers(block=(128, 128)),
    ):
        tensors = weights.tensors(300, 320)
        assert weights.accept(tensors, 300, 320) == tensors
    assert PackedIntegers(4, 64, symmetric=False).tensors(300, 320) == {
        "weight_packed": TensorSpec(torch.int32, (300, 40)),
        "weight_scale": TensorSpec(torch.bfloat16, (300, 5)),
        "weight_zero_point": TensorSpec(torch.int32, (38, 5)),
    }


def test_titles_name_what_shares_a_scale() -> None:
    assert PackedIntegers(4, 128).title == "int4 (groups of 128)"
    assert PackedIntegers(8).title == "int8 (per channel)"
    assert Integers(whole=True).title == "int8 (per tensor)"
    assert Integers(block=(128, 64)).title == "int8 (block 128x64)"


def stored_int4() -> dict[str, TensorSpec]:
    shape: Mapping[str, torch.Tensor] = {"weight_shape": torch.tensor([8, 64])}
    return {**PackedIntegers(4, 32).tensors(8, 64), **specs(shape)}


def test_the_stored_shape_is_left_out() -> None:
    assert "weight_shape" not in PackedIntegers(4, 32).accept(stored_int4(), 8, 64)


@pytest.mark.parametrize(
    ("weights", "in_features", "sentence"),
    [
        (PackedIntegers(4), 63, "has 63 inputs, which is not a multiple of 8"),
        (PackedIntegers(4, 48), 64, "has 64 inputs, which is not a multiple of 48"),
        (PackedIntegers(4, 16), 64, r"'weight_scale' of shape \(8, 2\) instead of \(8, 4\)"),
        (PackedIntegers(4, 32, symmetric=False), 64, "has no tensor 'weight_zero_point'"),
        (Integers(32), 64, "has no tensor 'weight'"),
    ],
)
def test_other_tensors_are_refused(
    weights: PackedIntegers | Integers, in_features: int, sentence: str
) -> None:
    with pytest.raises(CheckpointError, match=sentence):
        weights.accept(stored_int4(), 8, in_features)


def test_zero_points_of_symmetric_integers_are_refused() -> None:
    zero_point = {"weight_zero_point": TensorSpec(torch.int32, (1, 2))}
    with pytest.raises(CheckpointError, match="'weight_zero_point', which is not part of"):
        PackedIntegers(4, 32).accept({**stored_int4(), **zero_point}, 8, 64)
