"""The memory of expert slots, which have one size, and the tensors of an expert in each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from predictor.mixture.forward import ExpertWeights
from predictor.mixture.router import Guess
from predictor.weights.direct_io import AlignedBuffer
from predictor.weights.experts.extents import ExpertExtent, SlotLayout
from predictor.weights.extents import view_of

_BUFFER = 2**30
"""Bytes of one buffer of slots: buffers are page-locked as far as a limit goes."""


@dataclass(frozen=True, slots=True)
class LayerExperts:
    """The experts of one layer on disk.

    Attributes:
        name: The name of the experts module.
        layout: The tensors of an expert in a slot.
        extents: The experts, by their number.
        quota: Experts that stay in main memory.
        device_quota: Experts that stay on an accelerator; 0 if the processor computes.
        guess: Guesses the experts of a forward pass; None if there is no guess.
    """

    name: str
    layout: SlotLayout
    extents: tuple[ExpertExtent, ...]
    quota: int
    device_quota: int = 0
    guess: Guess | None = None


def allocate(count: int, size: int) -> tuple[AlignedBuffer, ...]:
    """Return buffers of main memory for slots.

    Args:
        count: The number of slots.
        size: Bytes of a slot, whole pages.
    """
    each = max(1, _BUFFER // size)
    return tuple(AlignedBuffer(min(each, count - begin) * size) for begin in range(0, count, each))


def slots_in(buffer: AlignedBuffer, size: int) -> Iterable[torch.Tensor]:
    """Yield the slots of a buffer, of uint8."""
    for at in range(0, len(buffer.tensor) // size * size, size):
        yield buffer.tensor[at : at + size]


def views_by_layout(
    slots: Sequence[torch.Tensor], layers: Iterable[LayerExperts]
) -> dict[SlotLayout, list[ExpertWeights]]:
    """Return the tensors of an expert in each slot, for each layout of the layers."""
    layouts = {layer.layout for layer in layers}
    return {layout: [_views_of(slot, layout) for slot in slots] for layout in layouts}


def _views_of(slot: torch.Tensor, layout: SlotLayout) -> ExpertWeights:
    """Return the tensors of an expert in a slot of uint8."""
    return {tensor.name: view_of(slot, tensor) for tensor in layout.tensors}
