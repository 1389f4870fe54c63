"""Streams blocks through a model: a block has its weights only during its forward pass.

A hook around every streamed block acquires the block's parameters from a loader, and releases them
afterwards. At all other times the parameters are on the meta device. So any other use of them
fails, and never sees another block's weights. How blocks are fetched is left to the loaders.

A streamed block is a block of the model, or a module that is streamed by itself: a part of a block,
or one outside of blocks, such as the embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from predictor.heartbeat import Activity
from predictor.metrics import WeightMetrics
from predictor.placement.buffers import needs_bounce_buffers
from predictor.private.accelerate import ModelHook, add_hook_to_module, send_to_device
from predictor.private.torch import own_buffers, parameter_slot
from predictor.private.transformers import skipped_arguments
from predictor.weights.direct_io import AlignedBuffer
from predictor.weights.extents import BlockExtent, largest
from predictor.weights.streaming.copy_stream import CopyStream, page_lock_within
from predictor.weights.streaming.device_loader import HostBlock, open_device_loader
from predictor.weights.streaming.host_loader import HostBlockLoader


class BlockLoader(Protocol):
    """Brings blocks to the device where they compute; one block is in use at a time."""

    @property
    def buffers(self) -> tuple[AlignedBuffer, ...]:
        """Main memory that blocks from disk are read to."""

    @property
    def device_bytes(self) -> int:
        """Bytes of an accelerator's memory that blocks are copied to."""

    @property
    def read_activity(self) -> Activity | None:
        """The reads from disk under way; None if nothing is read."""

    def acquire(self, index: int) -> tuple[Sequence[nn.Parameter], float]:
        """Return a block's parameters, and the seconds that forward passes waited for blocks."""

    def release(self) -> None:
        """Let the acquired block's memory be filled again."""

    def close(self) -> None:
        """End fetching."""


def stream_blocks(
    model: nn.Module,
    on_disk: Sequence[BlockExtent],
    host_blocks: Mapping[str, HostBlock],
    device: torch.device,
    *,
    slots: int,
    page_locked_bytes: int,
    metrics: WeightMetrics,
) -> Streaming | None:
    """Attach hooks that stream blocks; return None without blocks.

    Args:
        model: The model. Parameters of the blocks are on the meta device.
        on_disk: Blocks that are read from disk for every forward pass.
        host_blocks: By name, blocks that stay in main memory and compute on an accelerator.
        device: The device where the blocks compute.
        slots: Most blocks on that device at one time.
        page_locked_bytes: Most bytes of main memory to page-lock for blocks from disk.
        metrics: Counts bytes read and copied, and seconds that forward passes waited.

    Raises:
        LoadFailed: The driver refuses to page-lock memory.
    """
    if not (on_disk or host_blocks):
        return None
    in_order = names_in_order(model, on_disk, host_blocks)
    loader: BlockLoader
    if device.type == "cpu":
        is_large = slots > 1 and needs_bounce_buffers(largest(on_disk))
        by_name = {block.name: block for block in on_disk}
        ordered = [by_name[name] for name in in_order]
        loader = HostBlockLoader(ordered, metrics, slots=slots, use_bounce_buffer=is_large)
    else:
        stream = CopyStream(device)
        loader = open_device_loader(
            tuple(in_order), on_disk, host_blocks, stream, device, metrics, slots=slots
        )
        page_lock_within(page_locked_bytes, loader.buffers)
    return Streaming(model, in_order, loader, metrics, device)


def names_in_order(
    model: nn.Module, on_disk: Sequence[BlockExtent], host_blocks: Mapping[str, HostBlock]
) -> dict[str, list[str]]:
    """Return the parameter names of each block; blocks are in execution order."""
    blocks: dict[str, BlockExtent | HostBlock] = {b.name: b for b in on_disk} | dict(host_blocks)
    return {
        name: [tensor.name for tensor in blocks[name].tensors]
        for name, _ in model.named_modules(remove_duplicate=False)
        if name in blocks
    }


class Streaming:
    """The streamed blocks of one model; one forward pass at a time.

    Attributes:
        loader: Brings the blocks.
        blocks: Names of the blocks, in execution order.
        metrics: Counts the seconds that forward passes waited.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Mapping[str, Sequence[str]],
        loader: BlockLoader,
        metrics: WeightMetrics,
        device: torch.device,
    ) -> None:
        """Attach the hooks.

        Args:
            model: The model. Parameters of the blocks are on the meta device.
            blocks: In execution order, the names of each block's parameters as the loader returns
                them.
            loader: Brings the blocks.
            metrics: Counts the seconds that forward passes waited.
            device: The device where the blocks compute.
        """
        self.loader = loader
        self.blocks = tuple(blocks)
        self.metrics = metrics
        self._slots = [[parameter_slot(model, name) for name in names] for names in blocks.values()]
        self._absent = [[_on_meta(own[name]) for own, name in slots] for slots in self._slots]
        self._entered: int | None = None
        for index, name in enumerate(blocks):
            block = model.get_submodule(name)
            self._assign(index, self._absent[index])
            _move_buffers(block, device)
            add_hook_to_module(block, _Hook(self, index, device, skipped_arguments(model)))

    def enter(self, index: int) -> None:
        """Give a block its weights.

        Raises:
            WeightsUnreadable: The weights cannot be read.
        """
        self.leave()  # a forward pass that failed within a block did not call it
        parameters, waited = self.loader.acquire(index)
        self.metrics.count_stall(waited)
        self._assign(index, parameters)
        self._entered = index

    def leave(self) -> None:
        """Take the weights of the entered block away again."""
        if self._entered is not None:
            index, self._entered = self._entered, None
            self._assign(index, self._absent[index])
            self.loader.release()

    def close(self) -> None:
        """Close the loader. The model cannot run any more."""
        self.loader.close()

    def _assign(self, index: int, parameters: Sequence[nn.Parameter | None]) -> None:
        for (own_parameters, name), parameter in zip(self._slots[index], parameters, strict=True):
            own_parameters[name] = parameter


class _Hook(ModelHook):  # type: ignore[misc]
    """The hook that Accelerate calls around a block's forward pass."""

    def __init__(
        self, streaming: Streaming, index: int, device: torch.device, skipped: Sequence[str] | None
    ) -> None:
        self._streaming = streaming
        self._index = index
        self._device = device
        self._skipped = skipped

    def pre_forward(self, _module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Give the block its weights, and move its arguments to the device."""
        if self._device.type != "cpu":  # without an accelerator all arguments are there already
            kwargs = send_to_device(kwargs, self._device, skip_keys=self._skipped)
            args = send_to_device(args, self._device)
        self._streaming.enter(self._index)
        return args, kwargs

    def post_forward(self, _module: nn.Module, output: Any) -> Any:
        """Take the weights away."""
        self._streaming.leave()
        return output


def _on_meta(parameter: nn.Parameter | None) -> nn.Parameter | None:
    if parameter is None or parameter.is_meta:
        return parameter
    return nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)


def _move_buffers(block: nn.Module, device: torch.device) -> None:
    for module in block.modules():
        buffers = own_buffers(module)
        for name, buffer in buffers.items():
            if buffer is not None:
                buffers[name] = buffer.to(device)
