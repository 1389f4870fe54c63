"""A bounce buffer: files are read into its small parts, and copied on during the next read.

A virtual machine's disk is read by its host, which copies the bytes into the machine's memory. The
copy is faster into memory that stays in the processor's cache. Two virtual processors read 1.5 to
2.0 GB/s directly into 168 MiB, and 2.4 GB/s through the bounce buffer. The requested bytes need not
begin at a page. New memory is first touched by the copy, while the disk is at work. Which blocks
are read this way is decided in `hooks`.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch

from predictor.placement.buffers import BOUNCE_BUFFER, BOUNCE_BUFFERS
from predictor.weights.direct_io import AlignedBuffer, BlockReader, split_range
from predictor.weights.extents import BlockExtent, FileIdentity

Copy = Callable[[torch.Tensor, torch.Tensor], object]
"""Copies the bytes of the second tensor into the first."""


def copy_in_thread(into: torch.Tensor, source: torch.Tensor) -> None:
    """Copy bytes in the calling thread alone.

    This suits copies that run while other threads compute. torch would use more threads, which
    stay as long as the calling one, and slow the computing threads down.
    """
    ctypes.memmove(into.data_ptr(), source.data_ptr(), len(source))


class _Part:
    """A part of the bounce buffer, and the copy from it that is under way."""

    def __init__(self, size: int) -> None:
        self.buffer = AlignedBuffer(size)
        self.copy: Future[object] | None = None

    def finish(self) -> None:
        """Wait until the part may be read to again."""
        copy, self.copy = self.copy, None
        if copy is not None:
            copy.result()


class BounceBuffer:
    """Reads files through a bounce buffer; one thread at a time.

    Attributes:
        buffers: The memory of its parts.
    """

    def __init__(
        self,
        copy: Copy = copy_in_thread,
        *,
        part_bytes: int = BOUNCE_BUFFER,
        reader: BlockReader | None = None,
    ) -> None:
        """Allocate the parts.

        Args:
            copy: Copies from a part; called in a thread that lasts until `close`.
            part_bytes: Bytes of a part, a multiple of `PAGE`.
            reader: Reads the files; `close` closes it. None makes a new one.
        """
        self._copy = copy
        self._part_bytes = part_bytes
        self._reader = reader or BlockReader()
        self._copying = ThreadPoolExecutor(1, "weights-copy")
        self._parts = deque(_Part(part_bytes) for _ in range(BOUNCE_BUFFERS))
        self.buffers = tuple(part.buffer for part in self._parts)

    def read(self, block: BlockExtent, buffer: AlignedBuffer) -> None:
        """Read a block's segments into a buffer, as `BlockReader.read` does."""
        for segment in block.segments:
            into = buffer.tensor[segment.at : segment.at + segment.needed]
            self.begin(segment.file, segment.start, segment.file_identity, into)
        self.finish()

    def begin(
        self, file: Path, offset: int, file_identity: FileIdentity, into: torch.Tensor
    ) -> None:
        """Read bytes of a file into a tensor, which holds all of them after `finish`.

        Args:
            file: The file.
            offset: Offset of the first byte in the file.
            file_identity: The identity of the file when its layout was read.
            into: A tensor of uint8, as long as the bytes to read.

        Raises:
            OSError: The file cannot be read, after some tries, or is shorter than it was.
        """
        parts = split_range(file, offset, file_identity, into, self._part_bytes)
        for segment, skip, target in parts:
            part = self._parts[0]
            self._parts.rotate()
            part.finish()
            self._reader.read_segment(segment, part.buffer)
            source = part.buffer.tensor[skip : skip + len(target)]
            part.copy = self._copying.submit(self._copy, target, source)

    def finish(self) -> None:
        """Wait for the last copies."""
        for part in self._parts:
            part.finish()

    def close(self) -> None:
        """End the thread and close all files."""
        self._copying.shutdown()
        self._reader.close()
