"""4-bit integers with a scale and a zero per group of inputs: how `--weights_dtype int4` keeps one.

The tensors are what torch's `_weight_int4pack_mm_for_cpu` takes, so a processor computes with them
as they are. Its layout depends on the processor's vectors (`weight_to_int4pack_kernel` in
``aten/src/ATen/native/cpu/int4mm_kernel.cpp``, torch 2.13): outputs are packed in panels of 64 with
AVX-512 and of 32 otherwise. Within a panel the bytes of one input follow those of the one before;
the first half of the outputs is in the lower four bits, the second half in the upper. What is left
at the end is one narrower panel, in which neighbours share a byte.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from predictor.errors import CheckpointError
from predictor.linear.formats.format import TensorSpec
from predictor.linear.formats.stored_tensors import accept_usual

WEIGHT, SCALES = "weight_int4", "weight_scale_and_zero"

_LARGEST, _MIDDLE = 15, 8

_SLOPES = (15 / 0.8, 15 / 0.9, 15, 14, 13, 12, 11, 10, 9, 8)
"""In how many steps the range of a group is divided. More than 15 cut its ends off a little, which
makes all steps finer, and the sum of squared errors is usually least so. With less, weights that
had four bits once, as many published ones had, get their own steps again although a group does not
use all of them."""


_PANEL = 64
"""Outputs of a panel by default."""


@dataclass(frozen=True, slots=True)
class Int4:
    """Integers from -8 to 7, times a scale, plus a zero, both in bfloat16 and per group of inputs.

    Attributes:
        group: Inputs that share a scale and a zero: 32, 64, 128 or 256.
        panel: Outputs that are packed together: 64 or 32, see the module.
    """

    group: int = 32
    panel: int = _PANEL

    @classmethod
    def here(cls, group: int = 32) -> Int4:
        """Return the format whose layout this processor computes with."""
        return cls(group, panel_here() or _PANEL)

    @property
    def title(self) -> str:
        """The format as users see it."""
        return f"int4 (groups of {self.group})"

    @property
    def ignored(self) -> frozenset[str]:
        """Nothing: the tensors are our own."""
        return frozenset()

    def tensors(self, out_features: int, in_features: int) -> dict[str, TensorSpec]:
        """Return the tensors that hold a matrix."""
        if in_features % self.group or out_features % 16:
            raise CheckpointError(
                f"has {out_features} outputs and {in_features} inputs, but int4 needs multiples of "
                f"16 and of {self.group}"
            )
        return {
            WEIGHT: TensorSpec(torch.uint8, (out_features, in_features // 2)),
            SCALES: TensorSpec(torch.bfloat16, (in_features // self.group, out_features, 2)),
        }

    @property
    def key(self) -> str:
        """The layout, for the names of files that hold it."""
        return f"int4-{self.group}-{self.panel}"

    @property
    def axes(self) -> dict[str, int]:
        """By the role of a tensor, its dimension that the outputs are along."""
        return {WEIGHT: 0, SCALES: 1}

    def accept(
        self, stored: Mapping[str, TensorSpec], out_features: int, in_features: int
    ) -> dict[str, TensorSpec]:
        """Return which of the stored tensors are served; see `WeightFormat`."""
        return accept_usual(stored, self.tensors(out_features, in_features), self.ignored)

    def unpack(
        self, packed: Mapping[str, torch.Tensor], begin: int, end: int, dtype: torch.dtype
    ) -> torch.Tensor:
        """Return rows of the matrix, a view of its transpose; see `WeightFormat`.

        Panels hold the transpose, so to unpack this is the quickest.
        """
        weight, scales = packed[WEIGHT], packed[SCALES]
        columns = 2 * weight.shape[1]
        panels = []
        for at, width in self._panels(begin, end):
            nibbles = weight[at : at + width].reshape(columns, width // 2)
            panels += self._outputs(nibbles & _LARGEST, nibbles >> 4)
        unpacked = torch.cat(panels, 1).to(torch.float32)
        scale, zero = (scales[:, None, begin:end, i].to(torch.float32) for i in (0, 1))
        grouped = unpacked.view(columns // self.group, self.group, end - begin)
        grouped.sub_(_MIDDLE).mul_(scale).add_(zero)
        return unpacked.to(dtype).T

    def quantise(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the tensors that hold a matrix closely.

        Args:
            weight: The matrix, of shape (out, in), or some rows of it, a multiple of the panel.

        Raises:
            CheckpointError: A matrix of this shape cannot be kept in this format.
        """
        specs = self.tensors(*weight.shape)
        groups = weight.to(torch.float32).view(len(weight), -1, self.group)
        scale, zero = _best_steps(groups)
        steps = _to_steps(groups, scale, zero).to(torch.uint8).view(weight.shape)
        scales = torch.stack((scale, zero), 3).squeeze(2).transpose(0, 1)
        return {
            WEIGHT: self._pack(steps).view(specs[WEIGHT].shape),
            SCALES: scales.to(torch.bfloat16).contiguous(),
        }

    def _pack(self, steps: torch.Tensor) -> torch.Tensor:
        panels = []
        for at, width in self._panels(0, len(steps)):
            lower, upper = self._halves(steps[at : at + width].T)
            panels.append((lower | upper << 4).flatten())
        return torch.cat(panels)

    def _panels(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the first output and the width of each panel, from the beginning of one on."""
        for at in range(begin, end, self.panel):
            yield at, min(self.panel, end - at)

    def _halves(self, panel: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the outputs of the lower and the upper bits of a panel of shape (in, width)."""
        if panel.shape[1] < self.panel:
            return panel[:, 0::2], panel[:, 1::2]
        half = self.panel // 2
        return panel[:, :half], panel[:, half:]

    def _outputs(self, lower: torch.Tensor, upper: torch.Tensor) -> list[torch.Tensor]:
        """Return the outputs of a panel in order, of shape (in, outputs), in one part or two."""
        if 2 * lower.shape[1] < self.panel:
            return [torch.stack((lower, upper), 2).flatten(1)]
        return [lower, upper]


def panel_here() -> int | None:
    """Return the width of the panels that this processor computes with; None if it has no vectors.

    torch then computes with another layout, in which neighbouring outputs share a byte.
    """
    return {"AVX512": 64, "AVX2": 32}.get(torch.backends.cpu.get_cpu_capability())


def _best_steps(groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the scale and the zero with the least squared error, as bfloat16 has them.

    Args:
        groups: Of shape (out, groups, group).
    """
    low = groups.amin(2, keepdim=True)
    span = groups.amax(2, keepdim=True) - low
    offsets = (groups - low).div_(torch.where(span == 0, 1, span))
    best = torch.full_like(low, torch.inf)
    scale, zero = torch.zeros_like(low), torch.zeros_like(low)
    exact, steps = torch.empty_like(offsets), torch.empty_like(offsets)
    for slope in _SLOPES:
        shift = min(0.0, (_LARGEST - slope) / 2)
        torch.mul(offsets, slope, out=exact)
        torch.round(exact.add_(shift) if shift else exact, out=steps)
        error = steps.clamp_(0, _LARGEST) if shift else steps
        error = error.sub_(exact).square_().sum(2, keepdim=True).mul_(slope**-2)
        better = error < best
        best = torch.where(better, error, best)
        step = span / slope
        scale = torch.where(better, step, scale)
        zero = torch.where(better, low + (_MIDDLE - shift) * step, zero)
    return _fitted(groups, _rounded(scale), _rounded(zero))


def _fitted(
    groups: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the scale and the zero of the line through the steps, where that is closer."""
    steps = _to_steps(groups, scale, zero).sub_(_MIDDLE)
    before = (steps * scale).add_(zero).sub_(groups).square_().sum(2, keepdim=True)
    middle, mean = steps.mean(2, keepdim=True), groups.mean(2, keepdim=True)
    steps -= middle
    spread = steps.square().sum(2, keepdim=True)
    slope = (steps * groups).sum(2, keepdim=True) / torch.where(spread == 0, 1, spread)
    other_scale, other_zero = _rounded(slope), _rounded(mean - middle * slope)
    steps = _to_steps(groups, other_scale, other_zero).sub_(_MIDDLE)
    after = steps.mul_(other_scale).add_(other_zero).sub_(groups).square_().sum(2, keepdim=True)
    better = after < before
    return torch.where(better, other_scale, scale), torch.where(better, other_zero, zero)


def _to_steps(groups: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
    divisor = torch.where(scale == 0, 1, scale)
    return ((groups - zero) / divisor).add_(_MIDDLE).round_().clamp_(0, _LARGEST)


def _rounded(values: torch.Tensor) -> torch.Tensor:
    return values.to(torch.bfloat16).to(torch.float32)
