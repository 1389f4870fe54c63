"""What a format of packed weights is: the tensors that it is made of, and how rows are unpacked.

The weights of a linear layer are a matrix of shape (out, in). A format keeps it in a few tensors,
each of which has a role: ``weight`` and ``weight_scale_inv``, or ``qweight``, ``scales``... Roles
are the names that the tensors have in published checkpoints, behind the layer's name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

ROWS = 256
"""Output features that are unpacked at one time by layers that compute in blocks: of 4,096 inputs
they take 4 MiB in float32, which stay in a processor's cache. Every format can be unpacked from any
multiple of it on."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """The dtype and the shape of a stored tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return self.dtype.itemsize * math.prod(self.shape)


class WeightFormat(Protocol):
    """A way to keep the weights of a linear layer. Formats are frozen and can be compared."""

    @property
    def title(self) -> str:
        """The format as users see it, for example ``fp8 (block 128x128)``."""

    @property
    def ignored(self) -> frozenset[str]:
        """Roles that may be stored and are not needed, such as scales of activations."""

    def tensors(self, out_features: int, in_features: int) -> dict[str, TensorSpec]:
        """Return the tensors that hold a matrix, by their roles, as they are usually published.

        Raises:
            CheckpointError: A matrix of this shape cannot be kept in this format.
        """

    def accept(
        self, stored: Mapping[str, TensorSpec], out_features: int, in_features: int
    ) -> dict[str, TensorSpec]:
        """Return which of the stored tensors of a layer are served, by their roles.

        Scales may be stored in another floating dtype than `tensors` says, and tensors that need
        not be there may be missing.

        Args:
            stored: The tensors in the checkpoint's files, by their roles, bias excluded.
            out_features: The outputs of the layer.
            in_features: The inputs of the layer.

        Raises:
            CheckpointError: They are not a matrix of this shape in this format; the sentence ends
                with what is wrong, and its subject is left to the caller.
        """

    def unpack(
        self, packed: Mapping[str, torch.Tensor], begin: int, end: int, dtype: torch.dtype
    ) -> torch.Tensor:
        """Return rows of the matrix, of shape (end - begin, in).

        Their memory is transposed if the format stores inputs first, because turning it would cost
        a pass over them, and matrix products do without.

        Products with scales are computed in float32 and rounded once, so float32 gives the values
        that the format defines.

        Args:
            packed: The served tensors by their roles, on any device, meta included. Nothing else is
                read from the device that they are on.
            begin: The first output feature, a multiple of `ROWS`.
            end: Behind the last output feature: a multiple of `ROWS`, or the number of outputs.
            dtype: The dtype of the result.
        """


class IntegerFormat(WeightFormat, Protocol):
    """A format whose matrices may be integers of eight bits, times a scale per output."""

    @property
    def has_output_scales(self) -> bool:
        """Whether nothing else belongs to a matrix: neither groups of inputs nor zero points."""

    def integers(
        self, packed: Mapping[str, torch.Tensor], begin: int, end: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return rows of the matrix, in int8, and their scales, of shape (rows,), in float32.

        Args:
            packed: The served tensors by their roles; the format `has_output_scales`.
            begin: The first output feature.
            end: Behind the last output feature.
        """
