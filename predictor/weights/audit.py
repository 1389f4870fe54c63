"""Compares the memory that a loaded model takes with the plan, in main memory and on GPUs.

A difference is logged and changes nothing. The plan is made in `placement`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch

from predictor.errors import LoadFailed, reason_of
from predictor.placement.plan import Placement, Tier
from predictor.quantity import format_bytes

logger = logging.getLogger(__name__)

_TOLERANCE = 0.05
"""The largest difference, as a fraction of the plan, that is not logged."""

_NOISE = 64 * 1024**2
"""Bytes that loading any model leaves behind: caches of libraries, arenas of allocators."""

_GPU_NOISE = 8 * 1024**2
"""The same on a GPU: torch allocates whole blocks of its memory, and cuBLAS takes some."""


def wake_gpus(placement: Placement) -> dict[str, int]:
    """Start the GPUs of a plan, and return by tier the bytes that torch has allocated there.

    A GPU's first product of matrices creates its context and loads libraries. That takes about
    half a GiB of main memory for any model, and so has to precede the measurement of loading.

    Raises:
        LoadFailed: A GPU has no memory for the product.
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
    """Return by tier the bytes that torch has allocated on the GPUs of a plan."""
    devices = {tier.name: torch.device(int(tier.name)) for tier in _gpus(placement)}
    return {
        name: int(_backend(device).memory_allocated(device)) for name, device in devices.items()
    }


def _backend(device: torch.device) -> Any:
    return torch.get_device_module(device)


def _gpus(placement: Placement) -> list[Tier]:
    """Return the GPUs that a plan uses."""
    main = str(placement.execution_device)
    tiers = (tier for tier in placement.tiers if tier.name not in ("cpu", "disk"))
    return [tier for tier in tiers if tier.units or tier.name == main]


def compare_gpus(
    placement: Placement, *, before: Mapping[str, int], after: Mapping[str, int], slots: int
) -> None:
    """Log a warning for each GPU of which loading took more or less memory than planned.

    Args:
        placement: The plan.
        before: By tier, the bytes in use before loading.
        after: By tier, the bytes in use after loading, without a KV cache.
        slots: Bytes of the executing GPU that blocks are streamed through.
    """
    for tier in _gpus(placement):
        planned = tier.weights + (slots if tier.name == str(placement.execution_device) else 0)
        held = after[tier.name] - before[tier.name]
        if abs(held - planned) > _TOLERANCE * planned + _GPU_NOISE:
            logger.warning(
                "Weights and buffers take %s of GPU %s, and %s were planned",
                format_bytes(held),
                tier.name,
                format_bytes(planned),
            )


def compare(placement: Placement, *, held: int, buffers: int) -> None:
    """Log a warning if loading took more or less main memory than planned.

    Args:
        placement: The plan.
        held: Bytes of anonymous memory that loading took.
        buffers: Bytes of the buffers that blocks are streamed through. The other staging memory
            of the plan is in use during loading, or during a forward pass.
    """
    planned = placement.tier("cpu").weights + buffers
    if abs(held - planned) > _TOLERANCE * planned + _NOISE:
        logger.warning(
            "Weights and buffers take %s of main memory, and %s were planned",
            format_bytes(held),
            format_bytes(planned),
        )
