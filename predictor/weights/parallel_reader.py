"""Reads files with several reads in flight, straight into the memory where the bytes stay.

One read at a time leaves a disk idle between two reads. Bytes that begin at a page in the file and
in memory are read without a copy. Others, and tensors that are cast, pass through a buffer of the
reading thread. Which bytes are read, and in which order, is decided by the callers.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from predictor.heartbeat import Activity, ReadActivities
from predictor.placement.buffers import BOUNCE_BUFFER, RESIDENT_READERS
from predictor.weights.direct_io import AlignedBuffer, BlockReader, split_range
from predictor.weights.extents import (
    PAGE,
    BlockExtent,
    FileIdentity,
    FileSegment,
    split_segments,
    view_of,
)
from predictor.weights.streaming.bounce_buffer import copy_in_thread
from predictor.weights.streaming.cast_reader import CastReader, split_stored
from predictor.weights.streaming.host_loader import SLOWEST

PendingReads = list["Future[int]"]
"""Reads that were begun; each returns its bytes, or raises the `OSError` of the file."""


class _Reader:
    """What one thread reads with."""

    def __init__(self, part_bytes: int, activity: Activity) -> None:
        self.files = BlockReader()
        self.cast: CastReader | None = None
        self.activity = activity
        self._part_bytes = part_bytes
        self._part: AlignedBuffer | None = None

    @property
    def part(self) -> AlignedBuffer:
        """The buffer for bytes that do not begin at a page."""
        if self._part is None:
            self._part = AlignedBuffer(self._part_bytes)
        return self._part

    def close(self) -> None:
        self.files.close()
        if self.cast is not None:
            self.cast.close()


class ParallelReader:
    """Reads in several threads, in the order in which reads are begun."""

    def __init__(
        self, readers: int = RESIDENT_READERS, *, part_bytes: int = BOUNCE_BUFFER, cast: int = 0
    ) -> None:
        """Start no thread yet.

        Args:
            readers: Most reads at one time.
            part_bytes: Most bytes of a read, a multiple of a page.
            cast: Bytes of the largest stored tensor that is cast; 0 if none is.
        """
        self._pool = ThreadPoolExecutor(readers, "weights-read")
        self._own = threading.local()
        self._readers: list[_Reader] = []
        self._part_bytes, self._cast = part_bytes, cast
        self._activities = [Activity("Reading ", pace=1 / SLOWEST) for _ in range(readers)]

    @property
    def read_activity(self) -> ReadActivities:
        """The reads under way and their pace."""
        return ReadActivities(self._activities)

    def read_block(self, block: BlockExtent, buffer: AlignedBuffer) -> PendingReads:
        """Begin to read a block into a buffer, cast if it is stored in another dtype."""
        tasks = [
            partial(self._read_direct, block.name, segment, buffer)
            for segment in split_segments(block.segments, self._part_bytes)
        ]
        return [self._pool.submit(task) for task in (*tasks, *self._casts(block, buffer))]

    def read_bytes(
        self, file: Path, offset: int, file_identity: FileIdentity, into: torch.Tensor
    ) -> PendingReads:
        """Begin to read bytes of a file into a tensor, wherever they begin.

        Args:
            file: The file.
            offset: Offset of the first byte in the file.
            file_identity: The identity of the file when its layout was read.
            into: A tensor of uint8, as long as the bytes to read.

        Raises:
            OSError: The file is shorter than it was.
        """
        return [
            self._pool.submit(self._read_through, segment, skip, target)
            for segment, skip, target in split_range(
                file, offset, file_identity, into, self._part_bytes
            )
        ]

    def close(self) -> None:
        """End the threads after the reads under way, drop all others, and close all files."""
        self._pool.shutdown(cancel_futures=True)
        self._close_files()

    def end(self) -> None:
        """Close all files, and let the threads end, after all reads; any thread may call this."""
        self._pool.shutdown(wait=False)
        self._close_files()

    def _close_files(self) -> None:
        readers, self._readers = self._readers, []
        for reader in readers:
            reader.close()

    def _casts(self, block: BlockExtent, buffer: AlignedBuffer) -> Iterator[partial[int]]:
        """Yield a task for each piece of each tensor that is cast."""
        for tensor, stored in zip(block.tensors, block.cast_from, strict=False):
            into = view_of(buffer.tensor, tensor).view(-1)
            done = 0
            for piece in split_stored(stored, self._part_bytes - PAGE):
                (count,) = piece.shape
                target = into[done : done + count]
                yield partial(self._read_cast, replace(block, cast_from=(piece,)), target)
                done += count

    def _read_direct(self, name: str, segment: FileSegment, buffer: AlignedBuffer) -> int:
        reader = self._reader()
        reader.activity.begin(segment.length, f"{name} from {segment.file}")
        try:
            reader.files.read_segment(segment, buffer)
            reader.activity.end()
        finally:
            reader.activity.rest()
        return segment.length

    def _read_through(self, segment: FileSegment, skip: int, into: torch.Tensor) -> int:
        part = self._reader().part
        self._read_direct("weights", segment, part)
        copy_in_thread(into, part.tensor[skip : skip + len(into)])
        return len(into)

    def _read_cast(self, piece: BlockExtent, into: torch.Tensor) -> int:
        reader = self._reader()
        if reader.cast is None:
            reader.cast = CastReader(self._cast)
        (stored,) = piece.cast_from
        reader.activity.begin(stored.end - stored.begin, f"{piece.name} from {stored.file}")
        try:
            reader.cast.read_tensor(stored, into)
            reader.activity.end()
        finally:
            reader.activity.rest()
        return into.nbytes

    def _reader(self) -> _Reader:
        """Return what the calling thread reads with."""
        reader: _Reader | None = getattr(self._own, "reader", None)
        if reader is None:
            reader = self._own.reader = _Reader(self._part_bytes, self._activities[0])
            self._readers.append(reader)
            reader.activity = self._activities[len(self._readers) - 1]
        return reader
