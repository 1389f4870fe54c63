"""Holds what a loaded model really takes of main memory against what was planned."""

from __future__ import annotations

import logging

from predictor.placement.plan import Placement
from predictor.quantity import format_bytes

logger = logging.getLogger(__name__)

_MOST = 0.05
"""The difference, as a fraction of the plan, from which it is told."""

_NOISE = 64 * 1024**2
"""Bytes that loading leaves behind whatever the model: caches of libraries, allocators' arenas."""


def compare(placement: Placement, *, held: int) -> None:
    """Warns where loading took more or less than was planned for weights and buffers.

    Args:
        placement: The plan.
        held: Bytes of anonymous memory that loading took.
    """
    tier = placement.tier("cpu")
    # What only moves blocks to their places while they are loaded is free again.
    planned = tier.weights + (tier.staging if placement.tier("disk").units else 0)
    if abs(held - planned) > _MOST * planned + _NOISE:
        logger.warning(
            "Weights and buffers take %s of main memory, and %s were planned",
            format_bytes(held),
            format_bytes(planned),
        )
