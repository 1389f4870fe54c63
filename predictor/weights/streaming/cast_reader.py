"""Reads blocks that are stored in another dtype than they are served in, and casts them on the way.

That takes no more memory than blocks that are stored as they are served, beside a small buffer. An
offload store saves the cast, and bytes if the stored dtype is larger.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch

from predictor.placement.buffers import BOUNCE_BUFFER
from predictor.weights.direct_io import AlignedBuffer, BlockReader
from predictor.weights.extents import (
    PAGE,
    BlockExtent,
    FileSegment,
    StoredTensor,
    TensorView,
    pages,
    view_of,
)


class CastReader:
    """Reads blocks through a buffer, from which each tensor is cast; one thread at a time.

    Attributes:
        buffers: The memory of the buffer.
    """

    def __init__(self, largest: int) -> None:
        """Allocate the buffer.

        Args:
            largest: Bytes of the largest tensor to read, as it is stored.
        """
        buffer = AlignedBuffer(min(BOUNCE_BUFFER, pages(largest) + PAGE))
        self.buffers = (buffer,)
        self._step = buffer.tensor.nbytes - PAGE
        self._reader = BlockReader()

    def read(self, block: BlockExtent, buffer: AlignedBuffer) -> None:
        """Read a block into a buffer, as `BlockReader.read` does."""
        for tensor, stored in zip(block.tensors, block.cast_from, strict=True):
            self.read_tensor(stored, view_of(buffer.tensor, tensor).view(-1))

    def read_tensor(self, stored: StoredTensor, into: torch.Tensor) -> None:
        """Read a tensor into another one, which is flat and of the dtype that is served."""
        done = 0
        for piece in split_stored(stored, self._step):
            values = self._read(piece)
            into[done : done + len(values)].copy_(values)
            done += len(values)

    def close(self) -> None:
        """Close all files."""
        self._reader.close()

    def _read(self, stored: StoredTensor) -> torch.Tensor:
        (buffer,) = self.buffers
        start = stored.begin // PAGE * PAGE
        skip = stored.begin - start
        length = pages(stored.end - start)
        segment = FileSegment(stored.file, start, length, 0, stored.file_identity)
        self._reader.read_segment(segment, buffer)
        data = buffer.tensor[skip : skip + stored.end - stored.begin]
        is_aligned = skip % stored.dtype.itemsize == 0
        return (data if is_aligned else data.clone()).view(stored.dtype)


def largest_stored(blocks: Iterable[BlockExtent]) -> int:
    """Return the bytes of the largest tensor of blocks that is cast, as stored; 0 if none is."""
    return max((one.end - one.begin for block in blocks for one in block.cast_from), default=0)


def split_cast(
    block: BlockExtent, tensors: Sequence[TensorView], limit: int
) -> Iterator[tuple[BlockExtent, slice]]:
    """Yield a block in chunks of one tensor each, with the place of their bytes in other memory.

    Args:
        block: A block that is cast; of others nothing is yielded.
        tensors: Its tensors in the other memory.
        limit: Most bytes of a chunk, as it is stored and as it is served.
    """
    for tensor, stored in zip(tensors, block.cast_from, strict=False):
        begin, size = tensor.at, stored.dtype.itemsize
        for piece in split_stored(stored, limit * size // max(size, tensor.dtype.itemsize)):
            view = TensorView(tensor.name, tensor.dtype, piece.shape, 0)
            end = begin + view.nbytes
            yield replace(block, tensors=(view,), cast_from=(piece,)), slice(begin, end)
            begin = end


def split_stored(stored: StoredTensor, limit: int) -> Iterator[StoredTensor]:
    """Yield the same values in shorter, flat tensors.

    Args:
        stored: The tensor.
        limit: Most bytes of a shorter one, a multiple of any dtype's size.
    """
    for begin in range(stored.begin, stored.end, limit):
        end = min(begin + limit, stored.end)
        shape = ((end - begin) // stored.dtype.itemsize,)
        yield replace(stored, begin=begin, end=end, shape=shape)
