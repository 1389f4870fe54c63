"""Which layers of a model are packed, in which format, and in which of their own parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from predictor.linear.formats.format import TensorSpec, WeightFormat
from predictor.linear.weight import LinearWeight


@dataclass(frozen=True, slots=True)
class PackedMatrix:
    """A matrix of weights that a module keeps packed.

    Attributes:
        format: Its format.
        out_features: Its rows.
        in_features: Its columns.
        specs: Its tensors by their roles.
        names: The names of the module's parameters by the same roles.
    """

    format: WeightFormat
    out_features: int
    in_features: int
    specs: Mapping[str, TensorSpec]
    names: Mapping[str, str]

    def parameters(self, *leading: int) -> dict[str, nn.Parameter]:
        """Return the module's parameters by name, on the meta device.

        Args:
            leading: Dimensions before those of the matrix's own tensors.
        """
        tensors = self.allocate(*leading, device="meta")
        return {
            self.names[role]: nn.Parameter(tensor, requires_grad=False)
            for role, tensor in tensors.items()
        }

    def allocate(self, *leading: int, device: torch.device | str) -> dict[str, torch.Tensor]:
        """Return tensors for the matrix by their roles, not filled.

        Args:
            leading: Dimensions before those of the matrix's own tensors.
            device: Where they are.
        """
        return {
            role: torch.empty((*leading, *spec.shape), dtype=spec.dtype, device=device)
            for role, spec in self.specs.items()
        }

    def weight_in(self, parameters: Mapping[str, Any]) -> LinearWeight:
        """Return the matrix for kernels.

        Args:
            parameters: The module's parameters by name, without further dimensions.
        """
        tensors = {role: parameters[name] for role, name in self.names.items()}
        return LinearWeight(tensors, self.out_features, self.in_features, self.format)


@dataclass(frozen=True, slots=True)
class PackedExperts:
    """The experts of one module, each of which has these matrices.

    Attributes:
        count: The number of experts.
        parts: By the name of a parameter that the model has unpacked, the matrices that make it up,
            one below the other. Parameters have an entry for each expert in their first dimension.
        merged: Which of these parameters are stored in tensors for each expert, which transformers
            merges. The others are stored as the module has them.
    """

    count: int
    parts: Mapping[str, tuple[PackedMatrix, ...]]
    merged: frozenset[str] = frozenset()

    @property
    def matrices(self) -> Iterator[PackedMatrix]:
        """All matrices of an expert."""
        for parts in self.parts.values():
            yield from parts


@dataclass(frozen=True, slots=True)
class PackedLayers:
    """The packed layers of a model.

    Attributes:
        title: The formats as users see them.
        linears: The matrix of each packed linear layer, by the layer's name.
        experts: The packed experts, by the name of their module.
        quantised_to: The layout in which layers are packed while they are loaded, because the
            checkpoint has them unpacked; empty if it has them packed.
        dropped: Names of stored layers that the model does not have, such as those that predict
            further tokens.
    """

    title: str
    linears: Mapping[str, PackedMatrix] = field(default_factory=dict)
    experts: Mapping[str, PackedExperts] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    quantised_to: str = ""

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the log and the plan."""
        return tuple(
            f"{name} of the checkpoint is no part of the model, and is not served."
            for name in self.dropped
        )


NOTHING_PACKED = PackedLayers("")
"""The layers of a model that is not quantised."""
