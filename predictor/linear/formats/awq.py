"""AWQ, version ``gemm``: integers of four bits in words of 32 bits along the outputs.

A word of ``qweight`` has the weights of one input for eight outputs, which are stored in the order
0, 2, 4, 6, 1, 3, 5, 7, lowest bits first. ``qzeros`` is the same with one row per group of inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from predictor.errors import CheckpointError
from predictor.linear.formats.format import TensorSpec
from predictor.linear.formats.packed_bits import unpack_words
from predictor.linear.formats.stored_tensors import accept_usual

_TOGETHER = 8
"""The outputs of a word."""


@dataclass(frozen=True, slots=True)
class Awq:
    """AWQ weights.

    Attributes:
        group: The inputs that share a scale; 0 for all inputs of an output.
    """

    group: int = 128

    @property
    def title(self) -> str:
        """The format as users see it."""
        return f"awq int4 ({f'groups of {self.group}' if self.group else 'per channel'})"

    @property
    def ignored(self) -> frozenset[str]:
        """Nothing: all that is stored is needed."""
        return frozenset()

    def tensors(self, out_features: int, in_features: int) -> dict[str, TensorSpec]:
        """Return the tensors that hold a matrix."""
        size = self.group or in_features
        if in_features % size:
            raise CheckpointError(f"has {in_features} inputs, which is not a multiple of {size}")
        if out_features % _TOGETHER:
            raise CheckpointError(
                f"has {out_features} outputs, which is not a multiple of {_TOGETHER}"
            )
        groups, words = in_features // size, out_features // _TOGETHER
        return {
            "qweight": TensorSpec(torch.int32, (in_features, words)),
            "qzeros": TensorSpec(torch.int32, (groups, words)),
            "scales": TensorSpec(torch.float16, (groups, out_features)),
        }

    def accept(
        self, stored: Mapping[str, TensorSpec], out_features: int, in_features: int
    ) -> dict[str, TensorSpec]:
        """Return which of the stored tensors are served; see `WeightFormat`."""
        usual = self.tensors(out_features, in_features)
        return accept_usual(stored, usual, self.ignored, scales=["scales"])

    def unpack(
        self, packed: Mapping[str, torch.Tensor], begin: int, end: int, dtype: torch.dtype
    ) -> torch.Tensor:
        """Return rows of the matrix, transposed in memory as they are stored."""
        words = slice(begin // _TOGETHER, end // _TOGETHER)
        columns = _unpack(packed["qweight"][:, words])
        scale = packed["scales"][:, begin:end].to(torch.float32)
        grouped = columns.view(len(scale), -1, end - begin)
        grouped.sub_(_unpack(packed["qzeros"][:, words])[:, None, :])
        grouped.mul_(scale[:, None, :])
        return columns.to(dtype).t()


def _unpack(words: torch.Tensor) -> torch.Tensor:
    """Return the integers in the order of the outputs, of shape (rows, outputs), in float32."""
    ordered = _spread(words >> 16)
    ordered <<= 4
    ordered |= _spread(words.clone())
    return unpack_words(ordered, 4, signed=False)


def _spread(words: torch.Tensor) -> torch.Tensor:
    """Put gaps of four bits between the lower four numbers of words, in place, and return them."""
    words &= 0xFFFF
    words |= words << 8
    words &= 0x00FF00FF
    words |= words << 4
    words &= 0x0F0F0F0F
    return words
