"""Reads the blocks that stay in memory from a store, or from converted weights.

Blocks that were quantised while they were loaded are in the offload store too, so that later starts
read them packed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from predictor.placement.plan import Placement
from predictor.private.torch import own_buffers, parameter_slot
from predictor.weights.direct_io import AlignedBuffer, open_block_reader
from predictor.weights.experts.extents import Extents
from predictor.weights.extents import BlockExtent, parameters_in
from predictor.weights.offloaded_parts import count_bytes, kept_blocks
from predictor.weights.progress import Progress
from predictor.weights.store.folder import StoreFolder


def blocks_for_store(
    placement: Placement,
    skeleton: PreTrainedModel,
    blocks: Sequence[str],
    folder: StoreFolder,
    *,
    streamed: Sequence[str],
    free: int,
) -> tuple[str, ...]:
    """Return the blocks that stay in memory and are kept in the store, too.

    Those are that are quantised while they are loaded, if there is a store that can have them all,
    or a disk with room for one and for the converted weights that it is made of.

    Args:
        placement: The device of each block.
        skeleton: The model on the meta device.
        blocks: The names of its blocks.
        folder: The folder of the store.
        streamed: The modules that are streamed from disk.
        free: Bytes that may be written on a disk; 0 without one.
    """
    kept = kept_blocks(placement, skeleton, blocks)
    stored = folder.file.stat().st_size if folder.file.exists() else 0
    is_stored = stored >= count_bytes(skeleton, [*streamed, *kept])
    return kept if is_stored or 2 * count_bytes(skeleton, [""]) <= free else ()


def read_kept_blocks(
    model: nn.Module,
    extents: Extents,
    kept: Collection[str],
    placement: Placement,
    progress: Progress,
) -> tuple[Extents, int]:
    """Give the blocks that stay in memory their parameters.

    Args:
        model: The model. Parameters of the blocks are on the meta device.
        extents: The extents of these blocks among others.
        kept: The names of these blocks.
        placement: The device of each block.
        progress: Counts the blocks.

    Returns:
        The extents of the others, and the bytes that were read.

    Raises:
        OSError: A file cannot be read.
    """
    blocks = [block for block in extents.blocks if block.name in kept]
    progress.begin("reading weights", {block.name: block.size for block in blocks})
    try:
        with open_block_reader() as reader:
            for block in blocks:
                buffer = AlignedBuffer(block.size)
                reader.read(block, buffer)
                _assign(model, block, buffer.tensor, placement.device_map[block.name])
                progress.done(block.name)
    finally:
        progress.end()
    others = tuple(block for block in extents.blocks if block.name not in kept)
    return replace(extents, blocks=others), sum(block.size for block in blocks)


def _assign(model: nn.Module, block: BlockExtent, data: torch.Tensor, device: int | str) -> None:
    """Give a block its parameters, which on the processor are views of what was read.

    Its buffers were computed, on the processor perhaps.
    """
    parameters: Any = parameters_in(data.to(device), block.tensors)
    for tensor, parameter in zip(block.tensors, parameters, strict=True):
        own, name = parameter_slot(model, tensor.name)
        own[name] = parameter
    for module in model.get_submodule(block.name).modules():
        buffers = own_buffers(module)
        for name, value in buffers.items():
            buffers[name] = None if value is None else value.to(device)
