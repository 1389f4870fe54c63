"""Where a block's weights lie on disk: which bytes of which files, and what they are.

A block is read into one buffer, segment by segment, and its tensors are views of that buffer. The
offload store keeps each block as one segment; a checkpoint that is stored as it is served is read
in place, in as many segments as its tensors are scattered over.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from predictor.checkpoint.safetensors_header import data_start, read_header
from predictor.dtypes import BY_CODE

PAGE = 4096
"""What direct reads are aligned to in the file, in memory and in length: a page is a multiple of
every device's own block."""

_SMALL_GAP = PAGE
"""Bytes between two tensors that are read with them: cheaper than one more read."""

_TORCH = {code: getattr(torch, dtype.name) for code, dtype in BY_CODE.items()}

Stamp = tuple[int, int, int]
"""A file's device, number and size."""


def stamp_of(stat: os.stat_result) -> Stamp:
    """Returns what tells a file from another that has taken its name."""
    return (stat.st_dev, stat.st_ino, stat.st_size)


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive bytes of a file and their place in a block's buffer.

    Attributes:
        file: The file.
        start: Of the first byte in the file; a multiple of `PAGE`.
        length: How many bytes; a multiple of `PAGE`, and so it may end behind the file's end.
        at: Of the first byte in the buffer; a multiple of `PAGE`.
        stamp: Of the file in which the bytes lie so; another one may take its name.
    """

    file: Path
    start: int
    length: int
    at: int
    stamp: Stamp

    @property
    def needed(self) -> int:
        """How many of its bytes the file has."""
        _, _, size = self.stamp
        return min(self.length, size - self.start)


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor in a block's buffer.

    Attributes:
        name: The parameter's, from the model down.
        dtype: Of its elements.
        shape: Its shape.
        at: Of its first byte in the buffer.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    at: int

    @property
    def nbytes(self) -> int:
        """Bytes of it."""
        return self.dtype.itemsize * math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Block:
    """A block that is streamed.

    Attributes:
        name: The module's.
        segments: What to read.
        tensors: What is then in the buffer.
        source: Where it is read from, for metrics: ``"store"`` or ``"checkpoint"``.
    """

    name: str
    segments: tuple[Segment, ...]
    tensors: tuple[Tensor, ...]
    source: str

    @property
    def size(self) -> int:
        """Bytes of its buffer."""
        return max((segment.at + segment.length for segment in self.segments), default=0)


def pages(count: int) -> int:
    """Returns bytes rounded up to whole pages."""
    return -(-count // PAGE) * PAGE


def in_place(
    wanted: Mapping[str, Mapping[str, torch.Tensor]], index: Mapping[str, Mapping[str, str]]
) -> tuple[Block, ...] | None:
    """Returns blocks as they lie in safetensors files; None if one is not stored as it is served.

    Args:
        wanted: For each block its parameters by name, on the meta device, as they are served.
        index: transformers' index of weights on disk: for each parameter ``safetensors_file`` and
            ``weight_name``.
    """
    tensors_of = functools.cache(_tensors_of)  # many blocks lie in one file
    blocks = []
    for name, parameters in wanted.items():
        stored: dict[str, _Stored] = {}
        for key, parameter in parameters.items():
            entry = index.get(key, {})
            if "safetensors_file" not in entry:
                return None
            found = tensors_of(Path(entry["safetensors_file"])).get(entry["weight_name"])
            if found is None or not found.serves(parameter):
                return None
            stored[key] = found
        blocks.append(_laid_out(name, stored))
    return tuple(blocks)


@dataclass(frozen=True, slots=True)
class _Stored:
    """A tensor in a file."""

    file: Path
    begin: int
    end: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    def serves(self, parameter: torch.Tensor) -> bool:
        """Whether its bytes are a parameter's as they are, and can be looked at where they lie."""
        is_alike = (self.dtype, self.shape) == (parameter.dtype, tuple(parameter.shape))
        return is_alike and self.begin % self.dtype.itemsize == 0


def _tensors_of(file: Path) -> dict[str, _Stored]:
    start = data_start(file)
    return {
        name: _Stored(
            file,
            start + entry["data_offsets"][0],
            start + entry["data_offsets"][1],
            _TORCH[entry["dtype"]],
            tuple(entry["shape"]),
        )
        for name, entry in read_header(file).items()
        if entry["dtype"] in _TORCH
    }


def _laid_out(name: str, stored: Mapping[str, _Stored]) -> Block:
    """Merges neighbours in a file into segments, and gives each a place in the buffer."""
    segments: list[Segment] = []
    tensors: list[Tensor] = []
    free = 0
    for run in _runs(stored):
        file, begin = stored[run[0]].file, stored[run[0]].begin
        start = begin // PAGE * PAGE
        length = pages(max(stored[key].end for key in run) - start)
        segments.append(Segment(file, start, length, free, stamp_of(file.stat())))
        for key in run:
            one = stored[key]
            tensors.append(Tensor(key, one.dtype, one.shape, free + one.begin - start))
        free += length
    return Block(name, tuple(segments), tuple(tensors), "checkpoint")


def _runs(stored: Mapping[str, _Stored]) -> Iterator[list[str]]:
    """Names of tensors that lie one behind the other."""
    run: list[str] = []
    for key, one in sorted(stored.items(), key=lambda item: (item[1].file, item[1].begin)):
        before = stored[run[-1]] if run else one
        if one.file != before.file or one.begin > before.end + _SMALL_GAP:
            yield run
            run = []
        run.append(key)
    if run:
        yield run


def short(segments: Sequence[Segment], most: int) -> Iterator[Segment]:
    """Yields the same bytes in segments of so many at most, a number of whole pages."""
    for whole in segments:
        for begin in range(0, whole.length, most):
            length = min(most, whole.length - begin)
            yield replace(whole, start=whole.start + begin, at=whole.at + begin, length=length)


def view_of(buffer: torch.Tensor, tensor: Tensor) -> torch.Tensor:
    """Returns a tensor in a block's buffer of uint8."""
    found = buffer[tensor.at : tensor.at + tensor.nbytes]
    return found.view(tensor.dtype).view(tensor.shape)


def parameters_in(buffer: torch.Tensor, tensors: Sequence[Tensor]) -> list[nn.Parameter]:
    """Returns parameters whose memory is a block's buffer of uint8."""
    return [nn.Parameter(view_of(buffer, one), requires_grad=False) for one in tensors]
