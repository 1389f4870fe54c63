"""Reads files through two small buffers, and copies on what was read while the next is read.

A virtual machine's disk is read by its host, which copies what it reads into the machine's memory;
that is faster into memory that stays in the processor's cache. Two virtual processors read 1.5 to
2.0 GB/s directly into 168 MiB, and 2.4 GB/s this way. What is read need not begin at a page, and
memory that is new is first touched here, while the disk is at work.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch

from predictor.placement.units import STAGE, STAGES
from predictor.weights.extents import PAGE, Block, Segment, Stamp, pages
from predictor.weights.streaming.direct_io import Buffer, Files, too_short

Copy = Callable[[torch.Tensor, torch.Tensor], object]
"""Copies into the first tensor the bytes of the second."""


def copy_alone(into: torch.Tensor, found: torch.Tensor) -> None:
    """Copies bytes in this thread, as suits one that stays while others compute.

    torch has more threads help, which stay as long as the one they helped, and then stand in the
    way of those that compute.
    """
    ctypes.memmove(into.data_ptr(), found.data_ptr(), len(found))


class _Stage:
    """A buffer that is read to, and the copy that is being made of what was read."""

    def __init__(self) -> None:
        self.buffer = Buffer(STAGE)
        self.copy: Future[object] | None = None

    def finish(self) -> None:
        """Waits until the buffer may be read to again."""
        copy, self.copy = self.copy, None
        if copy is not None:
            copy.result()


class Staged:
    """Open files that are read by stages; one thread at a time.

    Attributes:
        buffers: The memory of the stages.
    """

    def __init__(self, copy: Copy = copy_alone) -> None:
        """Takes the memory of the stages.

        Args:
            copy: Runs in a thread that lasts until `close`.
        """
        self._copy = copy
        self._files = Files()
        self._copying = ThreadPoolExecutor(1, "weights-copy")
        self._stages = deque(_Stage() for _ in range(STAGES))
        self.buffers = tuple(stage.buffer for stage in self._stages)

    def read(self, block: Block, buffer: Buffer) -> None:
        """Reads a block's segments into a buffer, as `Files.read` does."""
        for segment in block.segments:
            into = buffer.tensor[segment.at : segment.at + segment.needed]
            self.begin(segment.file, segment.start, segment.stamp, into)
        self.finish()

    def begin(self, file: Path, offset: int, stamp: Stamp, into: torch.Tensor) -> None:
        """Reads bytes of a file into a tensor of uint8, which holds them all after `finish`.

        Args:
            file: The file.
            offset: Of the first byte in it.
            stamp: What tells that it is still the same.
            into: Where they go, and how many there are.

        Raises:
            OSError: The file cannot be read, after some tries, or is shorter than it has to be.
        """
        _, _, size = stamp
        if offset + len(into) > size:
            raise too_short(file)
        done = 0
        while done < len(into):
            start = (offset + done) // PAGE * PAGE
            skip = offset + done - start
            count = min(len(into) - done, STAGE - skip)
            stage = self._stages[0]
            self._stages.rotate()
            stage.finish()
            self._files.read_segment(
                Segment(file, start, pages(skip + count), 0, stamp), stage.buffer
            )
            found = stage.buffer.tensor[skip : skip + count]
            stage.copy = self._copying.submit(self._copy, into[done : done + count], found)
            done += count

    def finish(self) -> None:
        """Waits for the last copies."""
        for stage in self._stages:
            stage.finish()

    def close(self) -> None:
        """Closes all files."""
        self._copying.shutdown()
        self._files.close()
