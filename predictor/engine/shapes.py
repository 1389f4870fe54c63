"""Passes on a processor come in few shapes, because oneDNN compiles a kernel for each and keeps it.

Without rounding a server under random load grew by a gigabyte of kernels in half a minute.
"""

from __future__ import annotations

_DIGITS = 4
"""Binary digits that rounded numbers have before their zeros: eight in each doubling, so that
there are some dozens, and no more than an eighth is padding."""


def rounded(count: int) -> int:
    """Returns the next number from `count` up of which only the first digits are not zero."""
    step = 1 << max(0, count.bit_length() - _DIGITS)
    return -(-count // step) * step
