"""Forward passes on a processor come in few shapes: oneDNN compiles and keeps kernels for each.

Without buckets a server under random load grew by a gigabyte of kernels in half a minute; with them
by some 100 MiB, and no further.
"""

from __future__ import annotations

_DIGITS = 4
"""Binary digits before the zeros of a bucket's bound. That makes eight buckets in each doubling,
so some dozens in all, and at most an eighth of a forward pass is padding."""

_NEW_STEP, _CONTEXT_STEP = 8, 64
"""Least steps. oneDNN has by far the fewest kernels for matrices of whole blocks of 64 columns."""

LEAST_PLAIN = 4
"""Bytes of a number with which products of any size have one kernel."""


def bucket_new_tokens(count: int) -> int:
    """Return how many columns are computed if the longest row has so many new tokens."""
    return _round_up(count, _NEW_STEP) if count > 1 else count


def bucket_rows(count: int) -> int:
    """Return how many rows are computed for so many: 1, 2, 3, 4, 6, 8, 12, 16..."""
    step = 1 << max(0, count.bit_length() - 2)
    return -(-count // step) * step


def bucket_context(count: int) -> int:
    """Return how many columns attention reads if the longest row has so many tokens."""
    return _round_up(count, _CONTEXT_STEP)


def _round_up(count: int, least: int) -> int:
    step = max(least, 1 << max(0, count.bit_length() - _DIGITS))
    return -(-count // step) * step
