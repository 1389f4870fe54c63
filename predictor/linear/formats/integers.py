"""Integers of compressed-tensors: ``int-quantized`` and ``pack-quantized``.

``int-quantized`` has one byte a weight. ``pack-quantized`` has words of 32 bits, each with the
weights of as many inputs as fit, lowest bits first, to which half of their range is added. Scales
are per group of inputs, per output, per block, or one for the whole matrix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from predictor.errors import CheckpointError
from predictor.linear.formats.format import TensorSpec
from predictor.linear.formats.fp8 import ACTIVATION_SCALES
from predictor.linear.formats.packed_bits import unpack_words
from predictor.linear.formats.scales import multiply_by_blocks, multiply_by_groups
from predictor.linear.formats.stored_tensors import (
    FLOATS,
    Shape,
    ceil_div,
    expect,
    refuse_others,
)

_WORD = 32
"""The bits of a word."""


@dataclass(frozen=True, slots=True)
class PackedIntegers:
    """Integers of four or eight bits in 32-bit words.

    Attributes:
        bits: 4 or 8.
        group: The inputs that share a scale; 0 for all inputs of an output.
        symmetric: There are no zero points.
        whole: There is one scale for the whole matrix; `group` is 0.
    """

    bits: int
    group: int = 0
    symmetric: bool = True
    whole: bool = False

    @property
    def title(self) -> str:
        """The format as users see it."""
        return f"int{self.bits} ({_sharing(self.group, self.whole)})"

    @property
    def ignored(self) -> frozenset[str]:
        """Scales of activations, and the shape, which the layer tells."""
        return ACTIVATION_SCALES | {"input_global_scale", "weight_shape"}

    def tensors(self, out_features: int, in_features: int) -> dict[str, TensorSpec]:
        """Return the tensors that hold a matrix."""
        scales = _scale_shapes(self.group, out_features, in_features, whole=self.whole)[0]
        words = (out_features, self._words(in_features))
        specs = {
            "weight_packed": TensorSpec(torch.int32, words),
            "weight_scale": TensorSpec(torch.bfloat16, scales),
        }
        if not self.symmetric:
            specs["weight_zero_point"] = self._zero_points(out_features, scales)
        return specs

    def accept(
        self, stored: Mapping[str, TensorSpec], out_features: int, in_features: int
    ) -> dict[str, TensorSpec]:
        """Return which of the stored tensors are served; see `WeightFormat`."""
        usual = self.tensors(out_features, in_features)
        scales = _scale_shapes(self.group, out_features, in_features, whole=self.whole)
        served = {
            "weight_packed": _as_usual(stored, "weight_packed", usual),
            "weight_scale": expect(stored, "weight_scale", FLOATS, scales),
        }
        if not self.symmetric:
            served["weight_zero_point"] = _as_usual(stored, "weight_zero_point", usual)
        if "weight_g_idx" in stored:
            indices = (torch.int32, torch.int64)
            served["weight_g_idx"] = expect(stored, "weight_g_idx", indices, [(in_features,)])
        refuse_others(stored, served, self.ignored)
        return served

    def unpack(
        self, packed: Mapping[str, torch.Tensor], begin: int, end: int, dtype: torch.dtype
    ) -> torch.Tensor:
        """Return rows of the matrix; see `WeightFormat`."""
        packed_zeros = not self.symmetric and not self.whole
        words = packed["weight_packed"][begin:end]
        rows = unpack_words(words, self.bits, signed=not packed_zeros)
        scale = _rows_of(packed["weight_scale"], begin, end)
        zero = None
        if packed_zeros:
            zero = self._unpack_zeros(packed["weight_zero_point"], begin, end)
        elif not self.symmetric:
            zero = _rows_of(packed["weight_zero_point"], begin, end)
        if "weight_g_idx" in packed:
            order = packed["weight_g_idx"]
            scale = scale.index_select(1, order)
            zero = None if zero is None else zero.index_select(1, order)
        multiply_by_groups(rows, scale, zero)
        return rows.to(dtype)

    def _words(self, in_features: int) -> int:
        together = _WORD // self.bits
        if in_features % together:
            raise CheckpointError(
                f"has {in_features} inputs, which is not a multiple of {together}"
            )
        return in_features // together

    def _zero_points(self, out_features: int, scales: Shape) -> TensorSpec:
        if self.whole:
            return TensorSpec(torch.int8, scales)
        words = ceil_div(out_features * self.bits, _WORD)
        return TensorSpec(torch.int32, (words, scales[1]))

    def _unpack_zeros(self, zeros: torch.Tensor, begin: int, end: int) -> torch.Tensor:
        first, last = begin * self.bits // _WORD, ceil_div(end * self.bits, _WORD)
        columns = unpack_words(zeros[first:last].t(), self.bits, signed=False)
        return columns.t()[: end - begin]


@dataclass(frozen=True, slots=True)
class Integers:
    """Integers of eight bits, one byte each.

    Attributes:
        group: The inputs that share a scale; 0 for all inputs of an output.
        symmetric: There are no zero points.
        whole: There is one scale for the whole matrix; `group` is 0.
        block: The outputs and inputs that share a scale; `group` is 0.
    """

    group: int = 0
    symmetric: bool = True
    whole: bool = False
    block: tuple[int, int] | None = None

    @property
    def title(self) -> str:
        """The format as users see it."""
        if self.block:
            return f"int8 (block {self.block[0]}x{self.block[1]})"
        return f"int8 ({_sharing(self.group, self.whole)})"

    @property
    def ignored(self) -> frozenset[str]:
        """Scales of activations."""
        return ACTIVATION_SCALES

    def tensors(self, out_features: int, in_features: int) -> dict[str, TensorSpec]:
        """Return the tensors that hold a matrix."""
        scales = self._scale_shapes(out_features, in_features)[0]
        specs = {
            "weight": TensorSpec(torch.int8, (out_features, in_features)),
            "weight_scale": TensorSpec(torch.bfloat16, scales),
        }
        if not self.symmetric:
            specs["weight_zero_point"] = TensorSpec(torch.int8, scales)
        return specs

    def accept(
        self, stored: Mapping[str, TensorSpec], out_features: int, in_features: int
    ) -> dict[str, TensorSpec]:
        """Return which of the stored tensors are served; see `WeightFormat`."""
        scales = self._scale_shapes(out_features, in_features)
        served = {
            "weight": expect(stored, "weight", (torch.int8,), [(out_features, in_features)]),
            "weight_scale": expect(stored, "weight_scale", FLOATS, scales),
        }
        if not self.symmetric:
            role = "weight_zero_point"
            served[role] = expect(stored, role, (torch.int8, *FLOATS), scales)
        refuse_others(stored, served, self.ignored)
        return served

    def unpack(
        self, packed: Mapping[str, torch.Tensor], begin: int, end: int, dtype: torch.dtype
    ) -> torch.Tensor:
        """Return rows of the matrix; see `WeightFormat`."""
        rows = packed["weight"][begin:end].to(torch.float32)
        scale = packed["weight_scale"]
        if self.block:
            multiply_by_blocks(rows, scale.to(torch.float32), begin, self.block)
            return rows.to(dtype)
        zero = None
        if not self.symmetric:
            zero = _rows_of(packed["weight_zero_point"], begin, end)
        multiply_by_groups(rows, _rows_of(scale, begin, end), zero)
        return rows.to(dtype)

    @property
    def has_output_scales(self) -> bool:
        """Nothing else belongs to a matrix, unless scales are shared by less than an output."""
        return self.symmetric and not self.group and self.block is None

    def integers(
        self, packed: Mapping[str, torch.Tensor], begin: int, end: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return rows of the matrix and their scales; see `IntegerFormat`."""
        scale = _rows_of(packed["weight_scale"], begin, end)
        return packed["weight"][begin:end], scale.reshape(-1).expand(end - begin)

    def _scale_shapes(self, out_features: int, in_features: int) -> list[Shape]:
        if not self.block:
            return _scale_shapes(self.group, out_features, in_features, whole=self.whole)
        height, width = self.block
        return [(ceil_div(out_features, height), ceil_div(in_features, width))]


def _sharing(group: int, whole: bool) -> str:
    if whole:
        return "per tensor"
    return f"groups of {group}" if group else "per channel"


def _scale_shapes(group: int, out_features: int, in_features: int, *, whole: bool) -> list[Shape]:
    if whole:
        return [(1,), (), (1, 1)]
    if not group:
        return [(out_features, 1), (out_features,)]
    if in_features % group:
        raise CheckpointError(f"has {in_features} inputs, which is not a multiple of {group}")
    return [(out_features, in_features // group)]


def _as_usual(
    stored: Mapping[str, TensorSpec], role: str, usual: Mapping[str, TensorSpec]
) -> TensorSpec:
    return expect(stored, role, (usual[role].dtype,), (usual[role].shape,))


def _rows_of(scale: torch.Tensor, begin: int, end: int) -> torch.Tensor:
    """Return the scales or zero points of some outputs, of shape (outputs or 1, groups)."""
    if scale.numel() == 1:
        return scale.to(torch.float32).reshape(1, 1)
    rows = scale[begin:end].to(torch.float32)
    return rows[:, None] if rows.dim() == 1 else rows
