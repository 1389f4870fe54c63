"""Reads blocks ahead of their use from disk into main memory.

The blocks compute there, or are copied on to an accelerator by `device_loader`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from torch import nn

from predictor.errors import WeightsUnreadable
from predictor.heartbeat import Activity
from predictor.metrics import WeightMetrics
from predictor.placement.buffers import STREAM_BUFFERS
from predictor.weights.direct_io import AlignedBuffer, BlockReader
from predictor.weights.extents import BlockExtent, largest, parameters_in
from predictor.weights.streaming.bounce_buffer import BounceBuffer
from predictor.weights.streaming.cast_reader import CastReader, largest_stored
from predictor.weights.streaming.prefetch_ring import PrefetchRing

SLOWEST = 10 * 1024**2
"""Bytes per second of the slowest volume that is taken for a working one, before the first read."""


class _Slot:
    """A buffer, and the parameters of each block as views of it."""

    def __init__(self, size: int, blocks: Sequence[BlockExtent]) -> None:
        self.buffer = AlignedBuffer(size)
        self.parameters = [parameters_in(self.buffer.tensor, block.tensors) for block in blocks]


class HostBlockLoader:
    """A `hooks.BlockLoader` for blocks that are read from disk into main memory.

    Attributes:
        blocks: The blocks, in execution order.
        read_activity: The reads under way and their pace.
    """

    def __init__(
        self,
        blocks: Sequence[BlockExtent],
        metrics: WeightMetrics,
        *,
        slots: int = STREAM_BUFFERS,
        use_bounce_buffer: bool = False,
    ) -> None:
        """Allocate the slots, and begin to read.

        Args:
            blocks: The blocks, in execution order.
            metrics: Counts bytes and seconds of reads.
            slots: Most blocks in main memory at one time.
            use_bounce_buffer: Whether to read through a `BounceBuffer`.
        """
        self.blocks = blocks
        self.read_activity = Activity("Reading ", pace=1 / SLOWEST)
        self._metrics = metrics
        size = largest(blocks)
        self._reader = BounceBuffer() if use_bounce_buffer else BlockReader()
        cast = largest_stored(blocks)
        self._cast_reader = CastReader(cast) if cast else None
        self._slots = [_Slot(size, blocks) for _ in range(slots)]
        self._in_use: _Slot | None = None
        self._ring = PrefetchRing(
            range(len(blocks)),
            self._slots,
            self._fetch,
            progress=lambda: self.read_activity.progress,
        )

    @property
    def buffers(self) -> tuple[AlignedBuffer, ...]:
        """Main memory that blocks are read to."""
        bounce = self._reader.buffers if isinstance(self._reader, BounceBuffer) else ()
        cast = self._cast_reader.buffers if self._cast_reader else ()
        return (*(slot.buffer for slot in self._slots), *bounce, *cast)

    @property
    def device_bytes(self) -> int:
        """Bytes of an accelerator's memory: 0, since blocks stay in main memory."""
        return 0

    def acquire(self, index: int) -> tuple[Sequence[nn.Parameter], float]:
        """Return a block's parameters in main memory, and the seconds that this call waited.

        Raises:
            WeightsUnreadable: The block cannot be read.
        """
        try:
            self._in_use, waited = self._ring.acquire(index)
        except OSError as error:
            block = self.blocks[index]
            file = error.filename or block.file
            raise WeightsUnreadable(
                f"{block.name} cannot be read from {file}: {error.strerror}."
            ) from error
        return self._in_use.parameters[index], waited

    def release(self) -> None:
        """Let the acquired block's memory be filled again."""
        if self._in_use is not None:
            self._ring.release(self._in_use)
            self._in_use = None

    def close(self) -> None:
        """End reading."""
        self._ring.close()
        self._reader.close()
        if self._cast_reader is not None:
            self._cast_reader.close()

    def _fetch(self, index: int, slot: _Slot) -> None:
        block, began = self.blocks[index], time.perf_counter()
        reader = self._cast_reader if self._cast_reader and block.cast_from else self._reader
        self.read_activity.begin(block.size, f"{block.name} from {block.file}")
        try:
            reader.read(block, slot.buffer)
            self.read_activity.end()
        finally:
            self.read_activity.rest()
        self._metrics.count_read(block.source, block.size, time.perf_counter() - began)
