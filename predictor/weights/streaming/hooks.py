"""Streams blocks through a model: each one's weights are there while it computes, and only then.

A hook around every streamed block takes its parameters from a lane, which brings them to where the
block computes ahead of time, and gives them back afterwards. Outside its forward pass a block's
parameters are on the meta device, so that whoever used them then would fail and never see another
block's weights.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from accelerate.utils import send_to_device
from torch import nn

from predictor.metrics import WeightMetrics
from predictor.placement.units import is_staged
from predictor.quantity import format_bytes
from predictor.weights.extents import Block
from predictor.weights.streaming.copy_stream import Link, page_lock
from predictor.weights.streaming.device_loader import Waiting, place_of, to_device
from predictor.weights.streaming.direct_io import Buffer
from predictor.weights.streaming.host_loader import FromDisk

logger = logging.getLogger(__name__)


class Lane(Protocol):
    """What brings blocks to where they compute; one is in use at one time."""

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        """Main memory that blocks from disk are read to."""

    @property
    def device_bytes(self) -> int:
        """Bytes of an accelerator's memory that blocks are brought to."""

    def take(self, index: int) -> tuple[Sequence[nn.Parameter], float]:
        """Returns a block's parameters, and the seconds that passes were found to have waited."""

    def give_back(self) -> None:
        """Lets the memory of the block that was taken be filled again."""

    def close(self) -> None:
        """Brings no more."""


def stream(
    model: nn.Module,
    on_disk: Sequence[Block],
    waiting: Mapping[str, Waiting],
    device: torch.device,
    *,
    pinnable: int,
    metrics: WeightMetrics,
) -> Streaming | None:
    """Returns what streams these blocks; None where there are none.

    Args:
        model: The model; parameters of the blocks are on the meta device.
        on_disk: Blocks that are read for every pass.
        waiting: By name, blocks that are in main memory and compute elsewhere.
        device: Where all of them compute.
        pinnable: Bytes of main memory that may be page-locked.
        metrics: Is told what was read and copied, and how long passes waited.

    Raises:
        LoadFailed: The driver does not page-lock as much.
    """
    if not (on_disk or waiting):
        return None
    in_order = names_in_order(model, on_disk, waiting)
    lane: Lane
    if device.type == "cpu":
        large = is_staged(max(block.size for block in on_disk))
        lane = FromDisk(on_disk, metrics, staged=large)
    else:
        is_cuda = device.type == "cuda"
        locked = _page_lock([block.buffer for block in waiting.values()], pinnable * is_cuda)
        lane = to_device(tuple(in_order), on_disk, waiting, Link(device), device, metrics)
        _page_lock(lane.buffers, pinnable * is_cuda - locked)
    return Streaming(model, in_order, lane, metrics, device)


def names_in_order(
    model: nn.Module, on_disk: Sequence[Block], waiting: Mapping[str, Waiting]
) -> dict[str, list[str]]:
    """Returns the names of each block's parameters; blocks are in execution order."""
    blocks: dict[str, Block | Waiting] = {block.name: block for block in on_disk} | dict(waiting)
    return {
        name: [tensor.name for tensor in blocks[name].tensors]
        for name, _ in model.named_modules()
        if name in blocks
    }


def _page_lock(buffers: Sequence[Buffer], most: int) -> int:
    """Page-locks buffers as far as that many bytes go; returns how many it did.

    What is copied from others is slower.
    """
    size = sum(buffer.tensor.nbytes for buffer in buffers)
    logger.info("Page-locking %s of main memory, to be copied to a GPU", format_bytes(size))
    locked = 0
    for buffer in buffers:
        if locked + buffer.tensor.nbytes <= most:
            page_lock(buffer)
            locked += buffer.tensor.nbytes
    if locked < size:
        less = format_bytes(size - locked)
        logger.warning("%s of that are not page-locked, and slower to copy", less)
    return locked


class Streaming:
    """The streamed blocks of one model; one forward pass at a time."""

    def __init__(
        self,
        model: nn.Module,
        blocks: Mapping[str, Sequence[str]],
        lane: Lane,
        metrics: WeightMetrics,
        device: torch.device,
    ) -> None:
        """Attaches the hooks.

        Args:
            model: The model; parameters of the blocks are on the meta device.
            blocks: In execution order, the names of each one's parameters as the lane gives them.
            lane: Brings them.
            metrics: Is told how long passes waited.
            device: Where blocks compute.
        """
        self.lane = lane
        self._metrics = metrics
        self._places = [[place_of(model, name) for name in names] for names in blocks.values()]
        self._absent = [[module._parameters[name] for module, name in p] for p in self._places]
        self._entered: int | None = None
        for index, name in enumerate(blocks):
            block = model.get_submodule(name)
            _move_buffers(block, device)
            stay = getattr(model, "_skip_keys_device_placement", None)
            add_hook_to_module(block, _Hook(self, index, device, stay))

    def enter(self, index: int) -> None:
        """Gives a block its weights.

        Raises:
            WeightsUnreadable: They cannot be read.
        """
        self.leave()  # a pass that failed within a block has not
        parameters, waited = self.lane.take(index)
        self._metrics.stalled(waited)
        self._set(index, parameters)
        self._entered = index

    def leave(self) -> None:
        """Takes the weights of the block that has computed away again."""
        if self._entered is not None:
            index, self._entered = self._entered, None
            self._set(index, self._absent[index])
            self.lane.give_back()

    def close(self) -> None:
        """Ends the lane; the model cannot run any more."""
        self.lane.close()

    def _set(self, index: int, parameters: Sequence[nn.Parameter | None]) -> None:
        for (module, name), parameter in zip(self._places[index], parameters, strict=True):
            module._parameters[name] = parameter


class _Hook(ModelHook):  # type: ignore[misc]
    """What Accelerate calls around a block's forward pass."""

    def __init__(
        self, streaming: Streaming, index: int, device: torch.device, stay: Sequence[str] | None
    ) -> None:
        self._streaming = streaming
        self._index = index
        self._device = device
        self._stay = stay  # arguments such as the cache

    def pre_forward(self, _module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Gives the block its weights, and brings what comes from another device."""
        if self._device.type != "cpu":  # where all is otherwise
            kwargs = send_to_device(kwargs, self._device, skip_keys=self._stay)
            args = send_to_device(args, self._device)
        self._streaming.enter(self._index)
        return args, kwargs

    def post_forward(self, _module: nn.Module, output: Any) -> Any:
        """Takes them away."""
        self._streaming.leave()
        return output


def _move_buffers(block: nn.Module, device: torch.device) -> None:
    for module in block.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(device)
