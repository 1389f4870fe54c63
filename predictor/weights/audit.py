"""Holds what a loaded model really takes of memory, a GPU's too, against what was planned."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch

from predictor.errors import LoadFailed, reason_of
from predictor.placement.plan import Placement, Tier
from predictor.quantity import format_bytes

logger = logging.getLogger(__name__)

_MOST = 0.05
"""The difference, as a fraction of the plan, from which it is told."""

_NOISE = 64 * 1024**2
"""Bytes that loading leaves behind whatever the model: caches of libraries, allocators' arenas."""

_GPU_NOISE = 8 * 1024**2
"""The same of a GPU's memory, which torch gives out in whole blocks and cuBLAS takes some of."""


def wake_gpus(placement: Placement) -> dict[str, int]:
    """Starts the GPUs of a plan; returns by tier the bytes that torch has given out there.

    A GPU's first product of matrices makes its context and loads libraries, which takes about half
    a GiB of main memory whatever the model. It has to come before what loading takes is measured.

    Raises:
        LoadFailed: A GPU has no memory for it.
    """
    for tier in _gpus(placement):
        device = torch.device(int(tier.name))
        try:
            factor = torch.ones(16, 16, dtype=getattr(torch, placement.dtype), device=device)
            torch.mm(factor, factor)
            _backend(device).synchronize(device)
        except torch.OutOfMemoryError as error:
            raise LoadFailed(f"GPU {tier.name} has no memory left: {reason_of(error)}") from error
    return read_gpus(placement)


def read_gpus(placement: Placement) -> dict[str, int]:
    """Returns by tier the bytes that torch has given out on the GPUs of a plan."""
    devices = {tier.name: torch.device(int(tier.name)) for tier in _gpus(placement)}
    return {
        name: int(_backend(device).memory_allocated(device)) for name, device in devices.items()
    }


def _backend(device: torch.device) -> Any:
    return torch.get_device_module(device)


def _gpus(placement: Placement) -> list[Tier]:
    """The GPUs that a plan uses."""
    main = str(placement.execution_device)
    tiers = (tier for tier in placement.tiers if tier.name not in ("cpu", "disk"))
    return [tier for tier in tiers if tier.units or tier.name == main]


def compare_gpus(
    placement: Placement, *, before: Mapping[str, int], after: Mapping[str, int], slots: int
) -> None:
    """Warns where loading took more or less of a GPU's memory than was planned.

    Args:
        placement: The plan.
        before: By tier, the bytes in use before loading.
        after: The same after it, without a KV cache.
        slots: Bytes of the executing GPU that blocks are streamed through.
    """
    for tier in _gpus(placement):
        planned = tier.weights + (slots if tier.name == str(placement.execution_device) else 0)
        held = after[tier.name] - before[tier.name]
        if abs(held - planned) > _MOST * planned + _GPU_NOISE:
            logger.warning(
                "Weights and buffers take %s of GPU %s, and %s were planned",
                format_bytes(held),
                tier.name,
                format_bytes(planned),
            )


def compare(placement: Placement, *, held: int, buffers: int) -> None:
    """Warns where loading took more or less than was planned for weights, and buffers.

    Args:
        placement: The plan.
        held: Bytes of anonymous memory that loading took.
        buffers: Bytes of them that blocks are streamed through; what else was planned to move
            weights was needed while they were loaded, or is for the time of a pass.
    """
    planned = placement.tier("cpu").weights + buffers
    if abs(held - planned) > _MOST * planned + _NOISE:
        logger.warning(
            "Weights and buffers take %s of main memory, and %s were planned",
            format_bytes(held),
            format_bytes(planned),
        )
