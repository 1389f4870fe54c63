"""OpenAI's messages of a chat, as a chat template takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from predictor.errors import RequestError
from predictor.protocol.http.json_body import (
    kind,
    nested_within,
    optional,
    parse_json,
    present,
    require_type,
)
from predictor.sentences import quote
from predictor.tasks.request import Message

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
_REFUSED = ("function_call", "audio", "refusal")
KEYS = (
    *("role", "content", "tool_calls", "tool_call_id", "name", "reasoning_content", "reasoning"),
    *("annotations", *_REFUSED),
)
"""Keys of a message that are followed, refused, or known to change nothing."""

PART_KEYS = ("type", "text")
"""Keys of a part of a message that are followed."""

_EMPTY: tuple[object, ...] = ([], "", {})


def conversation_messages(messages: object) -> tuple[Message, ...]:
    """Return the turns of a chat; a developer's are the system's.

    Raises:
        RequestError: There is none, or one has another form or holds more than text.
    """
    turns = require_type(messages, list, "messages")
    if not turns:
        raise RequestError("messages is empty; give at least one.")
    return tuple(_message(turn, f"messages[{number}]") for number, turn in enumerate(turns))


def _message(turn: object, where: str) -> Message:
    given = present(require_type(turn, dict, where))
    for key in _REFUSED:
        if given.pop(key, []) not in _EMPTY:
            raise RequestError(f"{where}.{key} is not supported.")
    if "role" not in given:
        raise RequestError(f"{where} has no 'role'.")
    role = _ROLES.get(require_type(given["role"], str, f"{where}.role"))
    if role is None:
        raise RequestError(f"{where}.role must be one of {', '.join(_ROLES)}.")
    extra = _extra(given, role, where)
    if "content" not in given and not extra.keys() & {"tool_calls", "reasoning_content"}:
        raise RequestError(f"{where} has no 'content'.")
    return Message(role, _content(given.get("content", ""), f"{where}.content"), extra)


def _extra(given: Mapping[str, object], role: str, where: str) -> dict[str, Any]:
    extra: dict[str, Any] = {}
    if given.get("tool_calls", []) != []:
        if role != "assistant":
            raise RequestError(f"{where}.tool_calls is for the role assistant.")
        calls = require_type(given["tool_calls"], list, f"{where}.tool_calls")
        extra["tool_calls"] = [
            _call(call, f"{where}.tool_calls[{number}]") for number, call in enumerate(calls)
        ]
    for key in ("reasoning", "reasoning_content"):
        if key in given and role == "assistant":
            extra["reasoning_content"] = require_type(given[key], str, f"{where}.{key}")
    if role == "tool":
        for key in ("tool_call_id", "name"):
            if key in given:
                extra[key] = require_type(given[key], str, f"{where}.{key}")
    return extra


def _call(call: object, where: str) -> dict[str, Any]:
    given = present(require_type(call, dict, where))
    function = require_type(given.get("function"), dict, f"{where}.function")
    identity = optional(given, "id", str, f"{where}.id")
    return template_call(present(function), identity, f"{where}.function")


def template_call(
    function: Mapping[str, object], identity: str | None, where: str
) -> dict[str, Any]:
    """Return the call of a function in the form of OpenAI's chats, as templates take it.

    Args:
        function: Its ``name``, and its ``arguments`` as an object or as JSON.
        identity: Its id; None if it has none.
        where: Its place in the body, for errors.

    Raises:
        RequestError: A key has another form.
    """
    name = require_type(function.get("name"), str, f"{where}.name")
    arguments = function.get("arguments", {})
    if not isinstance(arguments, dict):
        arguments = _arguments(require_type(arguments, str, f"{where}.arguments"))
    named = {} if identity is None else {"id": identity}
    return {**named, "type": "function", "function": {"name": name, "arguments": arguments}}


def _arguments(text: str) -> object:
    """Return the object that templates take; what is no JSON, as models may write, as it is."""
    try:
        value = parse_json(text.encode()) if text.strip() else {}
    except RequestError:
        return text
    return value if isinstance(value, dict) and nested_within(value) else text


def _content(content: object, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RequestError(f"{where} must be a string or a list, not {kind(content)}.")
    return "".join(_part(part, f"{where}[{number}]") for number, part in enumerate(content))


def _part(part: object, where: str) -> str:
    return part_text(part, ("text",), where)


def part_text(part: object, sorts: Sequence[str], where: str) -> str:
    """Return the text of a part of a message.

    Args:
        part: The part.
        sorts: The types that parts of text have.
        where: Its place in the body, for errors.

    Raises:
        RequestError: It is no text.
    """
    given = present(require_type(part, dict, where))
    sort = require_type(given.get("type"), str, f"{where}.type")
    if sort not in sorts:
        supported = " and ".join(map(repr, sorts))
        verb = "is" if len(sorts) == 1 else "are"
        raise RequestError(f"{where} is of type {quote(sort)}; only {supported} {verb} supported.")
    return require_type(given.get("text"), str, f"{where}.text")
