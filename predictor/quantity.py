"""Amounts of memory as text: Kubernetes quantities and Accelerate's file sizes.

Inside the predictor memory is an ``int`` of bytes. Only this module converts text to bytes and
bytes to text.
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
    """Return the bytes of a quantity.

    Accepts quantities of Kubernetes (``40Gi``, ``500M``, ``128974848000m``, ``1e9``) and of
    Accelerate's ``max_memory`` (``10GiB``, ``10GB``). A bare number is bytes. With ``i`` units are
    powers of 1024, otherwise of 1000. A small ``b`` is refused: to Accelerate it means bits.

    Raises:
        ValueError: The text is no such quantity; the message shows one.
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
    """Return bytes in the largest binary unit with a number of at least 1: ``1.50 GiB``.

    Args:
        count: Bytes.
        round_up: Whether to round up, for an amount that must not be less than `count`.
    """
    sign, size = ("-", -count) if count < 0 else ("", count)
    for prefix in reversed("KMGTPE"):
        unit = _BINARY[prefix]
        if size >= unit:
            shown = -(-size * 100 // unit) / 100 if round_up else size / unit
            return f"{sign}{shown:.2f} {prefix}iB"
    return f"{sign}{size} B"


def as_quantity(count: int) -> str:
    """Return bytes as the shortest exact Kubernetes quantity: ``128Gi``."""
    exact = [f"{count // unit}{name}" for name, unit in _UNITS.items() if count % unit == 0 < count]
    return min([str(count), *exact], key=len)
