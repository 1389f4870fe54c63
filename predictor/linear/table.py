"""Which kernel computes a linear layer: for each kind of layers and each number of rows one.

A model has one `LinearKernels`, and its layers ask it, or the `LayerKernels` of their kind, which
is quicker. The choice depends on the rows of a forward pass. So a row's value may change with the
company that it has, by as much as kernels differ: not in float32, and within the rounding of the
serving dtype otherwise (see `kernels`).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from predictor.linear.kernels import Compute, Kernel, LayerKind, allocate_most, kernels_for
from predictor.linear.weight import LinearWeight

BUCKETS = 12
"""Buckets of rows: 1, 2, 3 to 4, 5 to 8, and so on; the last one has no end."""


def bucket_of(rows: int) -> int:
    """Return the bucket of so many rows."""
    return min(max(rows - 1, 0).bit_length(), BUCKETS - 1)


class LayerKernels:
    """The kernels of one kind of layers, by buckets of rows.

    Attributes:
        kind: The kind.
        candidates: The kernels that can compute it.
        chosen: The chosen kernel of each bucket.
    """

    __slots__ = ("_computes", "candidates", "chosen", "kind")

    def __init__(self, kind: LayerKind) -> None:
        """Begin with the kernel that needs no timing to be good."""
        self.kind = kind
        self.candidates = kernels_for(kind)
        self.chosen: list[Kernel] = [self.candidates[0]] * BUCKETS
        self._computes: list[Compute] = [kernel.compute for kernel in self.chosen]

    def choose(self, bucket: int, kernel: Kernel) -> None:
        """Use a kernel from now on."""
        self.chosen[bucket] = kernel
        self._computes[bucket] = kernel.compute

    def linear(
        self, x: torch.Tensor, weight: LinearWeight, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """Compute a layer of this kind.

        Args:
            x: The inputs, of shape (..., in).
            weight: The weights.
            bias: The bias, of shape (out,), or None.
        """
        rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
        count = rows.shape[0]
        if x.is_meta:
            result = allocate_most(rows, weight, bias)
        else:
            result = self._computes[bucket_of(count)](rows, weight, bias)
        return result if rows is x else result.view(*x.shape[:-1], result.shape[-1])


class LinearKernels:
    """The kernels of one model's linear layers."""

    def __init__(self) -> None:
        """Begin without any kind of layers."""
        self._by_kind: dict[LayerKind, LayerKernels] = {}

    def __iter__(self) -> Iterator[LayerKernels]:
        """Return the kernels of all kinds so far."""
        return iter(self._by_kind.values())

    def of(self, kind: LayerKind) -> LayerKernels:
        """Return the kernels of a kind of layers."""
        kernels = self._by_kind.get(kind)
        if kernels is None:
            kernels = self._by_kind[kind] = LayerKernels(kind)
        return kernels

    def linear(
        self, x: torch.Tensor, weight: LinearWeight, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """Compute a layer of any kind; see `LayerKernels.linear`."""
        kind = LayerKind(
            weight.format, x.dtype, x.device.type, weight.out_features, weight.in_features
        )
        return self.of(kind).linear(x, weight, bias)


KERNELS = LinearKernels()
"""The kernels of the model that this process serves."""
