"""The buffers through which offloaded parts are streamed: how many, and how large.

`demand` counts them for the plan; `weights.streaming` allocates them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

STREAM_BUFFERS = 2
"""Buffers for blocks, or for their modules, on the device that computes: one is filled while the
block in the other computes. More would only help if reading is fast at times and slow at others,
and each takes a block's memory."""

PART_BUFFERS = 1
"""Buffers for parts outside of blocks. They run before and after all blocks, so that one is filled
while the blocks compute."""

STREAM_PIECE = 64 * 1024**2
"""Bytes of one direct read, and the most bytes of a piece of a block on its way from disk through
main memory to a GPU. A disk is as fast with reads of 4 MiB as with any larger ones, but between two
reads the reading thread may have to wait for the computing thread."""

MAX_PIECES = 8
"""Most pieces in main memory on their way to a GPU. A disk reads 8 pieces in the time in which a
link that is ten times as fast copies a block of 5 GB, and so need not wait for the link."""

BOUNCE_BUFFER = 8 * 1024**2
"""Bytes of a bounce buffer, and of one read through it when the processor computes. The bytes are
still in the processor's cache when they are copied on, which gains more than the waits between
reads cost: 1.2 to 1.4 times as fast from a virtual machine's disk. Volumes on the network were not
measured."""

WIDEST_STORED = 4
"""How many times as large a tensor may be stored as it is served: float64 as bfloat16."""

BOUNCE_BUFFERS = 2
"""Bounce buffers: one is filled while the other is copied from."""

RESIDENT_READERS = 4
"""Reads at one time of what stays in memory. A disk or a network volume that serves several at a
time is as fast as it can be with these; a virtual machine's disk with one or two."""

PAGE_SLACK = 64 * 1024
"""Bytes of a block's buffer beyond the block: reads begin and end at whole pages, and so do
tensors."""


EXPERT_STAGING = 32 * 1024**2
"""Bytes of expert slots that are free at any time, on the device that computes. Experts that do
not stay are read into these and computed there, in waves if they are more."""

EXPERT_READERS = 4
"""Experts that are read at one time."""

EXPERT_BOUNCE_BUFFER = 1024**2
"""Bytes of main memory that each reader of experts reads through."""

EXPERT_KERNELS = 56 * 1024**2
"""Bytes of oneDNN's kernels for experts in half precision on a processor. It compiles and keeps one
of 0.65 to 0.82 MiB (measured) for each number of rows, of which 18 buckets have up to 512, for both
matrix products of an expert, and for two numbers of threads."""

TENSOR_ALIGNMENT = 64
"""Bytes at a multiple of which each tensor begins in a slot or a store: a cache line."""

_PAGE = 4096


def slot_offsets(slices: Iterable[int]) -> tuple[int, ...]:
    """Return where each tensor of an expert begins in a slot, and the bytes of the slot last.

    Args:
        slices: Bytes of the expert in each of its tensors.
    """
    offsets, end = [], 0
    for size in slices:
        begin = _round_up(end, TENSOR_ALIGNMENT)
        offsets.append(begin)
        end = begin + size
    return (*offsets, _round_up(end, _PAGE))


def slot_bytes(slices: Iterable[int]) -> int:
    """Return the bytes of a slot that holds any one expert of a layer.

    Args:
        slices: Bytes of the expert in each of its tensors.
    """
    return slot_offsets(slices)[-1]


def count_staging_slots(count: int, size: int) -> int:
    """Return how many slots are for experts that do not stay.

    Args:
        count: The most experts of a layer.
        size: Bytes of a slot.
    """
    return min(count, max(2, math.ceil(EXPERT_STAGING / size)))


def _round_up(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def count_pieces(largest: int) -> int:
    """Return how many pieces are in main memory at one time on their way to a GPU.

    Args:
        largest: Bytes of the largest block. Pieces take no more memory than two whole blocks.
    """
    return max(STREAM_BUFFERS, min(MAX_PIECES, STREAM_BUFFERS * largest // STREAM_PIECE))


def needs_bounce_buffers(largest: int) -> bool:
    """Return whether blocks are read through bounce buffers when the processor computes.

    Args:
        largest: Bytes of the largest block. Two smaller blocks stay in the processor's cache
            anyway.
    """
    return largest > BOUNCE_BUFFERS * BOUNCE_BUFFER
