"""NVFP4: four-bit floats, of which 16 share an FP8 scale, and a scale of the whole matrix.

compressed-tensors (``nvfp4-pack-quantized``) stores ``weight_packed`` and a global scale by which
the scales are divided. ModelOpt stores ``weight`` and ``weight_scale_2``, by which they are
multiplied. The first weight of a byte is in its lower bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from predictor.errors import CheckpointError
from predictor.linear.formats.format import TensorSpec
from predictor.linear.formats.fp8 import ACTIVATION_SCALES
from predictor.linear.formats.packed_bits import E2M1, unpack_nibbles
from predictor.linear.formats.scales import multiply_by_groups
from predictor.linear.formats.stored_tensors import FLOATS, expect, one_role, refuse_others

GROUP = 16

_PACKED = ("weight_packed", "weight")
_DIVISOR = "weight_global_scale"
_FACTOR = "weight_scale_2"


@dataclass(frozen=True, slots=True)
class Nvfp4:
    """NVFP4 weights.

    Attributes:
        packed: The usual name of the weights.
        global_scale: The usual name of the scale of the matrix, which says if it divides.
    """

    packed: str = "weight_packed"
    global_scale: str = _DIVISOR

    @property
    def title(self) -> str:
        """The format as users see it."""
        return "nvfp4"

    @property
    def ignored(self) -> frozenset[str]:
        """Scales of activations."""
        return ACTIVATION_SCALES | {"input_global_scale"}

    def tensors(self, out_features: int, in_features: int) -> dict[str, TensorSpec]:
        """Return the tensors that hold a matrix."""
        groups = _groups(in_features)
        shape = (1,) if self.global_scale == _DIVISOR else ()
        return {
            self.packed: TensorSpec(torch.uint8, (out_features, in_features // 2)),
            "weight_scale": TensorSpec(torch.float8_e4m3fn, (out_features, groups)),
            self.global_scale: TensorSpec(torch.float32, shape),
        }

    def accept(
        self, stored: Mapping[str, TensorSpec], out_features: int, in_features: int
    ) -> dict[str, TensorSpec]:
        """Return which of the stored tensors are served; see `WeightFormat`."""
        scales = [(out_features, _groups(in_features))]
        packed = one_role(stored, _PACKED)
        whole = one_role(stored, (_DIVISOR, _FACTOR))
        bytes_ = (torch.uint8, torch.float4_e2m1fn_x2)
        served = {
            packed: expect(stored, packed, bytes_, [(out_features, in_features // 2)]),
            "weight_scale": expect(stored, "weight_scale", (torch.float8_e4m3fn,), scales),
            whole: expect(stored, whole, FLOATS, [(1,), ()]),
        }
        refuse_others(stored, served, self.ignored)
        return served

    def unpack(
        self, packed: Mapping[str, torch.Tensor], begin: int, end: int, dtype: torch.dtype
    ) -> torch.Tensor:
        """Return rows of the matrix; see `WeightFormat`."""
        codes = packed[one_role(packed, _PACKED)][begin:end].view(torch.uint8)
        scale = packed["weight_scale"][begin:end].to(torch.float32)
        if _DIVISOR in packed:
            scale /= packed[_DIVISOR].to(torch.float32)
        else:
            scale *= packed[_FACTOR].to(torch.float32)
        rows = unpack_nibbles(codes, E2M1)
        multiply_by_groups(rows, scale)
        return rows.to(dtype)


def _groups(in_features: int) -> int:
    if in_features % GROUP:
        raise CheckpointError(f"has {in_features} inputs, which is not a multiple of {GROUP}")
    return in_features // GROUP
