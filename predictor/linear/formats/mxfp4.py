"""MXFP4: four-bit floats, of which 32 share a scale that is a power of two.

The layouts differ in names only. gpt-oss has ``blocks`` and ``scales``, compressed-tensors
(``mxfp4-pack-quantized``) has ``weight_packed`` and ``weight_scale``, DeepSeek-V4 and Quark have
``weight`` and a scale. The first weight of a byte is in its lower bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from predictor.errors import CheckpointError
from predictor.linear.formats.format import TensorSpec
from predictor.linear.formats.fp8 import ACTIVATION_SCALES
from predictor.linear.formats.packed_bits import E2M1, unpack_nibbles
from predictor.linear.formats.scales import as_float32, multiply_by_groups
from predictor.linear.formats.stored_tensors import Shape, expect, one_role, refuse_others

GROUP = 32

_PACKED = ("blocks", "weight_packed", "weight")
_SCALES = ("scales", "weight_scale", "scale", "weight_scale_inv")
_BYTES = (torch.uint8, torch.int8, torch.float4_e2m1fn_x2)


@dataclass(frozen=True, slots=True)
class Mxfp4:
    """MXFP4 weights.

    Attributes:
        packed: The usual name of the weights.
        scale: The usual name of the scales.
    """

    packed: str = "blocks"
    scale: str = "scales"

    @property
    def title(self) -> str:
        """The format as users see it."""
        return "mxfp4"

    @property
    def ignored(self) -> frozenset[str]:
        """Scales of activations."""
        return ACTIVATION_SCALES

    def tensors(self, out_features: int, in_features: int) -> dict[str, TensorSpec]:
        """Return the tensors that hold a matrix."""
        groups = _groups(in_features)
        shape = _packed_shape(self.packed, out_features, groups)
        return {
            self.packed: TensorSpec(torch.uint8, shape),
            self.scale: TensorSpec(torch.uint8, (out_features, groups)),
        }

    def accept(
        self, stored: Mapping[str, TensorSpec], out_features: int, in_features: int
    ) -> dict[str, TensorSpec]:
        """Return which of the stored tensors are served; see `WeightFormat`."""
        groups = _groups(in_features)
        packed = one_role(stored, _PACKED)
        scale = one_role(stored, _SCALES)
        shape = _packed_shape(packed, out_features, groups)
        exponents = (torch.uint8, torch.float8_e8m0fnu)
        served = {
            packed: expect(stored, packed, _BYTES, [shape]),
            scale: expect(stored, scale, exponents, [(out_features, groups)]),
        }
        refuse_others(stored, served, self.ignored)
        return served

    def unpack(
        self, packed: Mapping[str, torch.Tensor], begin: int, end: int, dtype: torch.dtype
    ) -> torch.Tensor:
        """Return rows of the matrix; see `WeightFormat`."""
        codes = packed[one_role(packed, _PACKED)][begin:end].view(torch.uint8)
        scale = as_float32(packed[one_role(packed, _SCALES)][begin:end])
        rows = unpack_nibbles(codes.flatten(1), E2M1)
        multiply_by_groups(rows, scale)
        return rows.to(dtype)


def _groups(in_features: int) -> int:
    if in_features % GROUP:
        raise CheckpointError(f"has {in_features} inputs, which is not a multiple of {GROUP}")
    return in_features // GROUP


def _packed_shape(role: str, out_features: int, groups: int) -> Shape:
    if role == "blocks":
        return (out_features, groups, GROUP // 2)
    return (out_features, groups * GROUP // 2)
