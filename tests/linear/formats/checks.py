"""What holds for every format, checked with matrices that its own test packs."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from predictor.linear.formats.format import ROWS, TensorSpec, WeightFormat


def specs(packed: Mapping[str, torch.Tensor]) -> dict[str, TensorSpec]:
    """Return what a checkpoint's headers tell of packed tensors."""
    return {role: TensorSpec(tensor.dtype, tuple(tensor.shape)) for role, tensor in packed.items()}


def check_format(
    weights: WeightFormat, packed: Mapping[str, torch.Tensor], expected: torch.Tensor
) -> None:
    """Check that packed tensors are accepted and unpacked to the expected float32 matrix."""
    out_features, in_features = expected.shape
    served = weights.accept(specs(packed), out_features, in_features)
    kept = {role: packed[role] for role in served}
    assert served == specs(kept)
    unpacked = weights.unpack(kept, 0, out_features, torch.float32)
    torch.testing.assert_close(unpacked, expected, rtol=0, atol=0)
    _check_pieces(weights, kept, unpacked)
    _check_half_precision(weights, kept, unpacked)
    _check_meta(weights, kept, unpacked)


def _check_pieces(
    weights: WeightFormat, packed: Mapping[str, torch.Tensor], whole: torch.Tensor
) -> None:
    pieces = [
        weights.unpack(packed, begin, min(begin + ROWS, len(whole)), torch.float32)
        for begin in range(0, len(whole), ROWS)
    ]
    assert torch.equal(torch.cat(pieces), whole)


def _check_half_precision(
    weights: WeightFormat, packed: Mapping[str, torch.Tensor], whole: torch.Tensor
) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        unpacked = weights.unpack(packed, 0, len(whole), dtype)
        assert torch.equal(unpacked, whole.to(dtype))


def _check_meta(
    weights: WeightFormat, packed: Mapping[str, torch.Tensor], whole: torch.Tensor
) -> None:
    empty = {role: tensor.to("meta") for role, tensor in packed.items()}
    end = min(ROWS, len(whole))
    unpacked = weights.unpack(empty, 0, end, torch.bfloat16)
    assert unpacked.device.type == "meta"
    assert unpacked.dtype == torch.bfloat16
    assert unpacked.shape == (end, whole.shape[1])
