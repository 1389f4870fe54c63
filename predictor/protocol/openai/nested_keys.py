"""Keys within objects of a body that no table has: clients send back what other servers added."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from predictor.protocol.openai import messages, structured
from predictor.protocol.openai.functions import FUNCTION_KEYS

STREAM_KEYS = ("include_usage", "include_obfuscation")
"""Keys of ``stream_options`` that are followed or change nothing."""


def nested_names(given: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the keys that are ignored, as in ``messages[].id``.

    Args:
        given: A checked body for chats or completions, or a part of it.
    """
    turns = given.get("messages", [])
    parts = [
        part for turn in turns if isinstance(turn.get("content"), list) for part in turn["content"]
    ]
    functions = [tool["function"] for tool in given.get("tools", [])]
    names = (
        *strange_names("messages[]", turns, messages.KEYS),
        *strange_names("messages[].content[]", parts, messages.PART_KEYS),
        *strange_names("tools[].function", functions, FUNCTION_KEYS),
        *strange_names("stream_options", [given.get("stream_options")], STREAM_KEYS),
    )
    others = (
        name
        for where, keys in structured.NESTED_KEYS.items()
        for name in strange_names(where, [_inner(given, where)], keys)
    )
    return tuple(dict.fromkeys((*names, *others)))


def _inner(given: Mapping[str, Any], where: str) -> Any:
    """Return the value at a path of keys; None if there is none."""
    value: Any = given
    for key in where.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def strange_names(where: str, holders: Iterable[Any], keys: Collection[str]) -> Iterator[str]:
    """Yield the names of keys in objects that are none of some keys, and not ``null``.

    Args:
        where: What the objects are.
        holders: The objects; others are passed over.
        keys: The keys that have a meaning.
    """
    for holder in holders:
        for key, value in holder.items() if isinstance(holder, dict) else ():
            if key not in keys and value is not None:
                yield f"{where}.{key}"
