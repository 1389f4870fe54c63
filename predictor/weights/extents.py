"""The extents of blocks on disk: the bytes of files that hold each block's tensors.

A block is read into one buffer, segment by segment, and its tensors are views of that buffer. The
offload store keeps each block as one segment. A checkpoint that is stored as it is served is read
in place, in as many segments as its tensors are scattered over. Reading is left to `direct_io`.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from predictor.checkpoint.safetensors_header import data_start, read_header
from predictor.dtypes import BY_CODE
from predictor.placement.buffers import TENSOR_ALIGNMENT

PAGE = 4096
"""The alignment in bytes of direct reads: in the file, in memory and in length. A page is a
multiple of every device's own block."""

_SMALL_GAP = PAGE
"""Most bytes between two tensors of one segment: reading them is cheaper than one more read."""

_TORCH = {code: getattr(torch, dtype.name) for code, dtype in BY_CODE.items()}

FileIdentity = tuple[int, int, int, int]
"""A file's device, inode number, size, and time of modification in nanoseconds."""

BlockParameters = Mapping[str, Mapping[str, torch.Tensor]]
"""For each block its parameters by name, on the meta device, as they are served."""

CheckpointIndex = Mapping[str, Mapping[str, str]]
"""transformers' index of weights on disk: for each parameter ``safetensors_file`` and
``weight_name``."""


def identify_file(stat: os.stat_result) -> FileIdentity:
    """Return the identity of a file; a file that takes its name, or an edit, has another."""
    return (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)


@dataclass(frozen=True, slots=True)
class FileSegment:
    """Consecutive bytes of a file, and their place in a block's buffer.

    Attributes:
        file: The file.
        start: Offset of the first byte in the file, a multiple of `PAGE`.
        length: Number of bytes, a multiple of `PAGE`. The segment may end behind the file's end.
        at: Offset of the first byte in the buffer, a multiple of `PAGE`.
        file_identity: The identity of the file when this layout was read.
    """

    file: Path
    start: int
    length: int
    at: int
    file_identity: FileIdentity

    @property
    def needed(self) -> int:
        """Bytes of the segment that lie in the file."""
        _, _, size, _ = self.file_identity
        return min(self.length, size - self.start)


@dataclass(frozen=True, slots=True)
class TensorView:
    """A tensor in a block's buffer.

    Attributes:
        name: The parameter's full name in the model.
        dtype: The dtype of its elements.
        shape: Its shape.
        at: Offset of its first byte in the buffer.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    at: int

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return self.dtype.itemsize * math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a file.

    Attributes:
        file: The file.
        begin: Offset of its first byte in the file.
        end: Offset behind its last byte.
        dtype: The dtype of its elements.
        shape: Its shape.
        file_identity: The identity of the file when its header was read.
    """

    file: Path
    begin: int
    end: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    file_identity: FileIdentity

    def can_serve(self, parameter: torch.Tensor) -> bool:
        """Return whether a view of the stored bytes can be the parameter."""
        is_aligned = self.begin % self.dtype.itemsize == 0
        return is_aligned and self.dtype == parameter.dtype and self.can_be_cast(parameter)

    def can_be_cast(self, parameter: torch.Tensor) -> bool:
        """Return whether the parameter is this tensor in another dtype, or in the same."""
        are_alike = self.dtype.is_floating_point == parameter.is_floating_point()
        return are_alike and self.shape == tuple(parameter.shape)


@dataclass(frozen=True, slots=True)
class BlockExtent:
    """A block on disk.

    Attributes:
        name: The module's name.
        segments: The bytes to read.
        tensors: The tensors that the buffer then holds.
        source: The origin of the bytes, for metrics: ``"store"`` or ``"checkpoint"``.
        cast_from: For a block that is stored in another dtype than it is served in, the stored form
            of each tensor. The tensors are cast while they are read, and there are no segments.
    """

    name: str
    segments: tuple[FileSegment, ...]
    tensors: tuple[TensorView, ...]
    source: str
    cast_from: tuple[StoredTensor, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of its buffer."""
        if self.cast_from:
            return pages(max(tensor.at + tensor.nbytes for tensor in self.tensors))
        return max((segment.at + segment.length for segment in self.segments), default=0)

    @property
    def file(self) -> Path:
        """The first file that it is read from."""
        return self.cast_from[0].file if self.cast_from else self.segments[0].file


def largest(blocks: Iterable[BlockExtent]) -> int:
    """Return the bytes of the largest block's buffer; 0 without blocks."""
    return max((block.size for block in blocks), default=0)


def pages(count: int) -> int:
    """Return bytes rounded up to whole pages."""
    return -(-count // PAGE) * PAGE


def parameters_of_blocks(
    model: nn.Module, names: Sequence[str], *, without: Collection[str] = ()
) -> BlockParameters:
    """Return the parameters of blocks of a model.

    Args:
        model: The model.
        names: The blocks.
        without: Names of parameters to leave out.
    """
    return {
        name: {
            f"{name}.{key}": parameter
            for key, parameter in model.get_submodule(name).named_parameters(remove_duplicate=False)
            if f"{name}.{key}" not in without
        }
        for name in names
    }


def find_in_checkpoint(
    blocks: BlockParameters, index: CheckpointIndex
) -> tuple[BlockExtent, ...] | None:
    """Return the extents of blocks in the checkpoint's own safetensors files.

    Args:
        blocks: The blocks.
        index: The location of each parameter on disk.

    Returns:
        The extents, or None if a tensor is not there, whatever its dtype.
    """
    tensors_of = functools.cache(stored_tensors)  # one file holds many blocks
    extents = []
    for name, parameters in blocks.items():
        stored: dict[str, StoredTensor] = {}
        for key, parameter in parameters.items():
            entry = index.get(key, {})
            if "safetensors_file" not in entry:
                return None
            tensor = tensors_of(Path(entry["safetensors_file"])).get(entry["weight_name"])
            if tensor is None or not tensor.can_be_cast(parameter):
                return None
            stored[key] = tensor
        is_as_served = all(stored[key].can_serve(parameters[key]) for key in stored)
        extents.append(_lay_out(name, stored) if is_as_served else _cast(name, stored, parameters))
    return tuple(extents)


def _cast(
    name: str, stored: Mapping[str, StoredTensor], parameters: Mapping[str, torch.Tensor]
) -> BlockExtent:
    """Return the extent of a block whose tensors are cast, one behind the other in the buffer."""
    tensors: list[TensorView] = []
    end = 0
    for key, parameter in parameters.items():
        tensors.append(TensorView(key, parameter.dtype, tuple(parameter.shape), end))
        end += -(-parameter.nbytes // TENSOR_ALIGNMENT) * TENSOR_ALIGNMENT
    cast_from = tuple(stored[tensor.name] for tensor in tensors)
    return BlockExtent(name, (), tuple(tensors), "checkpoint", cast_from)


def stored_tensors(file: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a safetensors file by name, those of unknown dtypes excluded."""
    start, identity = data_start(file), identify_file(file.stat())
    return {
        name: StoredTensor(
            file,
            start + entry["data_offsets"][0],
            start + entry["data_offsets"][1],
            _TORCH[entry["dtype"]],
            tuple(entry["shape"]),
            identity,
        )
        for name, entry in read_header(file).items()
        if entry["dtype"] in _TORCH
    }


def _lay_out(name: str, stored: Mapping[str, StoredTensor]) -> BlockExtent:
    """Merge neighbours in a file into segments, and give each segment its place in the buffer."""
    segments: list[FileSegment] = []
    tensors: list[TensorView] = []
    end = 0
    for run in _runs(stored):
        first = stored[run[0]]
        start = first.begin // PAGE * PAGE
        length = pages(max(stored[key].end for key in run) - start)
        segments.append(FileSegment(first.file, start, length, end, first.file_identity))
        for key in run:
            tensor = stored[key]
            tensors.append(TensorView(key, tensor.dtype, tensor.shape, end + tensor.begin - start))
        end += length
    return BlockExtent(name, tuple(segments), tuple(tensors), "checkpoint")


def _runs(stored: Mapping[str, StoredTensor]) -> Iterator[list[str]]:
    """Yield the names of tensors that lie one behind the other."""
    run: list[str] = []
    for key, tensor in sorted(stored.items(), key=lambda item: (item[1].file, item[1].begin)):
        before = stored[run[-1]] if run else tensor
        if tensor.file != before.file or tensor.begin > before.end + _SMALL_GAP:
            yield run
            run = []
        run.append(key)
    if run:
        yield run


def split_segments(segments: Sequence[FileSegment], limit: int) -> Iterator[FileSegment]:
    """Yield the same bytes in shorter segments.

    Args:
        segments: The segments.
        limit: Most bytes of a shorter segment, a multiple of `PAGE`.
    """
    for whole in segments:
        for begin in range(0, whole.length, limit):
            length = min(limit, whole.length - begin)
            yield replace(whole, start=whole.start + begin, at=whole.at + begin, length=length)


def view_of(buffer: torch.Tensor, tensor: TensorView) -> torch.Tensor:
    """Return a tensor in a block's buffer of uint8."""
    data = buffer[tensor.at : tensor.at + tensor.nbytes]
    return data.view(tensor.dtype).view(tensor.shape)


def parameters_in(buffer: torch.Tensor, tensors: Sequence[TensorView]) -> list[nn.Parameter]:
    """Return parameters whose memory is a block's buffer of uint8."""
    return [nn.Parameter(view_of(buffer, tensor), requires_grad=False) for tensor in tensors]
