"""Which offloaded parts we stream in blocks, and which are left to Accelerate's hooks."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

from transformers import PreTrainedModel

from predictor.placement.plan import Placement

logger = logging.getLogger(__name__)


def streamed_blocks(
    placement: Placement, skeleton: PreTrainedModel, blocks: Sequence[str]
) -> tuple[str, ...]:
    """Return the blocks that we stream: offloaded whole, and without a weight that is tied."""
    if not placement.by_block:
        return ()
    owners = Counter(id(p) for _, p in skeleton.named_parameters(remove_duplicate=False))
    offloaded = placement.offloaded
    return tuple(
        name
        for name in blocks
        if name in offloaded
        and all(owners[id(p)] == 1 for p in skeleton.get_submodule(name).parameters())
    )


def device_map(
    placement: Placement, skeleton: PreTrainedModel, in_store: Sequence[str]
) -> dict[str, int | str]:
    """Return the placement's map, in which blocks of a store are on the meta device.

    Their buffers are computed, and are on the device where the block executes.
    """
    buffers = {
        f"{name}.{key}": placement.execution_device
        for name in in_store
        for key, _ in skeleton.get_submodule(name).named_buffers()
    }
    return placement.device_map | dict.fromkeys(in_store, "meta") | buffers


def log_accelerates_part(
    placement: Placement, streamed: Sequence[str], blocks: Sequence[str]
) -> None:
    """Tell the log what Accelerate streams, and why, if it streams anything."""
    by_accelerate = placement.offloaded - set(streamed)
    if by_accelerate and not by_accelerate & set(blocks):
        logger.info("Offloaded parts outside of blocks are streamed by Accelerate's hooks")
    elif by_accelerate:
        reason = "the checkpoint is not stored as it is served, and there is no offload store"
        if not placement.by_block:
            reason = "there is no memory for whole blocks, or the model does not call them so"
        logger.warning("Blocks are streamed by Accelerate's hooks, which is slow: %s", reason)
