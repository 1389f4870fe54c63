"""Makes the weights that stay in main memory resident there.

With safetensors, what `from_pretrained` puts on ``"cpu"`` are views of the mapped checkpoint file:
nothing was read yet, and a memory limit silently takes the pages back, so that they are read again
for every token. A copy into anonymous memory is read once and stays.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from predictor.weights.copying import Move, Waiting, take_out
from predictor.weights.extents import PAGE, Block, Segment, pages, stamp_of
from predictor.weights.progress import Progress
from predictor.weights.reading import Buffer, Files, opened_files

_BUFFER = 16 * 1024**2
"""Bytes that are read at one time."""


def make_resident(
    model: nn.Module,
    progress: Progress,
    *,
    blocks: tuple[str, ...] = (),
    waits: Sequence[str] = (),
    maps: str | None = None,
) -> tuple[int, dict[str, Waiting]]:
    """Copies every tensor in main memory that is backed by a file, and blocks that wait there.

    Args:
        model: A loaded model, before Accelerate takes parts that it streams out of it.
        progress: Is told of every tensor.
        blocks: Names of the blocks, for the progress.
        waits: Blocks that wait for an accelerator.
        maps: Text of ``/proc/self/maps``; None reads it.

    Returns:
        The bytes copied from files, and the blocks that wait, whose own parameters are on the meta
        device then.
    """
    mapped = _FileMappings(Path("/proc/self/maps").read_text() if maps is None else maps)
    found = {name: tensor for name, tensor in _in_main_memory(model) if mapped.hold(tensor)}
    sizes = {name: tensor.nbytes for name, tensor in found.items()}
    progress.begin("reading weights", sizes, blocks)
    with opened_files() as files:
        reader = _Reader(files, mapped)

        def move(name: str, tensor: torch.Tensor, into: torch.Tensor) -> None:
            reader.read(tensor, into)
            progress.done(name)

        waiting = {block: take_out(model, block, move) for block in waits}
        moved = {tensor.name for block in waiting.values() for tensor in block.tensors}
        copied = _copy_all({n: t for n, t in found.items() if n not in moved}, move)
    progress.end()
    return copied + sum(size for name, size in sizes.items() if name in moved), waiting


def _copy_all(found: Mapping[str, torch.Tensor], move: Move) -> int:
    """Copies tensors in place, those that share memory once; returns the bytes copied."""
    copies: dict[tuple[int, torch.Size, tuple[int, ...]], torch.Tensor] = {}
    for name, tensor in found.items():
        key = (tensor.data_ptr(), tensor.shape, tensor.stride())
        if key not in copies:
            copies[key] = torch.empty_like(tensor)
            move(name, tensor, copies[key])
        tensor.data = copies[key]
    return sum(copy.nbytes for copy in copies.values())


class _Reader:
    """Reads tensors of mapped files past the page cache, which a memory limit makes slow."""

    def __init__(self, files: Files, mapped: _FileMappings) -> None:
        self._files = files
        self._mapped = mapped
        self._buffer = Buffer(_BUFFER)

    def read(self, tensor: torch.Tensor, into: torch.Tensor) -> None:
        """Copies a tensor into another of its shape."""
        if not (self._mapped.hold(tensor) and tensor.is_contiguous()):
            into.copy_(tensor.detach())
            return
        file, offset = self._mapped.place(tensor)
        flat = into.view(-1) if into.dim() else into.view(1)
        self._read(file, offset, flat.view(torch.uint8))

    def _read(self, file: Path, offset: int, into: torch.Tensor) -> None:
        done, stamp = 0, stamp_of(file.stat())
        while done < len(into):
            start = (offset + done) // PAGE * PAGE
            skip = offset + done - start
            count = min(len(into) - done, _BUFFER - skip)
            segment = Segment(file, start, pages(skip + count), 0, stamp)
            self._files.read(Block(file.name, (segment,), (), "checkpoint"), self._buffer)
            into[done : done + count] = self._buffer.tensor[skip : skip + count]
            done += count


def _in_main_memory(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.device.type == "cpu":
            yield name, tensor


class _FileMappings:
    """The address ranges of this process that are backed by files."""

    def __init__(self, maps: str) -> None:
        self._ranges = sorted(_file_ranges(maps))
        self._starts = [start for start, *_ in self._ranges]

    def hold(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor's first byte lies in such a range."""
        return self._range(tensor) is not None

    def place(self, tensor: torch.Tensor) -> tuple[Path, int]:
        """Returns the file of a tensor that they hold, and its first byte's offset there."""
        found = self._range(tensor)
        if found is None:
            raise LookupError("the tensor is in no mapped file")
        start, _, offset, file = found
        return Path(file), offset + tensor.data_ptr() - start

    def _range(self, tensor: torch.Tensor) -> tuple[int, int, int, str] | None:
        address = tensor.data_ptr()
        index = bisect.bisect_right(self._starts, address) - 1
        return self._ranges[index] if index >= 0 and address < self._ranges[index][1] else None


def _file_ranges(maps: str) -> Iterator[tuple[int, int, int, str]]:
    """Lines are ``start-end perms offset device inode path``; inode 0 is anonymous (proc(5))."""
    for line in maps.splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[4] != "0":
            start, _, end = fields[0].partition("-")
            yield int(start, 16), int(end, 16), int(fields[2], 16), fields[5]
