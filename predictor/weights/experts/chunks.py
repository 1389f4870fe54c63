"""How an expert is cut into reads: what lies together in a file is read at once, up to a limit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from predictor.weights.experts.extents import ExpertExtent, FileRange
from predictor.weights.extents import PAGE, FileSegment, pages

_SMALL_GAP = 64
"""Bytes between two ranges of one chunk: less is padding between tensors."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes that are read at one time, and the parts of a slot that they go to.

    Attributes:
        segment: Whole pages of a file.
        parts: For each part its offset among these bytes, and the range that it is of: the
            `FileRange` with its own begin, length and place in the slot.
    """

    segment: FileSegment
    parts: tuple[tuple[int, FileRange], ...]


def chunks_of(extent: ExpertExtent, most: int) -> list[Chunk]:
    """Return an expert in chunks; ranges that lie one behind the other in a file share them.

    Args:
        extent: The expert.
        most: Most bytes of a chunk, a multiple of a page.
    """
    chunks: list[list[FileRange]] = []
    for whole in sorted(extent.ranges, key=lambda part: (part.file, part.begin)):
        for part in _split(whole, most - PAGE):  # a chunk may begin within a page
            last = chunks[-1] if chunks else None
            if last and _continues(last[-1], part) and _bytes(last) + part.length <= most - PAGE:
                last.append(part)
            else:
                chunks.append([part])
    return [_chunk(parts) for parts in chunks]


def _split(part: FileRange, most: int) -> Iterator[FileRange]:
    for offset in range(0, part.length, most):
        at = part.at + offset // part.stored.itemsize * part.served.itemsize
        length = min(most, part.length - offset)
        yield replace(part, begin=part.begin + offset, length=length, at=at)


def _continues(before: FileRange, part: FileRange) -> bool:
    gap = part.begin - before.begin - before.length
    return part.file == before.file and 0 <= gap < _SMALL_GAP


def _bytes(parts: Sequence[FileRange]) -> int:
    return parts[-1].begin + parts[-1].length - parts[0].begin


def _chunk(parts: Sequence[FileRange]) -> Chunk:
    first = parts[0]
    start = first.begin // PAGE * PAGE
    length = pages(first.begin - start + _bytes(parts))
    segment = FileSegment(first.file, start, length, 0, first.file_identity)
    return Chunk(segment, tuple((part.begin - start, part) for part in parts))
