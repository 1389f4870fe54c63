"""Copies the weights that stay in main memory into anonymous memory.

With safetensors, `from_pretrained` maps the checkpoint file, and tensors on ``"cpu"`` are views of
the mapping. No byte was read yet, and a memory limit silently evicts the pages, so that they are
read again for every token. A copy in anonymous memory is read once and stays. Which weights stay in
main memory is decided in `placement`.
"""

from __future__ import annotations

import bisect
import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from predictor.checkpoint.remote_files import RemoteWeights, require_ranges
from predictor.weights.extents import identify_file
from predictor.weights.parallel_reader import ParallelReader, PendingReads
from predictor.weights.progress import Progress
from predictor.weights.streaming.device_loader import CopyParameter, HostBlock, move_to_buffer


def make_resident(
    model: nn.Module,
    progress: Progress,
    remote: RemoteWeights | None = None,
    *,
    blocks: tuple[str, ...] = (),
    host_blocks: Sequence[str] = (),
    without: Collection[str] = (),
    maps: str | None = None,
) -> tuple[int, dict[str, HostBlock]]:
    """Copy every tensor in main memory that is backed by a file.

    Args:
        model: A loaded model to which Accelerate has attached no hooks yet.
        progress: Counts every tensor.
        remote: Fetches tensors that are not on local disk; None if all are.
        blocks: Names of the blocks, for the progress.
        host_blocks: Blocks that are streamed from main memory to an accelerator.
        without: Names of their parameters that are not streamed.
        maps: Text of ``/proc/self/maps``; None reads it.

    Returns:
        The bytes copied from files, and the host blocks by name. Parameters of host blocks are on
        the meta device in the model.
    """
    mapped = FileMappings(Path("/proc/self/maps").read_text() if maps is None else maps)
    file_backed = {name: tensor for name, tensor in _in_main_memory(model) if mapped.hold(tensor)}
    sizes = {name: tensor.nbytes for name, tensor in file_backed.items()}
    progress.begin("reading weights", sizes, blocks)
    with contextlib.closing(ParallelReader()) as files:
        copies: list[tuple[str, PendingReads]] = []

        def copy(name: str, tensor: torch.Tensor, into: torch.Tensor) -> None:
            _require(tensor, mapped, remote)
            copies.append((name, _begin_copy(tensor, into, mapped, files)))

        moved = {x: move_to_buffer(model, x, copy, without=without) for x in host_blocks}
        in_host_blocks = {tensor.name for block in moved.values() for tensor in block.tensors}
        copied = _copy_all({n: t for n, t in file_backed.items() if n not in in_host_blocks}, copy)
        for name, pending in copies:
            for read in pending:
                read.result()
            progress.done(name)
    progress.end()
    return copied + sum(size for name, size in sizes.items() if name in in_host_blocks), moved


def _copy_all(tensors: Mapping[str, torch.Tensor], copy: CopyParameter) -> int:
    """Copy tensors in place, tied ones once, and return the bytes copied."""
    copies: dict[tuple[int, torch.Size, tuple[int, ...]], torch.Tensor] = {}
    for name, tensor in tensors.items():
        key = (tensor.data_ptr(), tensor.shape, tensor.stride())
        if key not in copies:
            copies[key] = torch.empty_like(tensor)
            copy(name, tensor, copies[key])
        tensor.data = copies[key]
    return sum(tensor.nbytes for tensor in copies.values())


def _require(tensor: torch.Tensor, mapped: FileMappings, remote: RemoteWeights | None) -> None:
    """Have a mapped tensor in its file, should nobody have fetched it yet."""
    if remote is not None and mapped.hold(tensor):
        file, offset = mapped.locate(tensor)
        require_ranges(remote, [(file, offset, offset + tensor.nbytes)])


def _begin_copy(
    tensor: torch.Tensor, into: torch.Tensor, mapped: FileMappings, files: ParallelReader
) -> PendingReads:
    """Begin to copy a tensor into another of its shape, and return the reads to wait for.

    A mapped tensor is read from its file, past the page cache, which a memory limit slows down.
    """
    if not (mapped.hold(tensor) and tensor.is_contiguous()):
        into.copy_(tensor.detach())
        return []
    file, offset = mapped.locate(tensor)
    flat = into.view(-1) if into.dim() else into.view(1)
    return files.read_bytes(file, offset, identify_file(file.stat()), flat.view(torch.uint8))


def _in_main_memory(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.device.type == "cpu":
            yield name, tensor


class FileMappings:
    """The address ranges of this process that are backed by files."""

    def __init__(self, maps: str) -> None:
        """Parse the text of ``/proc/self/maps``."""
        self._ranges = sorted(_file_ranges(maps))
        self._starts = [start for start, *_ in self._ranges]

    def hold(self, tensor: torch.Tensor) -> bool:
        """Return whether a tensor's first byte lies in such a range."""
        return self._range(tensor) is not None

    def locate(self, tensor: torch.Tensor) -> tuple[Path, int]:
        """Return the file behind a tensor, and the offset of the tensor's first byte in it.

        Raises:
            LookupError: No file backs the tensor.
        """
        mapping = self._range(tensor)
        if mapping is None:
            raise LookupError("the tensor is in no mapped file")
        start, _, offset, file = mapping
        return Path(file), offset + tensor.data_ptr() - start

    def _range(self, tensor: torch.Tensor) -> tuple[int, int, int, str] | None:
        address = tensor.data_ptr()
        index = bisect.bisect_right(self._starts, address) - 1
        return self._ranges[index] if index >= 0 and address < self._ranges[index][1] else None


def _file_ranges(maps: str) -> Iterator[tuple[int, int, int, str]]:
    """Yield start, end, offset in the file, and file of each mapping of a file.

    Lines are ``start-end perms offset device inode path``; inode 0 is anonymous (proc(5)).
    """
    for line in maps.splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[4] != "0":
            start, _, end = fields[0].partition("-")
            yield int(start, 16), int(end, 16), int(fields[2], 16), fields[5]
