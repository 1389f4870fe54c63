"""GPTQ: integers in words of 32 bits along the inputs, with zero points along the outputs.

``qweight`` has one word for so many inputs of an output as fit, lowest bits first. ``qzeros`` and
``scales`` have one row per group of inputs. Checkpoints of format ``gptq`` store zero points less
one, modulo the range; those of ``gptq_v2`` store them as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from predictor.errors import CheckpointError
from predictor.linear.formats.format import TensorSpec
from predictor.linear.formats.packed_bits import unpack_words
from predictor.linear.formats.scales import multiply_by_groups
from predictor.linear.formats.stored_tensors import accept_usual

_WORD = 32
"""The bits of a word."""


@dataclass(frozen=True, slots=True)
class Gptq:
    """GPTQ weights.

    Attributes:
        bits: 4 or 8.
        group: The inputs that share a scale; 0 for all inputs of an output.
        symmetric: All zero points are the middle of the range, and not read.
        act_order: ``g_idx`` says which group an input belongs to; else neighbours share a group.
        zeros_less_one: Zero points are stored less one.
    """

    bits: int = 4
    group: int = 128
    symmetric: bool = True
    act_order: bool = False
    zeros_less_one: bool = True

    @property
    def title(self) -> str:
        """The format as users see it."""
        sharing = f"groups of {self.group}" if self.group else "per channel"
        return f"gptq int{self.bits} ({sharing}{', act-order' if self.act_order else ''})"

    @property
    def ignored(self) -> frozenset[str]:
        """What is not read of what is always stored."""
        needless = {"qzeros": self.symmetric, "g_idx": not self.act_order}
        return frozenset(role for role in needless if needless[role])

    def tensors(self, out_features: int, in_features: int) -> dict[str, TensorSpec]:
        """Return the tensors that hold a matrix."""
        words = self._words("inputs", in_features)
        groups = self._groups(in_features)
        zeros = (groups, self._words("outputs", out_features))
        specs = {
            "qweight": TensorSpec(torch.int32, (words, out_features)),
            "qzeros": TensorSpec(torch.int32, zeros),
            "scales": TensorSpec(torch.float16, (groups, out_features)),
            "g_idx": TensorSpec(torch.int32, (in_features,)),
        }
        return {role: spec for role, spec in specs.items() if role not in self.ignored}

    def accept(
        self, stored: Mapping[str, TensorSpec], out_features: int, in_features: int
    ) -> dict[str, TensorSpec]:
        """Return which of the stored tensors are served; see `WeightFormat`."""
        usual = self.tensors(out_features, in_features)
        return accept_usual(stored, usual, self.ignored, scales=["scales"])

    def unpack(
        self, packed: Mapping[str, torch.Tensor], begin: int, end: int, dtype: torch.dtype
    ) -> torch.Tensor:
        """Return rows of the matrix; see `WeightFormat`."""
        words = packed["qweight"][:, begin:end].contiguous().t()  # is turned fast if contiguous
        rows = unpack_words(words, self.bits, signed=self.symmetric)
        scale = packed["scales"][:, begin:end].t().to(torch.float32)
        zero = None if self.symmetric else self._unpack_zeros(packed["qzeros"], begin, end)
        if self.act_order:
            group_of_input = packed["g_idx"]
            scale = scale.index_select(1, group_of_input)
            zero = None if zero is None else zero.index_select(1, group_of_input)
        multiply_by_groups(rows, scale, zero)
        return rows.to(dtype)

    def _unpack_zeros(self, zeros: torch.Tensor, begin: int, end: int) -> torch.Tensor:
        words = zeros[:, begin * self.bits // _WORD : end * self.bits // _WORD]
        unpacked = unpack_words(words, self.bits, signed=False).t()
        if not self.zeros_less_one:
            return unpacked
        return (unpacked + 1).remainder(2**self.bits)

    def _groups(self, in_features: int) -> int:
        size = self.group or in_features
        if in_features % size:
            raise CheckpointError(f"has {in_features} inputs, which is not a multiple of {size}")
        return in_features // size

    def _words(self, kind: str, count: int) -> int:
        together = _WORD // self.bits
        if count % together:
            raise CheckpointError(f"has {count} {kind}, which is not a multiple of {together}")
        return count // together
