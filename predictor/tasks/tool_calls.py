"""The parts of an assistant's message: text, reasoning and calls of functions."""

from __future__ import annotations

import json
import secrets
import string
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

_ID_ALPHABET = string.ascii_letters + string.digits
_ID_LENGTH = 9
"""Mistral's chat templates refuse ids of other lengths; other templates take any."""


@dataclass(frozen=True, slots=True)
class CallPart:
    """The next part of a call in a streamed reply.

    Attributes:
        index: Which call of the reply it is part of.
        arguments: The next characters of the arguments as JSON.
        id: The id of the call, in its first part; None in others.
        name: The name of the function, in its first part.
    """

    index: int
    arguments: str
    id: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class ToolCall:
    """The call of a function.

    Attributes:
        id: Its id, by which the function's result names it.
        name: The function's name.
        arguments: The arguments as JSON.
    """

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class MessagePart:
    """The next part of an assistant's message."""

    content: str = ""
    reasoning: str = ""
    calls: tuple[CallPart, ...] = ()


def new_call(index: int, name: str, arguments: str) -> CallPart:
    """Return the first part of a call, with a new id."""
    number = "".join(secrets.choice(_ID_ALPHABET) for _ in range(_ID_LENGTH))
    return CallPart(index, arguments, number, name)


def joined(parts: Iterable[CallPart]) -> tuple[ToolCall, ...]:
    """Return the calls that parts of one reply make."""
    calls: dict[int, ToolCall] = {}
    for part in parts:
        if part.index not in calls:
            calls[part.index] = ToolCall(part.id or "", part.name or "", part.arguments)
        else:
            before = calls[part.index]
            calls[part.index] = replace(before, arguments=before.arguments + part.arguments)
    return tuple(calls.values())


def name_and_arguments(call: Any) -> tuple[str, str] | None:
    """Return the function and the arguments of a call as a model writes it; None if it is none.

    Models write an object with the name and the ``arguments``, or ``parameters``; in some formats
    it is the value of ``function``. Arguments are an object, or JSON in a string.
    """
    if isinstance(call, dict) and isinstance(call.get("function"), dict):
        call = call["function"]
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return None
    arguments: Any = next((call[key] for key in ("arguments", "parameters") if key in call), {})
    if not isinstance(arguments, str):
        return call["name"], as_json(arguments)
    return call["name"], _whole(arguments)


def as_json(value: Any) -> str:
    """Return a value that a model has written in JSON as JSON again."""
    return _whole(json.dumps(value, ensure_ascii=False))


def _whole(text: str) -> str:
    """Return JSON with each half of a surrogate pair as an escape; no answer has it otherwise."""
    return text.encode(errors="backslashreplace").decode()
