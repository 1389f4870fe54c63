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
