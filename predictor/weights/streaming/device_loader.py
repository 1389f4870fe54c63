"""Copies blocks ahead of their use from main memory to the accelerator where they compute."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from predictor.metrics import WeightMetrics
from predictor.placement.units import STREAM_BUFFERS, STREAM_PIECE, count_pieces
from predictor.weights.extents import Block, Tensor, parameters_in, short, view_of
from predictor.weights.streaming.copy_stream import Event, Link
from predictor.weights.streaming.direct_io import Buffer
from predictor.weights.streaming.host_loader import FromDisk
from predictor.weights.streaming.prefetch_ring import Ring

_ALIGNMENT = 256
"""Bytes that a tensor's address on the accelerator is a multiple of: matrix products are slower on
less, and PyTorch's own allocator gives more."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A block that waits in main memory.

    Attributes:
        tensors: Where its parameters are in the buffer, and in the accelerator's memory: one copy
            brings all of them. A copy for each would have the thread that copies wait as often for
            the interpreter's lock, which the thread that computes gives up for moments only.
        buffer: Holds them.
    """

    tensors: tuple[Tensor, ...]
    buffer: Buffer

    @property
    def size(self) -> int:
        """Bytes of the buffer that hold them."""
        return _end(self.tensors)


Move = Callable[[str, torch.Tensor, torch.Tensor], None]
"""Copies a parameter of this name into another tensor of its dtype and shape."""


def take_out(model: nn.Module, name: str, move: Move) -> Waiting:
    """Moves a block's parameters into one buffer; the block's own are on the meta device then."""
    parameters = dict(model.get_submodule(name).named_parameters(prefix=name))
    tensors = _lay_out(Tensor(key, p.dtype, tuple(p.shape), 0) for key, p in parameters.items())
    buffer = Buffer(_end(tensors))
    for tensor, (key, parameter) in zip(tensors, parameters.items(), strict=True):
        move(key, parameter, view_of(buffer.tensor, tensor))
        module, own = place_of(model, key)
        absent = torch.empty_like(parameter, device="meta")
        module._parameters[own] = nn.Parameter(absent, requires_grad=False)
    return Waiting(tensors, buffer)


def place_of(model: nn.Module, parameter: str) -> tuple[nn.Module, str]:
    """Returns the module that a parameter is of, and its name there."""
    owner, _, name = parameter.rpartition(".")
    return model.get_submodule(owner), name


@dataclass(frozen=True, slots=True)
class Pieces:
    """A block on disk, read piece by piece so that little main memory is enough.

    Attributes:
        first: Index of its first piece among all.
        pieces: They, each with one tensor of bytes for each run of bytes of one parameter.
        runs: For each piece, where in the accelerator's memory each of these is.
        tensors: Where the parameters are there.
    """

    first: int
    pieces: tuple[Block, ...]
    runs: tuple[tuple[slice, ...], ...]
    tensors: tuple[Tensor, ...]


def cut(block: Block, first: int) -> Pieces:
    """Returns the pieces of a block.

    Args:
        block: Where it lies on disk.
        first: Index of its first piece.
    """
    tensors = _lay_out(block.tensors)
    pieces, runs = [], []
    for segment in short(block.segments, STREAM_PIECE):
        here, there = [], []
        for tensor, stored in zip(tensors, block.tensors, strict=True):
            begin = max(stored.at, segment.at)
            count = min(stored.at + stored.nbytes, segment.at + segment.length) - begin
            if count > 0:
                here.append(Tensor(tensor.name, torch.uint8, (count,), begin - segment.at))
                place = tensor.at + begin - stored.at
                there.append(slice(place, place + count))
        pieces.append(Block(block.name, (replace(segment, at=0),), tuple(here), block.source))
        runs.append(tuple(there))
    return Pieces(first, tuple(pieces), tuple(runs), tensors)


Source = Waiting | Pieces
"""A block that waits, or one on disk."""


class _Slot:
    """Memory of the accelerator, and each block's parameters as they are in it."""

    def __init__(self, sources: Sequence[Source], device: torch.device, free: Event) -> None:
        size = max(_end(source.tensors) for source in sources)
        self.memory = torch.empty(size, dtype=torch.uint8, device=device)
        self.parameters = [parameters_in(self.memory, source.tensors) for source in sources]
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
            disk: Reads the pieces of those on disk; None where there are none.
            link: Leads to the accelerator.
            device: The accelerator.
            metrics: Is told what was copied.
        """
        self.disk = disk
        self._sources = sources
        self._link = link
        self._metrics = metrics
        self._copying: Event | None = None  # from the memory that `disk` reads to
        self._held: _Slot | None = None
        free = link.mark()
        self._slots = [_Slot(sources, device, free) for _ in range(STREAM_BUFFERS)]
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

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        """Where pieces from disk are in main memory on their way."""
        return () if self.disk is None else self.disk.buffers

    @property
    def device_bytes(self) -> int:
        """Bytes of the accelerator's memory that blocks are brought to."""
        return sum(slot.memory.nbytes for slot in self._slots)

    def close(self) -> None:
        """Ends copying and reading."""
        self._ring.close()
        for slot in self._slots:
            self._link.finish(slot.copied)
        if self.disk is not None:
            self.disk.close()

    def _fetch(self, index: int, slot: _Slot) -> None:
        source = self._sources[index]
        if isinstance(source, Waiting):
            self._copy(slot, [slot.memory[: source.size]], [source.buffer.tensor[: source.size]])
        elif self.disk is None:
            raise LookupError("nothing reads the blocks on disk")
        else:
            for number, places in enumerate(source.runs, source.first):
                self._read(self.disk, number, slot, places)

    def _read(self, disk: FromDisk, number: int, slot: _Slot, places: Sequence[slice]) -> None:
        """Copies a piece, when the one before is no longer on its way from the same memory."""
        if self._copying is not None:
            self._link.finish(self._copying)
            self._copying = None
        disk.give_back()
        found, _ = disk.take(number)
        self._copy(slot, [slot.memory[place] for place in places], found)
        self._copying = slot.copied

    def _copy(
        self, slot: _Slot, into: Sequence[torch.Tensor], source: Sequence[torch.Tensor]
    ) -> None:
        slot.copied = self._link.copy(into, source, slot.computed)
        self._metrics.copied(sum(tensor.nbytes for tensor in source))


def to_device(
    in_order: Sequence[str],
    on_disk: Sequence[Block],
    waiting: Mapping[str, Waiting],
    link: Link,
    device: torch.device,
    metrics: WeightMetrics,
) -> ToDevice:
    """Returns what brings these blocks to an accelerator.

    Args:
        in_order: Names of all blocks, in execution order.
        on_disk: Those that are read for every pass.
        waiting: By name, those that are in main memory.
        link: Leads to the accelerator.
        device: The accelerator.
        metrics: Is told what was read and copied.
    """
    blocks = {block.name: block for block in on_disk}
    sources: list[Source] = []
    pieces: list[Block] = []
    for name in in_order:
        source = waiting.get(name) or cut(blocks[name], len(pieces))
        pieces.extend(source.pieces if isinstance(source, Pieces) else ())
        sources.append(source)
    slots = count_pieces(max((block.size for block in on_disk), default=0))
    disk = FromDisk(pieces, metrics, slots=slots) if pieces else None
    return ToDevice(sources, disk, link, device, metrics)


def _lay_out(tensors: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """Returns tensors with their places in the memory of a block of their own."""
    found: list[Tensor] = []
    for tensor in tensors:
        found.append(replace(tensor, at=-(-_end(found[-1:]) // _ALIGNMENT) * _ALIGNMENT))
    return tuple(found)


def _end(tensors: Sequence[Tensor]) -> int:
    return max((tensor.at + tensor.nbytes for tensor in tensors), default=0)
