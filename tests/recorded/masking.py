"""Masks what differs between runs or machines, and rounds floats."""

from __future__ import annotations

import re
from typing import Any

_DIGITS = 6
_ANY = "<any>"
_MASKED = {"created", "memoryUsage", "owned", "budget", "reserve", "retry-after"}
"""Keys whose values are times, or depend on the machine's memory."""

_PATTERNS = {
    re.compile(r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b"): "<uuid>",
    re.compile(r"\b((?:chat)?cmpl)-[0-9a-f]{32}\b"): r"\1-<id>",
    re.compile(r"127\.0\.0\.1:\d+"): "<address>",
    re.compile(r"^\d+\.\d+\.\d+$"): "<version>",
}


def masked(value: Any) -> Any:
    """Returns an answer as it is the same in every run and on every machine."""
    if isinstance(value, dict):
        return {key: _masked_entry(key, entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [masked(entry) for entry in value]
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    return _masked_text(value) if isinstance(value, str) else value


def _masked_entry(key: str, value: Any) -> Any:
    if key == "allow":  # a set, whose order differs between processes
        return ", ".join(sorted(value.split(", ")))
    if key in _MASKED and value is not None:
        return _ANY
    if key == "inference-header-content-length":  # depends on the digits of floats
        return _ANY
    return masked(value)


def _masked_text(text: str) -> str:
    for pattern, word in _PATTERNS.items():
        text = pattern.sub(word, text)
    return text
