"""Passes on a processor come in few shapes: oneDNN compiles kernels for each, and keeps them.

Without rounding a server under random load grew by a gigabyte of kernels in half a minute; with it
by some 100 MiB, and no further.
"""

from __future__ import annotations

_DIGITS = 4
"""Binary digits that rounded numbers have before their zeros: eight in each doubling, so that
there are some dozens, and no more than an eighth is padding."""

_NEW_STEP, _WIDTH_STEP = 8, 64
"""Least steps. oneDNN's kernels for matrices of whole blocks of 64 columns are fewest by far."""


def bucket_new_tokens(count: int) -> int:
    """Returns how many columns are computed where the longest row has so many new tokens."""
    return _rounded(count, _NEW_STEP) if count > 1 else count


def bucket_rows(count: int) -> int:
    """Returns how many rows are computed where there are so many: 1, 2, 3, 4, 6, 8, 12, 16..."""
    step = 1 << max(0, count.bit_length() - 2)
    return -(-count // step) * step


def bucket_context(count: int) -> int:
    """Returns how many columns attention reads where the longest row has so many tokens."""
    return _rounded(count, _WIDTH_STEP)


def _rounded(count: int, least: int) -> int:
    step = max(least, 1 << max(0, count.bit_length() - _DIGITS))
    return -(-count // step) * step
