"""Amounts of memory as people write them: Kubernetes quantities and Accelerate's file sizes.

Inside the predictor memory is an ``int`` of bytes; this module is the only place that turns text
into bytes and bytes into text.
"""

from __future__ import annotations

import re
from decimal import Decimal

_BINARY = {prefix: 1024**power for power, prefix in enumerate("KMGTPE", start=1)}
_DECIMAL = {prefix: 1000**power for power, prefix in enumerate("KMGTPE", start=1)}
_UNITS = {f"{prefix}i": unit for prefix, unit in _BINARY.items()} | {
    prefix.replace("K", "k"): unit for prefix, unit in _DECIMAL.items()
}
"""Kubernetes' suffixes."""

_PATTERN = re.compile(
    r"(?P<number>\d+(?:\.\d*)?(?:[eE][+-]?\d{1,2})?|\.\d+)\s*(?P<unit>m|[kKMGTPE]?i?B?)"
)


def parse_bytes(text: str | int) -> int:
    """Returns the bytes that a quantity means.

    Takes what Kubernetes writes (``40Gi``, ``500M``, ``128974848000m``, ``1e9``) and what
    Accelerate's ``max_memory`` takes (``10GiB``, ``10GB``); a bare number is bytes. ``i`` means
    powers of 1024, its absence powers of 1000. A small ``b`` is refused: to Accelerate it is bits.

    Raises:
        ValueError: The text is no such quantity; the message says what one looks like.
    """
    if isinstance(text, int) and not isinstance(text, bool):
        if text < 0:
            raise ValueError(f"{text} bytes is negative")
        return text
    match = _PATTERN.fullmatch(str(text).strip())
    if match is None or match["unit"] in {"i", "iB"}:
        raise ValueError(f"{text!r} is no amount of memory; write it like 40Gi, 10GiB or 500M")
    return int(Decimal(match["number"]) * _factor(match["unit"]))


def _factor(unit: str) -> Decimal:
    if unit == "m":
        return Decimal("0.001")
    prefix = unit.rstrip("B").upper()
    if not prefix:
        return Decimal(1)
    table = _BINARY if prefix.endswith("I") else _DECIMAL
    return Decimal(table[prefix[0]])


def format_bytes(count: int, *, round_up: bool = False) -> str:
    """Returns bytes in the largest binary unit that leaves a number of at least 1: ``1.50 GiB``.

    Args:
        count: Bytes.
        round_up: Whether the text must not mean less than `count`, for amounts that are asked for.
    """
    sign, size = ("-", -count) if count < 0 else ("", count)
    for prefix in reversed("KMGTPE"):
        unit = _BINARY[prefix]
        if size >= unit:
            shown = -(-size * 100 // unit) / 100 if round_up else size / unit
            return f"{sign}{shown:.2f} {prefix}iB"
    return f"{sign}{size} B"


def as_quantity(count: int) -> str:
    """Returns bytes as the shortest Kubernetes quantity that means exactly them: ``128Gi``."""
    exact = [f"{count // unit}{name}" for name, unit in _UNITS.items() if count % unit == 0 < count]
    return min([str(count), *exact], key=len)
