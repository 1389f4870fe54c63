"""Fills blocks that stay in main memory while the model serves already.

The first forward pass reads every byte that loading would read, so a request need not wait for
loading first. Blocks are read in execution order, while all other weights are loaded and then
beside those that are streamed. A forward pass waits for each block that has not arrived, and reads
one that failed meanwhile again. A block that cannot be read then ends the engine, as a streamed one
does. Which blocks are filled is decided in `filled_blocks`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from torch import nn

from predictor.errors import WeightsUnreadable
from predictor.heartbeat import Activity, ReadActivities
from predictor.metrics import WeightMetrics
from predictor.private.torch import parameter_slot
from predictor.quantity import format_bytes
from predictor.weights.direct_io import AlignedBuffer
from predictor.weights.extents import BlockExtent, parameters_in
from predictor.weights.parallel_reader import ParallelReader
from predictor.weights.progress import FILLING, Progress
from predictor.weights.streaming.cast_reader import largest_stored

logger = logging.getLogger(__name__)

_SECONDS_TO_LOG = 10.0
"""Seconds of waiting for a block after which it is logged, as for streamed blocks."""


class _Block:
    """A block on its way to memory."""

    def __init__(self, extent: BlockExtent) -> None:
        self.extent = extent
        self.buffer = AlignedBuffer(extent.size, touch=False)
        self.ended = threading.Event()
        self.error: OSError | None = None
        self.has_arrived = False
        self.reads_left, self.bytes_left = 0, extent.size
        self.hook: Any = None

    def assign(self, model: nn.Module) -> None:
        """Give the module its parameters."""
        parameters = parameters_in(self.buffer.tensor, self.extent.tensors)
        for tensor, parameter in zip(self.extent.tensors, parameters, strict=True):
            own, name = parameter_slot(model, tensor.name)
            own[name] = parameter


class Filling:
    """The blocks of one model that are filled while it serves.

    Attributes:
        passes: The forward passes, whose time does not count while they wait for a block; None if
            nobody watches them.
    """

    def __init__(
        self, blocks: Sequence[BlockExtent], metrics: WeightMetrics, progress: Progress
    ) -> None:
        """Begin to read, unless tensors are cast: loading has buffers for that of its own.

        Args:
            blocks: The blocks, in execution order.
            metrics: Counts seconds that forward passes waited.
            progress: Counts the blocks from when a model gets them.
        """
        self.passes: Activity | None = None
        self._metrics, self._progress = metrics, progress
        self._lock = threading.Lock()
        self._model: nn.Module | None = None
        self._is_closed = False
        self._start(blocks)

    def _start(self, blocks: Sequence[BlockExtent]) -> None:
        self._blocks = [_Block(extent) for extent in blocks]
        self._missing = len(blocks)
        cast = largest_stored(blocks)
        self._reader, self._has_begun = ParallelReader(cast=cast), not cast
        if self._has_begun:
            for block in self._blocks:
                self._begin(block)

    @property
    def blocks(self) -> tuple[BlockExtent, ...]:
        """The blocks, in execution order."""
        return tuple(block.extent for block in self._blocks)

    def change_to(self, blocks: Sequence[BlockExtent]) -> None:
        """Begin anew, if these are other blocks, before a model gets them."""
        if tuple(blocks) != self.blocks:
            self._reader.close()
            self._start(blocks)

    def give_to(self, model: nn.Module) -> None:
        """Give a model the blocks that have arrived, and each of the others when it does.

        Args:
            model: The model. Parameters of the blocks are on the meta device.
        """
        if not self._blocks:
            return
        sizes = {block.extent.name: block.extent.size for block in self._blocks}
        self._progress.begin(FILLING, sizes, tuple(sizes))
        for block in self._blocks:
            module = model.get_submodule(block.extent.name)
            block.hook = module.register_forward_pre_hook(self._hook_of(block))
        with self._lock:
            self._model = model
            arrived = [block for block in self._blocks if block.has_arrived]
        for block in arrived:
            self._keep(block, model)
        if not self._has_begun:
            for block in self._blocks:
                self._begin(block)

    @property
    def bytes_left(self) -> int:
        """Bytes that have not arrived."""
        return sum(block.bytes_left for block in self._blocks)

    @property
    def read_activity(self) -> ReadActivities | None:
        """The reads under way; None if there is nothing to read."""
        return self._reader.read_activity if self._blocks else None

    def finish(self) -> None:
        """Wait until all blocks are in memory.

        Raises:
            WeightsUnreadable: A block cannot be read.
        """
        for block in self._blocks:
            self._await(block)

    def close(self) -> None:
        """End reading; blocks that have not arrived cannot be computed."""
        self._is_closed = True
        self._reader.close()
        for block in self._blocks:
            if not block.ended.is_set():
                block.error = OSError(0, "reading has ended", str(block.extent.file))
                block.ended.set()

    def _begin(self, block: _Block) -> None:
        block.error, block.bytes_left = None, block.extent.size
        block.ended.clear()
        with self._lock:  # the first read may end before the last one is begun
            pending = self._reader.read_block(block.extent, block.buffer)
            block.reads_left = len(pending)
        for read in pending:
            read.add_done_callback(lambda done: self._end_read(block, done))

    def _end_read(self, block: _Block, read: Future[int]) -> None:
        """Handle the end of one read, in its thread."""
        if read.cancelled():
            return
        error = read.exception()
        with self._lock:
            if error is None:
                block.bytes_left -= read.result()
            else:
                block.error = error if isinstance(error, OSError) else OSError(0, str(error))
            block.reads_left -= 1
            if block.reads_left:
                return
            if block.error is None:
                block.has_arrived, block.bytes_left = True, 0
            model = self._model
        try:
            if block.error is None and model is not None:
                self._keep(block, model)
        finally:
            block.ended.set()

    def _keep(self, block: _Block, model: nn.Module) -> None:
        """Give the model a block that has arrived."""
        block.assign(model)
        self._progress.done(block.extent.name)
        with self._lock:
            self._missing -= 1
            if self._missing:
                return
        self._reader.end()
        self._progress.begin("serving", {})
        total = sum(each.extent.size for each in self._blocks)
        logger.info("All blocks that stay are in memory: %s were read", format_bytes(total))

    def _hook_of(self, block: _Block) -> Any:
        def wait(_module: nn.Module, _inputs: Any) -> None:
            began = time.perf_counter()
            piece = None if self.passes is None else self.passes.pause()
            try:
                self._await(block)
            finally:
                if self.passes is not None:
                    self.passes.resume(piece)
            self._metrics.count_stall(time.perf_counter() - began)
            block.hook.remove()

        return wait

    def _await(self, block: _Block) -> None:
        """Wait for a block; one that failed before somebody waited for it is read again."""
        if block.ended.is_set() and block.error is not None and not self._is_closed:
            self._begin(block)
        if not block.ended.wait(_SECONDS_TO_LOG):
            logger.warning("Waiting for %s. %s", block.extent.name, self._progress_sentence)
            block.ended.wait()
        error = block.error
        if error is not None:
            file = error.filename or block.extent.file
            raise WeightsUnreadable(
                f"{block.extent.name} cannot be read from {file}: {error.strerror}."
            ) from error

    @property
    def _progress_sentence(self) -> str:
        return self._reader.read_activity.progress
