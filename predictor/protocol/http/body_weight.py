"""For how many bytes a body counts: for more than it has if it takes far more memory decoded.

Text takes at most 6 bytes for a byte of JSON. Numbers, lists, objects and short texts take more for
the characters between and around them, and so count for more. Such characters within texts count,
too: to tell them apart takes as long as decoding. English counts for a tenth more than it has, and
source code for a third.
"""

from __future__ import annotations

_WEIGHTS = {b"[": 11, b"{": 13, b'"': 3, b":": 5, b",": 4}
"""Bytes for which a character counts besides itself. Decoded, ``257,`` takes 64 bytes, ``[0],``
128, a level of ``[[[`` 100, ``{"":0},`` 262, and ``"ab",`` 98: 8 for each counted byte, or less."""


def counted_bytes(piece: bytes) -> int:
    """Return for how many bytes a piece of a body counts."""
    return len(piece) + sum(weight * piece.count(char) for char, weight in _WEIGHTS.items())
