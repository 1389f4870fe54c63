"""Compares an answer with the recorded one: floats within a tolerance, all else exactly."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

_RELATIVE, _ABSOLUTE = 1e-3, 1e-5
"""For the last digits of float32, which differ between processors."""


def differences(recorded: Any, answered: Any, where: str = "answer") -> Iterator[str]:
    """Yields a sentence for each place where two answers differ."""
    if type(recorded) is not type(answered):
        yield f"{where} was {recorded!r} and is {answered!r}"
    elif isinstance(recorded, dict):
        yield from _of_objects(recorded, answered, where)
    elif isinstance(recorded, list):
        yield from _of_lists(recorded, answered, where)
    elif not _equal(recorded, answered):
        yield f"{where} was {recorded!r} and is {answered!r}"


def _of_objects(recorded: dict[str, Any], answered: dict[str, Any], where: str) -> Iterator[str]:
    for key in sorted({*recorded, *answered}):
        place = f"{where}.{key}"
        if key not in answered:
            yield f"{place} was {recorded[key]!r} and is missing"
        elif key not in recorded:
            yield f"{place} was missing and is {answered[key]!r}"
        else:
            yield from differences(recorded[key], answered[key], place)


def _of_lists(recorded: list[Any], answered: list[Any], where: str) -> Iterator[str]:
    if len(recorded) != len(answered):
        yield f"{where} had {len(recorded)} entries and has {len(answered)}: {answered!r}"
        return
    for number, pair in enumerate(zip(recorded, answered, strict=True)):
        yield from differences(*pair, f"{where}[{number}]")


def _equal(recorded: Any, answered: Any) -> bool:
    if isinstance(recorded, float):
        return math.isclose(recorded, answered, rel_tol=_RELATIVE, abs_tol=_ABSOLUTE)
    return bool(recorded == answered)
