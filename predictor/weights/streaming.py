"""Streams blocks through a model: each one's weights are there while it computes, and only then.

A hook around every streamed block takes its slot from a `Ring`, points the block's parameters at
the slot's memory, and gives the slot back afterwards. Nothing is copied: a read from disk goes to
where the block computes from. Outside its forward pass a block's parameters are on the meta device,
so that whoever used them then would fail and never see another block's weights.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

from accelerate.hooks import ModelHook, add_hook_to_module
from torch import nn

from predictor.errors import WeightsUnreadable
from predictor.metrics import WeightMetrics
from predictor.placement.units import STREAM_BUFFERS
from predictor.weights.extents import Block, view_of
from predictor.weights.reading import Buffer, Files
from predictor.weights.ring import Ring

logger = logging.getLogger(__name__)

Place = tuple[nn.Module, str]
"""A module and the name of one of its own parameters."""


class _Slot:
    """A buffer, and each block's parameters as they are in it."""

    def __init__(self, size: int, blocks: Sequence[Block]) -> None:
        self.buffer = Buffer(size)
        self.parameters = [
            [
                nn.Parameter(view_of(self.buffer.tensor, tensor), requires_grad=False)
                for tensor in block.tensors
            ]
            for block in blocks
        ]


class Streaming:
    """The streamed blocks of one model; one forward pass at a time."""

    def __init__(self, model: nn.Module, blocks: Sequence[Block], metrics: WeightMetrics) -> None:
        """Takes the slots' memory, begins to read and attaches the hooks.

        Args:
            model: The model; parameters of the blocks are on the meta device.
            blocks: In execution order.
            metrics: Is told what was read and how long passes waited.
        """
        self._blocks = blocks
        self._metrics = metrics
        self._files = Files()
        self._places = [_places(model, block) for block in blocks]
        self._absent = [[module._parameters[name] for module, name in p] for p in self._places]
        self._held: tuple[int, _Slot] | None = None
        size = max(block.size for block in blocks)
        self.slots = [_Slot(size, blocks) for _ in range(STREAM_BUFFERS)]
        self._ring = Ring(range(len(blocks)), self.slots, self._fetch)
        for index, block in enumerate(blocks):
            add_hook_to_module(model.get_submodule(block.name), _Hook(self, index))

    @property
    def buffer_bytes(self) -> int:
        """Bytes of all slots."""
        return sum(slot.buffer.tensor.nbytes for slot in self.slots)

    def enter(self, index: int) -> None:
        """Gives a block its weights.

        Raises:
            WeightsUnreadable: They cannot be read.
        """
        self.leave()  # a pass that failed within a block has not
        try:
            slot, waited = self._ring.take(index)
        except OSError as error:
            file = error.filename or self._blocks[index].segments[0].file
            raise WeightsUnreadable(
                f"{self._blocks[index].name} cannot be read from {file}: {error.strerror}."
            ) from error
        self._metrics.stalled(waited)
        self._set(index, slot.parameters[index])
        self._held = (index, slot)

    def leave(self) -> None:
        """Takes the weights of the block that has computed away again."""
        if self._held is not None:
            index, slot = self._held
            self._held = None
            self._set(index, self._absent[index])
            self._ring.give_back(slot)

    def close(self) -> None:
        """Ends reading; the model cannot run any more."""
        self._ring.close()
        self._files.close()

    def _set(self, index: int, parameters: Sequence[nn.Parameter | None]) -> None:
        for (module, name), parameter in zip(self._places[index], parameters, strict=True):
            module._parameters[name] = parameter

    def _fetch(self, index: int, slot: _Slot) -> None:
        block, began = self._blocks[index], time.perf_counter()
        self._files.read(block, slot.buffer)
        self._metrics.read(block.source, block.size, time.perf_counter() - began)


class _Hook(ModelHook):  # type: ignore[misc]
    """What Accelerate calls around a block's forward pass."""

    def __init__(self, streaming: Streaming, index: int) -> None:
        self._streaming = streaming
        self._index = index

    def pre_forward(self, _module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Gives the block its weights."""
        self._streaming.enter(self._index)
        return args, kwargs

    def post_forward(self, _module: nn.Module, output: Any) -> Any:
        """Takes them away."""
        self._streaming.leave()
        return output


def _places(model: nn.Module, block: Block) -> list[Place]:
    found = []
    for tensor in block.tensors:
        owner, _, name = tensor.name.rpartition(".")
        found.append((model.get_submodule(owner), name))
    return found
