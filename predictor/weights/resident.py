"""Makes the weights that stay in main memory resident there.

With safetensors, what `from_pretrained` puts on ``"cpu"`` are views of the mapped checkpoint file:
nothing was read yet, and a memory limit silently takes the pages back, so that they are read again
for every token. A copy into anonymous memory is read once and stays.
"""

from __future__ import annotations

import bisect
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from predictor.weights.extents import stamp_of
from predictor.weights.progress import Progress
from predictor.weights.streaming.bounce_buffer import Staged
from predictor.weights.streaming.device_loader import Move, Waiting, take_out


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
    with contextlib.closing(Staged(torch.Tensor.copy_)) as files:

        def move(name: str, tensor: torch.Tensor, into: torch.Tensor) -> None:
            _begin(tensor, into, mapped, files)
            progress.done(name)

        waiting = {block: take_out(model, block, move) for block in waits}
        moved = {tensor.name for block in waiting.values() for tensor in block.tensors}
        copied = _copy_all({n: t for n, t in found.items() if n not in moved}, move)
        files.finish()
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


def _begin(tensor: torch.Tensor, into: torch.Tensor, mapped: _FileMappings, files: Staged) -> None:
    """Copies a tensor into another of its shape, which holds it when the files are finished.

    What is mapped is read past the page cache, which a memory limit makes slow.
    """
    if not (mapped.hold(tensor) and tensor.is_contiguous()):
        into.copy_(tensor.detach())
        return
    file, offset = mapped.place(tensor)
    flat = into.view(-1) if into.dim() else into.view(1)
    files.begin(file, offset, stamp_of(file.stat()), flat.view(torch.uint8))


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
