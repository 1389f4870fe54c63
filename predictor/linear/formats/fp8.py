"""FP8 weights: one byte a weight, with a scale per block, per output, or one for the whole matrix.

Block scales are DeepSeek-V3's layout (``weight_scale_inv``, which multiplies despite its name), and
with blocks of 1x32 and power-of-two scales the format is MXFP8. ModelOpt, compressed-tensors
(``float-quantized``) and FBGEMM store the same with other names and coarser scales. Scales of
activations are ignored: activations stay in the dtype that the model is served in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from predictor.linear.formats.format import TensorSpec
from predictor.linear.formats.scales import as_float32, multiply_by_blocks
from predictor.linear.formats.stored_tensors import (
    FLOATS,
    Shape,
    ceil_div,
    expect,
    one_role,
    refuse_others,
)

SCALES = ("weight_scale_inv", "weight_scale", "scale", "qscale_weight")
"""The names that the scale has in published checkpoints."""

ACTIVATION_SCALES = frozenset(
    {
        "activation_scale",
        "input_scale",
        "input_scale_ub",
        "input_zero_point",
        "output_scale",
        "prob_scale",
        "k_scale",
        "q_scale",
        "qscale_act",
        "v_scale",
    }
)
"""Scales of activations and of KV caches."""

_WEIGHTS = (torch.float8_e4m3fn, torch.float8_e5m2)
_SCALE_DTYPES = (*FLOATS, torch.float8_e8m0fnu, torch.uint8)


@dataclass(frozen=True, slots=True)
class Fp8:
    """FP8 weights.

    A checkpoint may store scales per output, or one scale, for some of its layers. This is seen
    from the shape of the scale.

    Attributes:
        block: The outputs and inputs that share a scale, 0 for all of them.
        dtype: The dtype of the weights.
        scale: The usual name of the scale.
        scale_dtype: The usual dtype of the scale.
    """

    block: tuple[int, int] = (128, 128)
    dtype: torch.dtype = torch.float8_e4m3fn
    scale: str = "weight_scale_inv"
    scale_dtype: torch.dtype = torch.float32

    @property
    def title(self) -> str:
        """The format as users see it."""
        height, width = self.block
        if self.block == (1, 32):
            return "mxfp8"
        if not width:
            return "fp8 (per channel)" if height else "fp8 (per tensor)"
        return f"fp8 (block {height}x{width})"

    @property
    def ignored(self) -> frozenset[str]:
        """Scales of activations."""
        return ACTIVATION_SCALES

    def tensors(self, out_features: int, in_features: int) -> dict[str, TensorSpec]:
        """Return the tensors that hold a matrix."""
        grid = self._grid(out_features, in_features)
        return {
            "weight": TensorSpec(self.dtype, (out_features, in_features)),
            self.scale: TensorSpec(self.scale_dtype, grid),
        }

    def accept(
        self, stored: Mapping[str, TensorSpec], out_features: int, in_features: int
    ) -> dict[str, TensorSpec]:
        """Return which of the stored tensors are served; see `WeightFormat`."""
        scale = one_role(stored, SCALES)
        served = {
            "weight": expect(stored, "weight", _WEIGHTS, [(out_features, in_features)]),
            scale: expect(stored, scale, _SCALE_DTYPES, self._grids(out_features, in_features)),
        }
        refuse_others(stored, served, self.ignored)
        return served

    def unpack(
        self, packed: Mapping[str, torch.Tensor], begin: int, end: int, dtype: torch.dtype
    ) -> torch.Tensor:
        """Return rows of the matrix; see `WeightFormat`."""
        weight = packed["weight"]
        rows, factor = to_float32(weight[begin:end])
        scale = as_float32(packed[one_role(packed, SCALES)]) * factor
        if scale.numel() == 1:
            rows.mul_(scale.reshape(()))
        elif scale.shape in ((len(weight),), (len(weight), 1)):
            rows.mul_(scale.reshape(-1, 1)[begin:end])
        else:
            multiply_by_blocks(rows, scale.view(len(scale), -1), begin, self.block)
        return rows.to(dtype)

    def _grid(self, out_features: int, in_features: int) -> Shape:
        height, width = self.block
        if not width:
            return (out_features, 1) if height else ()
        return ceil_div(out_features, height), ceil_div(in_features, width)

    def _grids(self, out_features: int, in_features: int) -> list[Shape]:
        grid = self._grid(out_features, in_features)
        coarse: list[Shape] = [(out_features, 1), (out_features,), (), (1,), (1, 1)]
        if len(grid) == 2:
            coarse.append((grid[0], 1, grid[1], 1))  # ModelOpt
        return [grid, *coarse]


def to_float32(weight: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Return FP8 weights in float32, and a factor by which they are still to be multiplied.

    On a processor torch casts E4M3 one by one. Moving its bits into a float16, whose exponent is
    biased by 8 more, is four times as fast. NaN, which no weight is, becomes a number.
    """
    if weight.dtype != torch.float8_e4m3fn or weight.device.type not in ("cpu", "meta"):
        return weight.to(torch.float32), 1.0
    bits = weight.view(torch.int8).to(torch.int16)
    bits <<= 7
    bits &= _NOT_THE_COPY_OF_THE_SIGN
    return bits.view(torch.float16).to(torch.float32), 256.0


_NOT_THE_COPY_OF_THE_SIGN = ~0x4000
