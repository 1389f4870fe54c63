"""The weights of one linear layer, plain or packed, as kernels take them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from predictor.linear.formats.format import WeightFormat

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
        return self.format.unpack(self.tensors, begin, end, dtype)
