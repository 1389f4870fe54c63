"""The weights of one linear layer, plain or packed, as kernels take them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch

from predictor.linear.formats.format import IntegerFormat, TensorSpec, WeightFormat
from predictor.live_bytes import LiveBytes

PLAIN = "weight"
"""The role of the matrix in a layer that is not packed."""


@dataclass(frozen=True, slots=True)
class LinearWeight:
    """A matrix of shape (out, in).

    Attributes:
        tensors: The tensors that hold it, by their roles; `PLAIN` alone if it is not packed.
        out_features: Its rows.
        in_features: Its columns.
        format: How it is packed; None for a plain matrix.
    """

    tensors: Mapping[str, torch.Tensor]
    out_features: int
    in_features: int
    format: WeightFormat | None = None

    @classmethod
    def plain(cls, matrix: torch.Tensor) -> LinearWeight:
        """Return the weights of a layer that is not packed."""
        out_features, in_features = matrix.shape
        return cls({PLAIN: matrix}, out_features, in_features)

    def rows(self, begin: int, end: int, dtype: torch.dtype) -> torch.Tensor:
        """Return rows of the matrix in a dtype; the bounds are those of `WeightFormat.unpack`."""
        if self.format is None:
            return self.tensors[PLAIN][begin:end].to(dtype)
        first, *_ = self.tensors.values()
        if first.is_meta:
            return self._rows_on_meta(self.format, begin, end, dtype)
        return self.format.unpack(self.tensors, begin, end, dtype)

    def integers(self, begin: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return rows and their scales of an `IntegerFormat` that has output scales."""
        return cast(IntegerFormat, self.format).integers(self.tensors, begin, end)

    def _rows_on_meta(
        self, weight_format: WeightFormat, begin: int, end: int, dtype: torch.dtype
    ) -> torch.Tensor:
        """Allocate what unpacking takes at one time; its operations are slow on the meta device."""
        specs = tuple(
            (role, TensorSpec(tensor.dtype, tuple(tensor.shape)))
            for role, tensor in self.tensors.items()
        )
        key: Any = weight_format
        peak = _peak_of_unpacking(key, specs, begin, end, dtype)
        beside = peak - dtype.itemsize * (end - begin) * self.in_features
        temporaries = torch.empty(max(0, beside), dtype=torch.uint8, device="meta")
        result = torch.empty(end - begin, self.in_features, dtype=dtype, device="meta")
        del temporaries
        return result


@functools.cache
def _peak_of_unpacking(
    weight_format: WeightFormat,
    specs: tuple[tuple[str, TensorSpec], ...],
    begin: int,
    end: int,
    dtype: torch.dtype,
) -> int:
    """Return the most bytes alive while rows are unpacked, the result among them."""
    tensors = {
        role: torch.empty(spec.shape, dtype=spec.dtype, device="meta") for role, spec in specs
    }
    with LiveBytes(excluded={tensor.untyped_storage() for tensor in tensors.values()}) as live:
        weight_format.unpack(tensors, begin, end, dtype)
    peak: int = live.peak
    return peak
