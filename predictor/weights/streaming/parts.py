"""Streams all offloaded parts of a model: those of blocks, and those outside of blocks.

Parts outside of blocks have a ring of their own, with one slot: the head is read while the blocks
compute, and the embeddings when the head has run. Modules that share weights are read from one
place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from predictor.metrics import WeightMetrics
from predictor.placement.buffers import PART_BUFFERS, STREAM_BUFFERS
from predictor.weights.extents import BlockExtent
from predictor.weights.offloaded_parts import StreamedParts
from predictor.weights.streaming.copy_stream import page_lock_within
from predictor.weights.streaming.device_loader import HostBlock
from predictor.weights.streaming.hooks import Streaming, stream_blocks


@dataclass(frozen=True, slots=True)
class StreamedModel:
    """The streamed parts of a model.

    Attributes:
        blocks: The blocks, or their modules; None if none is streamed.
        others: The modules outside of blocks; None if none is streamed.
    """

    blocks: Streaming | None = None
    others: Streaming | None = None

    @property
    def all(self) -> tuple[Streaming, ...]:
        """Return both of them that there are."""
        return tuple(one for one in (self.blocks, self.others) if one is not None)


def stream_parts(
    model: nn.Module,
    parts: StreamedParts,
    on_disk: Sequence[BlockExtent],
    host_blocks: Mapping[str, HostBlock],
    device: torch.device,
    *,
    block_buffers: int = STREAM_BUFFERS,
    page_locked_bytes: int,
    metrics: WeightMetrics,
) -> StreamedModel:
    """Attach hooks that stream the offloaded parts of a model.

    Args:
        model: The model. Parameters of the parts are on the meta device.
        parts: The modules to stream.
        on_disk: Those that are read from disk for every forward pass.
        host_blocks: By name, those that stay in main memory and compute on an accelerator.
        device: The device where they compute.
        block_buffers: Buffers for blocks, or for their modules.
        page_locked_bytes: Most bytes of main memory to page-lock.
        metrics: Counts bytes read and copied, and seconds that forward passes waited.

    Raises:
        LoadFailed: The driver refuses to page-lock memory.
    """
    sources: dict[str, BlockExtent | HostBlock] = {b.name: b for b in on_disk} | dict(host_blocks)
    for name, twin in parts.twins.items():
        if twin.module in sources:
            sources[name] = _renamed(sources[twin.module], name, twin.names)
    limit = page_locked_bytes if device.type == "cuda" else 0
    if device.type != "cpu":
        limit -= page_lock_within(limit, [block.buffer for block in host_blocks.values()])
    streamed = []
    for are_blocks, slots in ((True, block_buffers), (False, PART_BUFFERS)):
        chosen = {n: x for n, x in sources.items() if (n in parts.of_blocks) == are_blocks}
        streaming = stream_blocks(
            model,
            [source for source in chosen.values() if isinstance(source, BlockExtent)],
            {n: source for n, source in chosen.items() if isinstance(source, HostBlock)},
            device,
            slots=slots,
            page_locked_bytes=limit,
            metrics=metrics,
        )
        streamed.append(streaming)
        limit -= 0 if streaming is None else sum(b.tensor.nbytes for b in streaming.loader.buffers)
    return StreamedModel(*streamed)


def _renamed(
    source: BlockExtent | HostBlock, name: str, names: Mapping[str, str]
) -> BlockExtent | HostBlock:
    """Return the weights of one module as those of another one that shares them."""
    tensors = tuple(replace(tensor, name=names[tensor.name]) for tensor in source.tensors)
    if isinstance(source, HostBlock):
        return replace(source, tensors=tensors)
    return replace(source, name=name, tensors=tensors)
