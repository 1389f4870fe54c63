"""Keys within messages and tools that no table has: clients send back what other servers added."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from predictor.protocol.openai import messages
from predictor.protocol.openai.functions import FUNCTION_KEYS


def nested_names(given: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the keys that are ignored, as in ``messages[].id``.

    Args:
        given: A body whose messages and tools have been checked.
    """
    turns = given.get("messages", [])
    parts = [
        part for turn in turns if isinstance(turn.get("content"), list) for part in turn["content"]
    ]
    functions = [tool["function"] for tool in given.get("tools", [])]
    names = (
        *_strange("messages[]", turns, messages.KEYS),
        *_strange("messages[].content[]", parts, messages.PART_KEYS),
        *_strange("tools[].function", functions, FUNCTION_KEYS),
    )
    return tuple(dict.fromkeys(names))


def _strange(where: str, holders: list[Mapping[str, Any]], keys: tuple[str, ...]) -> Iterator[str]:
    for holder in holders:
        for key, value in holder.items():
            if key not in keys and value is not None:
                yield f"{where}.{key}"
