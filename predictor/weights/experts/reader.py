"""Reads experts from disk into slots: several reads at a time, past the page cache.

Each thread requests pieces into a bounce buffer of its own, and copies them on into the slot, since
the bytes of a checkpoint begin anywhere in a page. An expert is read by as many threads as it has
pieces. Experts that a forward pass waits for go before those that are read ahead.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from predictor.errors import WeightsUnreadable
from predictor.heartbeat import Activity, ReadActivities
from predictor.metrics import WeightMetrics
from predictor.placement.buffers import EXPERT_BOUNCE_BUFFER, EXPERT_READERS
from predictor.weights.direct_io import AlignedBuffer, BlockReader, too_short
from predictor.weights.experts.chunks import Chunk, chunks_of
from predictor.weights.experts.extents import ExpertExtent, FileRange

_SLOWEST = 10 * 1024**2
"""Bytes per second of the slowest volume that is taken for a working one, before the first read."""

_SECONDS_TO_LOOK = 1.0
"""Seconds between two looks of a waiting thread at whether the reader was closed."""

_SERIAL = 32768
"""Most elements that torch casts in the calling thread alone (``aten/src/ATen/TensorIterator.h``,
``GRAIN_SIZE``). More threads would slow down those that compute."""

_MOST_CHUNKED = 2048
"""Experts whose chunks are kept: those of 600 GB would take as many bytes as a few experts."""


@dataclass(slots=True, eq=False)
class ExpertRead:
    """An expert on its way into a slot.

    Attributes:
        extent: The expert.
        slot: The number of the slot, for its owner.
        left: Pieces that are not read yet.
        error: The first error; None without one.
    """

    extent: ExpertExtent
    slot: int
    left: int = 0
    error: Exception | None = field(default=None)

    @property
    def is_done(self) -> bool:
        """Whether nothing is read for it any more."""
        return self.left == 0


class _Piece(NamedTuple):
    read: ExpertRead
    chunk: Chunk
    into: torch.Tensor


class ExpertReader:
    """Threads that read experts.

    Attributes:
        activity: The requests under way and their pace.
        buffers: The memory of the bounce buffers.
    """

    def __init__(
        self,
        metrics: WeightMetrics,
        *,
        threads: int = EXPERT_READERS,
        piece_bytes: int = EXPERT_BOUNCE_BUFFER,
    ) -> None:
        """Start the threads.

        Args:
            metrics: Counts bytes and seconds of requests.
            threads: Most requests at one time.
            piece_bytes: Bytes of a bounce buffer, a multiple of a page.
        """
        self._metrics = metrics
        self._piece_bytes = piece_bytes
        self._chunks: dict[str, list[Chunk]] = {}
        self._urgent: deque[_Piece] = deque()
        self._ahead: deque[_Piece] = deque()
        lock = threading.Lock()
        self._changed, self._finished = threading.Condition(lock), threading.Condition(lock)
        self._closed = False
        self._busy, self._busy_since, self._bytes = 0, 0.0, 0
        activities = [Activity("Reading ", pace=1 / _SLOWEST) for _ in range(threads)]
        self.activity = ReadActivities(activities)
        self.buffers = tuple(AlignedBuffer(piece_bytes) for _ in range(threads))
        self._threads = [
            threading.Thread(target=self._run, args=(buffer, activity), name="experts", daemon=True)
            for buffer, activity in zip(self.buffers, activities, strict=True)
        ]
        for thread in self._threads:
            thread.start()

    def read(
        self, extent: ExpertExtent, slot: int, into: torch.Tensor, *, ahead: bool = False
    ) -> ExpertRead:
        """Begin to read an expert.

        Args:
            extent: The expert.
            slot: The number of the slot.
            into: The memory of the slot, of uint8.
            ahead: Whether no forward pass waits for it yet.
        """
        read = ExpertRead(extent, slot)
        chunks = self._chunks.get(extent.name)
        if chunks is None:
            if len(self._chunks) >= _MOST_CHUNKED:
                self._chunks.clear()
            chunks = self._chunks[extent.name] = chunks_of(extent, self._piece_bytes)
        pieces = [_Piece(read, chunk, into) for chunk in chunks]
        read.left = len(pieces)
        with self._changed:
            (self._ahead if ahead else self._urgent).extend(pieces)
            self._changed.notify(len(pieces))
        return read

    def hasten(self, read: ExpertRead) -> None:
        """Note that a forward pass waits for an expert that is read ahead."""
        if read.is_done:
            return
        with self._changed:
            self._urgent.extend(piece for piece in self._ahead if piece.read is read)
            self._ahead = deque(piece for piece in self._ahead if piece.read is not read)

    def wait(self, requests: Collection[ExpertRead]) -> ExpertRead:
        """Return one of these reads that is done, the first in order of those that are.

        Raises:
            WeightsUnreadable: Its expert cannot be read.
        """
        while True:
            done = next((read for read in requests if read.is_done), None)
            if done is None:
                with self._finished:
                    if not any(read.is_done for read in requests):
                        self._finished.wait(_SECONDS_TO_LOOK)
                    if self._closed:
                        raise RuntimeError("the reader is closed")
                continue
            if isinstance(done.error, OSError):
                raise _unreadable(done.extent, done.error) from done.error
            if done.error is not None:
                raise done.error
            return done

    def abandon(self, requests: Collection[ExpertRead]) -> None:
        """Read no more of these experts, and return when nothing is written to their slots."""
        with self._finished:
            for queue in (self._urgent, self._ahead):
                kept = []
                for piece in queue:
                    if piece.read in requests:
                        piece.read.left -= 1
                    else:
                        kept.append(piece)
                queue.clear()
                queue.extend(kept)
            while not (self._closed or all(read.is_done for read in requests)):
                self._finished.wait(_SECONDS_TO_LOOK)

    def close(self) -> None:
        """End the threads after their current reads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._finished.notify_all()
        for thread in self._threads:
            thread.join()

    def _run(self, buffer: AlignedBuffer, activity: Activity) -> None:
        reader = BlockReader()
        try:
            while (piece := self._next()) is not None:
                error = _try(reader, piece, buffer, activity)
                self._finish(piece, error)
        finally:
            reader.close()

    def _next(self) -> _Piece | None:
        with self._changed:
            while not (self._closed or self._urgent or self._ahead):
                self._changed.wait()
            if self._closed:
                return None
            if not self._busy:
                self._busy_since = time.perf_counter()
            self._busy += 1
            return (self._urgent or self._ahead).popleft()

    def _finish(self, piece: _Piece, error: Exception | None) -> None:
        with self._changed:
            read = piece.read
            read.left -= 1
            read.error = read.error or error
            self._busy -= 1
            self._bytes += 0 if error else piece.chunk.segment.length
            if not self._busy:
                seconds = time.perf_counter() - self._busy_since
                self._metrics.count_read(read.extent.source, self._bytes, seconds)
                self._bytes = 0
            if read.left == 0:
                self._finished.notify_all()


def read_expert(reader: BlockReader, extent: ExpertExtent, into: torch.Tensor) -> None:
    """Read an expert in the calling thread.

    Args:
        reader: Reads the files.
        extent: The expert.
        into: The memory of a slot, of uint8.

    Raises:
        OSError: The expert cannot be read.
    """
    buffer = AlignedBuffer(EXPERT_BOUNCE_BUFFER)
    for chunk in chunks_of(extent, EXPERT_BOUNCE_BUFFER):
        _read(reader, chunk, into, buffer)


def _try(
    reader: BlockReader, piece: _Piece, buffer: AlignedBuffer, activity: Activity
) -> Exception | None:
    segment = piece.chunk.segment
    activity.begin(segment.length, f"{piece.read.extent.name} from {segment.file}")
    try:
        _read(reader, piece.chunk, piece.into, buffer)
        activity.end()
    # `wait` raises any error in the thread that needs the expert.
    except Exception as error:
        return error
    finally:
        activity.rest()
    return None


def _read(reader: BlockReader, chunk: Chunk, into: torch.Tensor, buffer: AlignedBuffer) -> None:
    _, last = chunk.parts[-1]
    _, _, size, _ = last.file_identity
    if last.begin + last.length > size:
        raise too_short(last.file)
    reader.read_segment(chunk.segment, buffer)
    source, target = buffer.tensor.data_ptr(), into.data_ptr()
    for skip, part in chunk.parts:
        if part.stored == part.served:
            ctypes.memmove(target + part.at, source + skip, part.length)
        else:
            _cast(buffer.tensor[skip : skip + part.length], into, part)


def _cast(source: torch.Tensor, into: torch.Tensor, part: FileRange) -> None:
    stored = source.view(part.stored)
    end = part.at + len(stored) * part.served.itemsize
    served = into[part.at : end].view(part.served)
    for begin in range(0, len(stored), _SERIAL):
        served[begin : begin + _SERIAL].copy_(stored[begin : begin + _SERIAL])


def _unreadable(extent: ExpertExtent, error: OSError) -> WeightsUnreadable:
    file = error.filename or extent.ranges[0].file
    return WeightsUnreadable(f"{extent.name} cannot be read from {file}: {error.strerror}.")
