"""Reads blocks ahead of their use, from disk into main memory."""

from __future__ import annotations

import time
from collections.abc import Sequence

from torch import nn

from predictor.errors import WeightsUnreadable
from predictor.metrics import WeightMetrics
from predictor.placement.units import STREAM_BUFFERS
from predictor.weights.extents import Block, parameters_in
from predictor.weights.streaming.bounce_buffer import Staged
from predictor.weights.streaming.direct_io import Buffer, Files
from predictor.weights.streaming.prefetch_ring import Ring


class _Slot:
    """A buffer, and each block's parameters as they are in it."""

    def __init__(self, size: int, blocks: Sequence[Block]) -> None:
        self.buffer = Buffer(size)
        self.parameters = [parameters_in(self.buffer.tensor, block.tensors) for block in blocks]


class FromDisk:
    """Blocks on disk, one of which is in use at one time; a `streaming.Lane` to the processor.

    Attributes:
        blocks: They, in execution order.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        metrics: WeightMetrics,
        *,
        slots: int = STREAM_BUFFERS,
        staged: bool = False,
    ) -> None:
        """Takes the buffers' memory and begins to read.

        Args:
            blocks: In execution order.
            metrics: Is told what was read.
            slots: How many blocks are in main memory at one time.
            staged: Whether they are read by stages, see `Staged`.
        """
        self.blocks = blocks
        self._metrics = metrics
        size = max(block.size for block in blocks)
        self._files = Staged() if staged else Files()
        self._slots = [_Slot(size, blocks) for _ in range(slots)]
        self._held: _Slot | None = None
        self._ring = Ring(range(len(blocks)), self._slots, self._fetch)

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        """Where blocks are read to."""
        stages = self._files.buffers if isinstance(self._files, Staged) else ()
        return (*(slot.buffer for slot in self._slots), *stages)

    @property
    def device_bytes(self) -> int:
        """None: blocks compute where they are read to."""
        return 0

    def take(self, index: int) -> tuple[Sequence[nn.Parameter], float]:
        """Returns a block's parameters in main memory, and the seconds that this waited.

        Raises:
            WeightsUnreadable: They cannot be read.
        """
        try:
            self._held, waited = self._ring.take(index)
        except OSError as error:
            block = self.blocks[index]
            file = error.filename or block.segments[0].file
            raise WeightsUnreadable(
                f"{block.name} cannot be read from {file}: {error.strerror}."
            ) from error
        return self._held.parameters[index], waited

    def give_back(self) -> None:
        """Lets the memory of the block that was taken be filled again."""
        if self._held is not None:
            self._ring.give_back(self._held)
            self._held = None

    def close(self) -> None:
        """Ends reading."""
        self._ring.close()
        self._files.close()

    def _fetch(self, index: int, slot: _Slot) -> None:
        block, began = self.blocks[index], time.perf_counter()
        self._files.read(block, slot.buffer)
        self._metrics.read(block.source, block.size, time.perf_counter() - began)
