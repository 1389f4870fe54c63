"""Which blocks we read ourselves, and which offloaded parts are left to Accelerate's hooks."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence

from transformers import PreTrainedModel

from predictor.placement.plan import Placement

logger = logging.getLogger(__name__)


def streamed_blocks(
    placement: Placement, skeleton: PreTrainedModel, blocks: Sequence[str]
) -> tuple[str, ...]:
    """Return the blocks that we stream: offloaded whole, and without a weight that is tied."""
    if not placement.by_block:
        return ()
    return _untied(skeleton, [name for name in blocks if name in placement.offloaded])


def kept_blocks(
    placement: Placement, skeleton: PreTrainedModel, blocks: Sequence[str]
) -> tuple[str, ...]:
    """Return the blocks that stay where they execute, each as a whole and without a tied weight."""
    whole = [name for name in blocks if name in placement.device_map]
    return _untied(skeleton, [name for name in whole if name not in placement.offloaded])


def count_bytes(skeleton: PreTrainedModel, modules: Iterable[str]) -> int:
    """Return the bytes of the parameters of modules, by name."""
    members = map(skeleton.get_submodule, modules)
    return sum(parameter.nbytes for module in members for parameter in module.parameters())


def _untied(skeleton: PreTrainedModel, blocks: Sequence[str]) -> tuple[str, ...]:
    owners = Counter(id(p) for _, p in skeleton.named_parameters(remove_duplicate=False))
    return tuple(
        name
        for name in blocks
        if all(owners[id(p)] == 1 for p in skeleton.get_submodule(name).parameters())
    )


def device_map(
    placement: Placement, skeleton: PreTrainedModel, in_store: Sequence[str]
) -> dict[str, int | str]:
    """Return the placement's map, in which blocks of a store are on the meta device.

    Their buffers are computed, and are on the device where the block executes.
    """
    offloaded, main = placement.offloaded, placement.execution_device
    buffers = {
        f"{name}.{key}": main if name in offloaded else placement.device_map[name]
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
