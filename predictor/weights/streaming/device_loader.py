"""Brings blocks ahead of their use to the accelerator where they compute.

A block comes from main memory, or in chunks from disk through main memory. Which blocks stay in
main memory is decided in `placement`; the order of copies and computation is left to `copy_stream`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from predictor.heartbeat import Activity
from predictor.metrics import WeightMetrics
from predictor.placement.buffers import STREAM_BUFFERS, STREAM_PIECE, count_pieces
from predictor.private.torch import parameter_slot
from predictor.weights.direct_io import AlignedBuffer
from predictor.weights.extents import (
    BlockExtent,
    TensorView,
    largest,
    parameters_in,
    split_segments,
    view_of,
)
from predictor.weights.streaming.cast_reader import split_cast
from predictor.weights.streaming.copy_stream import CopyStream, Event
from predictor.weights.streaming.host_loader import HostBlockLoader
from predictor.weights.streaming.prefetch_ring import PrefetchRing

_ALIGNMENT = 256
"""Alignment in bytes of a tensor's address on the accelerator. Matrix products are slower with a
smaller one, and PyTorch's own allocator aligns to more."""


@dataclass(frozen=True, slots=True)
class HostBlock:
    """A block that stays in main memory, and is copied to an accelerator for each forward pass.

    Attributes:
        tensors: The parameters in the buffer, and at the same offsets in the accelerator's memory.
            One copy brings all of them. With a copy for each, the copying thread would wait as
            often for the interpreter's lock, which the computing thread releases for moments only.
        buffer: The memory of the parameters.
    """

    tensors: tuple[TensorView, ...]
    buffer: AlignedBuffer

    @property
    def size(self) -> int:
        """Bytes of the buffer that hold parameters."""
        return _end(self.tensors)


CopyParameter = Callable[[str, torch.Tensor, torch.Tensor], None]
"""Copies the parameter of a name, the first tensor, into another tensor of its dtype and shape."""


def move_to_buffer(
    model: nn.Module, name: str, copy: CopyParameter, *, without: Collection[str] = ()
) -> HostBlock:
    """Move a block's parameters into one buffer, and put the model's own on the meta device.

    Experts that are read one by one are there already, and stay away.

    Args:
        model: The model.
        name: The name of the block.
        copy: Copies a parameter into the buffer.
        without: Names of parameters that are not streamed, and stay where they are.
    """
    named = model.get_submodule(name).named_parameters(prefix=name)
    parameters = {key: p for key, p in named if not p.is_meta and key not in without}
    tensors = _lay_out(TensorView(key, p.dtype, tuple(p.shape), 0) for key, p in parameters.items())
    buffer = AlignedBuffer(_end(tensors))
    for tensor, (key, parameter) in zip(tensors, parameters.items(), strict=True):
        copy(key, parameter, view_of(buffer.tensor, tensor))
        own_parameters, own_name = parameter_slot(model, key)
        absent = torch.empty_like(parameter, device="meta")
        own_parameters[own_name] = nn.Parameter(absent, requires_grad=False)
    return HostBlock(tensors, buffer)


@dataclass(frozen=True, slots=True)
class ChunkedBlock:
    """A block on disk that is read in chunks, so that it needs little main memory.

    Attributes:
        first: Index of its first chunk among the chunks of all blocks.
        chunks: Its chunks. A chunk has one tensor of uint8 for each run of bytes of a parameter, or
            one of a parameter's values that are cast.
        targets: For each chunk, the place of each of its runs in the accelerator's memory.
        tensors: The parameters in the accelerator's memory.
    """

    first: int
    chunks: tuple[BlockExtent, ...]
    targets: tuple[tuple[slice, ...], ...]
    tensors: tuple[TensorView, ...]


def split_block(block: BlockExtent, first: int, chunk_bytes: int = STREAM_PIECE) -> ChunkedBlock:
    """Return a block in chunks.

    Args:
        block: The block on disk.
        first: Index of its first chunk.
        chunk_bytes: Most bytes of a chunk, a multiple of a page.
    """
    tensors = _lay_out(block.tensors)
    chunks: list[BlockExtent] = []
    targets: list[tuple[slice, ...]] = []
    for chunk, target in split_cast(block, tensors, chunk_bytes):
        chunks.append(chunk)
        targets.append((target,))
    for segment in split_segments(block.segments, chunk_bytes):
        runs, run_targets = [], []
        for tensor, stored in zip(tensors, block.tensors, strict=True):
            begin = max(stored.at, segment.at)
            count = min(stored.at + stored.nbytes, segment.at + segment.length) - begin
            if count > 0:
                runs.append(TensorView(tensor.name, torch.uint8, (count,), begin - segment.at))
                start = tensor.at + begin - stored.at
                run_targets.append(slice(start, start + count))
        chunks.append(BlockExtent(block.name, (replace(segment, at=0),), tuple(runs), block.source))
        targets.append(tuple(run_targets))
    return ChunkedBlock(first, tuple(chunks), tuple(targets), tensors)


BlockSource = HostBlock | ChunkedBlock
"""A block in main memory, or one on disk."""


class _Slot:
    """Memory of the accelerator, and the parameters of each block as views of it."""

    def __init__(self, sources: Sequence[BlockSource], device: torch.device, free: Event) -> None:
        size = max(_end(source.tensors) for source in sources)
        self.memory = torch.empty(size, dtype=torch.uint8, device=device)
        self.parameters = [parameters_in(self.memory, source.tensors) for source in sources]
        self.computed = self.copied = free


class DeviceBlockLoader:
    """A `hooks.BlockLoader` for blocks that compute on an accelerator.

    Attributes:
        sources: The blocks, in execution order.
        disk: Reads the chunks of blocks on disk; None without such blocks.
    """

    def __init__(
        self,
        sources: Sequence[BlockSource],
        disk: HostBlockLoader | None,
        stream: CopyStream,
        device: torch.device,
        metrics: WeightMetrics,
        *,
        slots: int = STREAM_BUFFERS,
    ) -> None:
        """Allocate the accelerator's memory, and begin to copy.

        Args:
            sources: The blocks, in execution order.
            disk: Reads the chunks of blocks on disk; None without such blocks.
            stream: Copies to the accelerator.
            device: The accelerator.
            metrics: Counts bytes copied.
            slots: Most blocks in the accelerator's memory at one time.
        """
        self.sources = sources
        self.disk = disk
        self._stream = stream
        self._metrics = metrics
        self._copying: Event | None = None  # the end of the copy from the memory of `disk`
        self._in_use: _Slot | None = None
        free = stream.record()
        self._slots = [_Slot(sources, device, free) for _ in range(slots)]
        self._ring = PrefetchRing(range(len(sources)), self._slots, self._fetch)

    def acquire(self, index: int) -> tuple[Sequence[nn.Parameter], float]:
        """Return a block's parameters on the accelerator, and the seconds lately stalled.

        Raises:
            WeightsUnreadable: The block cannot be read.
        """
        began = self._stream.record()
        self._in_use, _ = self._ring.acquire(index)
        self._stream.wait(self._in_use.copied, since=began)
        return self._in_use.parameters[index], self._stream.take_stall_seconds()

    def release(self) -> None:
        """Let the acquired block's memory be filled again after the computation enqueued so far."""
        if self._in_use is not None:
            self._in_use.computed = self._stream.record()
            self._ring.release(self._in_use)
            self._in_use = None

    @property
    def buffers(self) -> tuple[AlignedBuffer, ...]:
        """Main memory that chunks from disk are read to."""
        return () if self.disk is None else self.disk.buffers

    @property
    def read_activity(self) -> Activity | None:
        """The reads from disk under way; None without blocks on disk."""
        return None if self.disk is None else self.disk.read_activity

    @property
    def device_bytes(self) -> int:
        """Bytes of the accelerator's memory that blocks are copied to."""
        return sum(slot.memory.nbytes for slot in self._slots)

    def close(self) -> None:
        """End copying and reading."""
        self._ring.close()
        for slot in self._slots:
            self._stream.synchronize(slot.copied)
        if self.disk is not None:
            self.disk.close()

    def _fetch(self, index: int, slot: _Slot) -> None:
        source = self.sources[index]
        if isinstance(source, HostBlock):
            self._copy(slot, [slot.memory[: source.size]], [source.buffer.tensor[: source.size]])
        elif self.disk is None:
            raise LookupError("nothing reads the blocks on disk")
        else:
            for number, targets in enumerate(source.targets, source.first):
                self._read(self.disk, number, slot, targets)

    def _read(
        self, disk: HostBlockLoader, number: int, slot: _Slot, targets: Sequence[slice]
    ) -> None:
        """Copy a chunk, after the copy of the previous chunk from the same memory."""
        if self._copying is not None:
            self._stream.synchronize(self._copying)
            self._copying = None
        disk.release()
        runs, _ = disk.acquire(number)
        data = [run.detach().view(-1).view(torch.uint8) for run in runs]
        self._copy(slot, [slot.memory[target] for target in targets], data)
        self._copying = slot.copied

    def _copy(
        self, slot: _Slot, into: Sequence[torch.Tensor], source: Sequence[torch.Tensor]
    ) -> None:
        slot.copied = self._stream.copy(into, source, slot.computed)
        self._metrics.count_copied(sum(tensor.nbytes for tensor in source))


def open_device_loader(
    in_order: Sequence[str],
    on_disk: Sequence[BlockExtent],
    host_blocks: Mapping[str, HostBlock],
    stream: CopyStream,
    device: torch.device,
    metrics: WeightMetrics,
    *,
    slots: int = STREAM_BUFFERS,
    chunk_bytes: int = STREAM_PIECE,
) -> DeviceBlockLoader:
    """Return a loader that brings blocks to an accelerator.

    Args:
        in_order: Names of all blocks, in execution order.
        on_disk: Blocks that are read from disk for every forward pass.
        host_blocks: By name, blocks in main memory.
        stream: Copies to the accelerator.
        device: The accelerator.
        metrics: Counts bytes read and copied.
        slots: Most blocks in the accelerator's memory at one time.
        chunk_bytes: Most bytes of a read, a multiple of a page.
    """
    blocks = {block.name: block for block in on_disk}
    sources: list[BlockSource] = []
    chunks: list[BlockExtent] = []
    for name in in_order:
        source = host_blocks.get(name) or split_block(blocks[name], len(chunks), chunk_bytes)
        chunks.extend(source.chunks if isinstance(source, ChunkedBlock) else ())
        sources.append(source)
    pieces = count_pieces(largest(on_disk))
    disk = HostBlockLoader(chunks, metrics, slots=pieces) if chunks else None
    return DeviceBlockLoader(sources, disk, stream, device, metrics, slots=slots)


def _lay_out(tensors: Iterable[TensorView]) -> tuple[TensorView, ...]:
    """Return tensors with aligned offsets, one behind the other."""
    placed: list[TensorView] = []
    for tensor in tensors:
        placed.append(replace(tensor, at=-(-_end(placed[-1:]) // _ALIGNMENT) * _ALIGNMENT))
    return tuple(placed)


def _end(tensors: Sequence[TensorView]) -> int:
    return max((tensor.at + tensor.nbytes for tensor in tensors), default=0)
