"""Weights as 4-bit integers, quantised by ourselves, in the layout of torch's kernel."""

from __future__ import annotations

import pytest
import torch

from predictor.errors import CheckpointError
from predictor.linear.formats.format import ROWS
from predictor.linear.formats.int4 import SCALES, WEIGHT, Int4
from predictor.linear.kernels import PACKED_INT4, LayerKind, kernels_for
from tests.linear.formats.checks import check_format


def _expected(packed: dict[str, torch.Tensor], steps: torch.Tensor, group: int) -> torch.Tensor:
    scale, zero = packed[SCALES].float().repeat_interleave(group, 0).permute(2, 1, 0)
    return (steps - 8) * scale + zero


@pytest.mark.parametrize("panel", [32, 64])
@pytest.mark.parametrize("out_features", [16, 48, ROWS, 2 * ROWS + 80])
def test_each_layout_is_unpacked_to_what_was_packed(panel: int, out_features: int) -> None:
    weights = Int4(group=32, panel=panel)
    steps = torch.randint(0, 16, (out_features, 96))
    packed = {
        WEIGHT: weights._pack(steps.to(torch.uint8)).view(out_features, 48),
        SCALES: torch.randn(3, out_features, 2).to(torch.bfloat16),
    }
    check_format(weights, packed, _expected(packed, steps.float(), 32))


@pytest.mark.parametrize("out_features", [16, 48, ROWS, 2 * ROWS + 80])
def test_the_layout_is_that_of_torch_on_this_processor(out_features: int) -> None:
    steps = torch.randint(0, 16, (out_features, 64), dtype=torch.int32)
    expected = torch.ops.aten._convert_weight_to_int4pack_for_cpu(steps, 2)
    packed = Int4.here()._pack(steps.to(torch.uint8))
    assert torch.equal(packed.view(expected.shape), expected)


@pytest.mark.parametrize("group", [32, 128])
def test_a_matrix_is_kept_with_little_error(group: int) -> None:
    matrix = torch.randn(256, 512)
    weights = Int4(group)
    packed = weights.quantise(matrix)
    error = weights.unpack(packed, 0, 256, torch.float32) - matrix
    assert error.square().mean() < {32: 0.0075, 128: 0.012}[group]


def test_equal_weights_are_kept_exactly() -> None:
    matrix = torch.full((64, 32), 0.5)
    matrix[1] = 0
    packed = Int4().quantise(matrix)
    assert torch.equal(Int4().unpack(packed, 0, 64, torch.float32), matrix)


def test_parts_of_a_matrix_are_quantised_alike() -> None:
    matrix = torch.randn(2 * ROWS, 64).to(torch.bfloat16)
    whole = Int4().quantise(matrix)
    parts = [Int4().quantise(rows) for rows in matrix.split(ROWS)]
    assert torch.equal(torch.cat([part[WEIGHT] for part in parts]), whole[WEIGHT])
    assert torch.equal(torch.cat([part[SCALES] for part in parts], 1), whole[SCALES])


@pytest.mark.parametrize("shape", [(64, 40), (24, 64)])
def test_a_shape_that_torch_cannot_compute_is_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(CheckpointError, match="multiples of 16 and of 32"):
        Int4().tensors(*shape)


@pytest.mark.parametrize(("capability", "panel"), [("AVX512", 64), ("AVX2", 32), ("DEFAULT", None)])
def test_packed_kernels_are_offered_where_their_layout_is_ours(
    monkeypatch: pytest.MonkeyPatch, capability: str, panel: int | None
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    weights = Int4.here()
    kind = LayerKind(weights, torch.bfloat16, "cpu", 64, 64)
    titles = {kernel.title for kernel in kernels_for(kind)}
    assert (PACKED_INT4.title in titles) == (panel is not None)
    assert panel in (None, weights.panel)


def test_weights_that_had_four_bits_get_their_own_steps_again() -> None:
    steps = (torch.randn(64, 8, 32) * 2.5 + 7.5).round().clamp_(0, 15)
    scale, low = torch.rand(64, 8, 1) * 0.003 + 0.001, torch.rand(64, 8, 1) * 0.02
    weight = (steps * scale - low).view(64, 256)
    unpacked = Int4.here().unpack(Int4.here().quantise(weight), 0, 64, torch.float32)
    assert (unpacked - weight).norm() < 0.005 * weight.norm()
