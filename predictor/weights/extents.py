"""Where a block's weights lie on disk: which bytes of which files, and what they are.

A block is read into one buffer, segment by segment, and its tensors are views of that buffer. The
offload store keeps each block as one segment; a checkpoint that is stored as it is served is read
in place, in as many segments as its tensors are scattered over.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from predictor.placement.stored import read_header

PAGE = 4096
"""What direct reads are aligned to in the file, in memory and in length: a page is a multiple of
every device's own block."""

_SMALL_GAP = PAGE
"""Bytes between two tensors that are read with them: cheaper than one more read."""

_TORCH = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


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


@dataclass(frozen=True, slots=True)
class _Stored:
    """A tensor in a file."""

    name: str
    file: Path
    begin: int
    end: int
    dtype: torch.dtype
    shape: tuple[int, ...]


def in_place(
    name: str, wanted: Mapping[str, torch.Tensor], index: Mapping[str, Mapping[str, str]]
) -> Block | None:
    """Returns a block as it lies in safetensors files; None where it is not stored as it is served.

    Args:
        name: The block's name.
        wanted: Its parameters by name, on the meta device, as they are served.
        index: transformers' index of weights on disk: for each parameter ``safetensors_file`` and
            ``weight_name``.
    """
    stored = list(_stored(wanted, index))
    fits = len(stored) == len(wanted) and all(
        one.dtype == wanted[one.name].dtype
        and one.shape == tuple(wanted[one.name].shape)
        and one.begin % one.dtype.itemsize == 0
        for one in stored
    )
    return _laid_out(name, stored) if fits else None


def _stored(wanted: Iterable[str], index: Mapping[str, Mapping[str, str]]) -> Iterator[_Stored]:
    headers: dict[Path, dict[str, Any]] = {}
    begins: dict[Path, int] = {}
    for name in wanted:
        entry = index.get(name)
        if entry is None or "safetensors_file" not in entry:
            continue
        file = Path(entry["safetensors_file"])
        if file not in headers:
            headers[file] = read_header(file)
            with file.open("rb") as stream:
                begins[file] = 8 + int.from_bytes(stream.read(8), "little")
        found = headers[file].get(entry["weight_name"])
        if found is None or found["dtype"] not in _TORCH:
            continue
        begin, end = (begins[file] + offset for offset in found["data_offsets"])
        yield _Stored(name, file, begin, end, _TORCH[found["dtype"]], tuple(found["shape"]))


def _laid_out(name: str, stored: list[_Stored]) -> Block:
    """Merges neighbours in a file into segments, and gives each a place in the buffer."""
    segments: list[Segment] = []
    tensors: list[Tensor] = []
    free = 0
    for run in _runs(sorted(stored, key=lambda one: (one.file, one.begin))):
        start = run[0].begin // PAGE * PAGE
        length = pages(max(one.end for one in run) - start)
        file = run[0].file
        segments.append(Segment(file, start, length, free, stamp_of(file.stat())))
        tensors += [Tensor(t.name, t.dtype, t.shape, free + t.begin - start) for t in run]
        free += length
    return Block(name, tuple(segments), tuple(tensors), "checkpoint")


def _runs(stored: Iterable[_Stored]) -> Iterator[list[_Stored]]:
    run: list[_Stored] = []
    for one in stored:
        if run and (one.file != run[0].file or one.begin > run[-1].end + _SMALL_GAP):
            yield run
            run = []
        run.append(one)
    if run:
        yield run


def view_of(buffer: torch.Tensor, tensor: Tensor) -> torch.Tensor:
    """Returns a tensor in a block's buffer of uint8."""
    count = tensor.dtype.itemsize
    for length in tensor.shape:
        count *= length
    return buffer[tensor.at : tensor.at + count].view(tensor.dtype).view(tensor.shape)
