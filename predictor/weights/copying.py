"""Copies blocks ahead of their use from main memory to the accelerator where they compute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from predictor.metrics import WeightMetrics
from predictor.placement.units import STREAM_BUFFERS
from predictor.weights.from_disk import FromDisk
from predictor.weights.link import Event, Link
from predictor.weights.reading import Buffer
from predictor.weights.ring import Ring

_ALIGNMENT = 256
"""Bytes that a tensor's address on the accelerator is a multiple of: matrix products are slower on
less, and PyTorch's own allocator gives more."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A block that waits in main memory.

    Attributes:
        names: Of its parameters, from the model down.
        tensors: They, as views of the buffer.
        buffer: Holds them.
    """

    names: tuple[str, ...]
    tensors: tuple[torch.Tensor, ...]
    buffer: Buffer


def take_out(model: nn.Module, name: str) -> Waiting:
    """Moves a block's parameters into one buffer; the block's own are on the meta device then."""
    parameters = dict(model.get_submodule(name).named_parameters(prefix=name))
    offsets, size = _lay_out(tuple(parameters.values()))
    buffer = Buffer(size)
    tensors = _views(buffer.tensor, tuple(parameters.values()), offsets)
    for tensor, (key, parameter) in zip(tensors, parameters.items(), strict=True):
        tensor.copy_(parameter.detach())
        owner, _, own = key.rpartition(".")
        absent = torch.empty_like(parameter, device="meta")
        model.get_submodule(owner)._parameters[own] = nn.Parameter(absent, requires_grad=False)
    return Waiting(tuple(parameters), tensors, buffer)


Source = Waiting | int
"""A block that waits, or the index of one on disk."""


class _Slot:
    """Memory of the accelerator, and each block's parameters as they are in it."""

    def __init__(
        self, blocks: Sequence[Sequence[torch.Tensor]], device: torch.device, free: Event
    ) -> None:
        laid_out = [_lay_out(block) for block in blocks]
        size = max(end for _, end in laid_out)
        self.memory = torch.empty(size, dtype=torch.uint8, device=device)
        self.parameters = [
            [nn.Parameter(view, requires_grad=False) for view in _views(self.memory, block, places)]
            for block, (places, _) in zip(blocks, laid_out, strict=True)
        ]
        self.computed = self.copied = free


class ToDevice:
    """Blocks in main memory and on disk, brought to where they compute; a `streaming.Lane`."""

    def __init__(
        self,
        sources: Sequence[Source],
        disk: FromDisk | None,
        link: Link,
        device: torch.device,
        metrics: WeightMetrics,
    ) -> None:
        """Takes the accelerator's memory and begins to copy.

        Args:
            sources: The blocks, in execution order.
            disk: Reads those on disk; None where there are none.
            link: Leads to the accelerator.
            device: The accelerator.
            metrics: Is told what was copied.
        """
        self._sources = sources
        self._disk = disk
        self._link = link
        self._metrics = metrics
        self._copying: Event | None = None  # from the memory that `disk` reads to
        self._held: _Slot | None = None
        blocks = [self._tensors(source) for source in sources]
        free = link.mark()
        self._slots = [_Slot(blocks, device, free) for _ in range(STREAM_BUFFERS)]
        self._ring = Ring(range(len(sources)), self._slots, self._fetch)

    def take(self, index: int) -> tuple[Sequence[nn.Parameter], float]:
        """Returns a block's parameters on the accelerator, and the seconds that it lost lately.

        Raises:
            WeightsUnreadable: They cannot be read.
        """
        began = self._link.mark()
        self._held, _ = self._ring.take(index)
        self._link.wait(self._held.copied, since=began)
        return self._held.parameters[index], self._link.stalled()

    def give_back(self) -> None:
        """Lets the memory be filled again, once all that was asked of the accelerator is done."""
        if self._held is not None:
            self._held.computed = self._link.mark()
            self._ring.give_back(self._held)
            self._held = None

    def close(self) -> None:
        """Ends copying and reading."""
        self._ring.close()
        if self._disk is not None:
            self._disk.close()

    def _tensors(self, source: Source) -> Sequence[torch.Tensor]:
        if isinstance(source, Waiting):
            return source.tensors
        return () if self._disk is None else self._disk.like(source)

    def _fetch(self, index: int, slot: _Slot) -> None:
        source = self._sources[index]
        if isinstance(source, Waiting):
            self._copy(slot, index, source.tensors)
        elif self._disk is not None:
            if self._copying is not None:  # what was read last may still be on its way
                self._link.finish(self._copying)
                self._disk.give_back()
                self._copying = None
            tensors, _ = self._disk.take(source)
            self._copy(slot, index, tensors)
            self._copying = slot.copied

    def _copy(self, slot: _Slot, index: int, tensors: Sequence[torch.Tensor]) -> None:
        slot.copied = self._link.copy(slot.parameters[index], tensors, slot.computed)
        self._metrics.copied(sum(tensor.nbytes for tensor in tensors))


def _lay_out(tensors: Sequence[torch.Tensor]) -> tuple[list[int], int]:
    """Returns where each tensor begins in a block's memory, and where the last one ends."""
    offsets, end = [], 0
    for tensor in tensors:
        offsets.append(-(-end // _ALIGNMENT) * _ALIGNMENT)
        end = offsets[-1] + tensor.nbytes
    return offsets, end


def _views(
    memory: torch.Tensor, like: Sequence[torch.Tensor], offsets: Sequence[int]
) -> tuple[torch.Tensor, ...]:
    return tuple(
        memory[offset : offset + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        for tensor, offset in zip(like, offsets, strict=True)
    )
