"""8-bit integers with a scale per output: how `--weights_dtype int8` keeps a matrix.

The tensors are what torch's `_weight_int8pack_mm` takes (``aten/src/ATen/native/LinearAlgebra.cpp``
in torch 2.13), so a processor computes with them as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from predictor.linear.formats.format import TensorSpec
from predictor.linear.formats.scales import multiply_by_outputs
from predictor.linear.formats.stored_tensors import accept_usual

WEIGHT, SCALE = "weight_int8", "weight_scale"

_LARGEST = 127


@dataclass(frozen=True, slots=True)
class Int8:
    """Integers from -127 to 127, times a scale per output, in bfloat16."""

    @property
    def title(self) -> str:
        """The format as users see it."""
        return "int8 (per channel)"

    @property
    def ignored(self) -> frozenset[str]:
        """Nothing: the tensors are our own."""
        return frozenset()

    def tensors(self, out_features: int, in_features: int) -> dict[str, TensorSpec]:
        """Return the tensors that hold a matrix."""
        return {
            WEIGHT: TensorSpec(torch.int8, (out_features, in_features)),
            SCALE: TensorSpec(torch.bfloat16, (out_features,)),
        }

    @property
    def key(self) -> str:
        """The layout, for the names of files that hold it."""
        return "int8"

    @property
    def axes(self) -> dict[str, int]:
        """By the role of a tensor, its dimension that the outputs are along."""
        return {WEIGHT: 0, SCALE: 0}

    def accept(
        self, stored: Mapping[str, TensorSpec], out_features: int, in_features: int
    ) -> dict[str, TensorSpec]:
        """Return which of the stored tensors are served; see `WeightFormat`."""
        return accept_usual(stored, self.tensors(out_features, in_features), self.ignored)

    def unpack(
        self, packed: Mapping[str, torch.Tensor], begin: int, end: int, dtype: torch.dtype
    ) -> torch.Tensor:
        """Return rows of the matrix; see `WeightFormat`."""
        return multiply_by_outputs(*self.integers(packed, begin, end), dtype)

    @property
    def has_output_scales(self) -> bool:
        """Nothing else belongs to a matrix."""
        return True

    def integers(
        self, packed: Mapping[str, torch.Tensor], begin: int, end: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return rows of the matrix and their scales; see `IntegerFormat`."""
        return packed[WEIGHT][begin:end], packed[SCALE][begin:end].to(torch.float32)

    def quantise(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the tensors that hold a matrix most closely.

        The scale is rounded to bfloat16 before the weights are, so its rounding costs nothing.

        Args:
            weight: The matrix, of shape (out, in), or some rows of it.
        """
        exact = weight.to(torch.float32)
        scale = (exact.abs().amax(1) / _LARGEST).to(torch.bfloat16)
        divisor = torch.where(scale == 0, 1, scale).to(torch.float32)
        rounded = exact.div_(divisor[:, None]) if exact is not weight else exact / divisor[:, None]
        return {
            WEIGHT: rounded.round_().clamp_(-_LARGEST, _LARGEST).to(torch.int8),
            SCALE: scale,
        }
