"""The functions that a reply may call, whichever API they come by, and the form of forced calls.

Calls that a request forces are a form of the reply, which a grammar enforces.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from predictor.errors import RequestError
from predictor.protocol.http.json_body import check_count, optional, present, require_type
from predictor.sentences import quote
from predictor.tasks.request import ForcedCalls, Grammar

FUNCTION_KEYS = ("name", "description", "parameters", "strict")
"""Keys of a function that are followed."""

_NAME = re.compile(r"[\w.:-]{1,128}", re.ASCII)

Tool = Mapping[str, Any]
"""A function in the form of OpenAI's chats, which chat templates take."""


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Which functions a reply calls: none, as it likes, at least one, or the one of this name."""

    mode: Literal["none", "auto", "required", "function"]
    function: str = ""


@dataclass(frozen=True, slots=True)
class ToolUse:
    """What a reply may call.

    Attributes:
        tools: The functions, in the form of OpenAI's chats.
        forced: The calls that it must make, or None.
        is_single: Whether it calls at most one function.
        grammar: The form of the calls that it must make, or None.
    """

    tools: tuple[Tool, ...] = ()
    forced: ForcedCalls | None = None
    is_single: bool = False
    grammar: Grammar | None = None


def checked_tool(function: Mapping[str, object], where: str) -> Tool:
    """Return a function in the form of OpenAI's chats.

    Args:
        function: Its keys, of which those of `FUNCTION_KEYS` are followed.
        where: Its place in the body, for errors.

    Raises:
        RequestError: A key has another form.
    """
    given = present(function)
    name = require_type(given.get("name"), str, f"{where}.name")
    if not _NAME.fullmatch(name):
        raise RequestError(
            f"{where}.name must have 1 to 128 letters, digits, '_', '-', '.' or ':'."
        )
    optional(given, "description", str, f"{where}.description")
    optional(given, "strict", bool, f"{where}.strict")
    optional(given, "parameters", dict, f"{where}.parameters")
    followed = {key: value for key, value in given.items() if key in FUNCTION_KEYS}
    return {"type": "function", "function": followed}


def check_tools(tools: Sequence[Tool]) -> None:
    """Refuse too many functions, and two of one name.

    Raises:
        RequestError: There are such.
    """
    check_count(len(tools))
    names = function_names(tools)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise RequestError(f"tools has two functions of the name {quote(twice)}.")


def function_names(tools: Sequence[Tool]) -> list[str]:
    """Return the names of functions."""
    return [tool["function"]["name"] for tool in tools]


def tool_use(tools: tuple[Tool, ...], choice: ToolChoice, *, is_single: bool) -> ToolUse:
    """Return what a reply may call, and the form of what it must call.

    Args:
        tools: The functions.
        choice: Which of them it calls.
        is_single: Whether it calls at most one.

    Raises:
        RequestError: There are no functions, or none of the name that is chosen.
    """
    if choice.mode == "none":
        return ToolUse()
    if not tools:
        raise RequestError("tool_choice needs tools; give at least one.")
    if choice.mode == "auto":
        return ToolUse(tools, is_single=is_single)
    if choice.mode == "required":
        grammar = _grammar(_calls_schema(tools, is_single=is_single), tools)
        return ToolUse(tools, ForcedCalls(), is_single, grammar)
    chosen = [tool for tool in tools if tool["function"]["name"] == choice.function]
    if not chosen:
        raise RequestError(f"tool_choice names {quote(choice.function)}, which is not in tools.")
    grammar = _grammar(_arguments_schema(chosen[0]), chosen)
    return ToolUse(tools, ForcedCalls(choice.function), True, grammar)


def _grammar(schema: Mapping[str, Any], tools: Sequence[Mapping[str, Any]]) -> Grammar:
    """Return the form of calls; what cannot be enforced counts only for strict functions.

    Schemas of tools are made for people and validators, and have many such keywords.
    """
    is_strict = any(tool["function"].get("strict") for tool in tools)
    return Grammar("json_schema", json.dumps(schema), is_lenient=not is_strict)


def _arguments_schema(tool: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of a function's arguments, which are an object."""
    schema: dict[str, Any] = tool["function"].get("parameters") or {}
    return {"type": "object", **schema}


def _calls_schema(tools: tuple[Mapping[str, Any], ...], *, is_single: bool) -> dict[str, Any]:
    """Return the schema of a list of calls, at least one.

    References in the schema of a function's arguments count from its root, which moves. An id would
    be another root.
    """
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool["function"]["name"]},
                "parameters": {"$ref": f"#/$defs/tool{number}"},
            },
            "required": ["name", "parameters"],
            "additionalProperties": False,
        }
        for number, tool in enumerate(tools)
    ]
    schemas = {
        f"tool{number}": _moved(_arguments_schema(tool), f"#/$defs/tool{number}")
        for number, tool in enumerate(tools)
    }
    most = {"maxItems": 1} if is_single else {}
    return {"type": "array", "minItems": 1, **most, "items": {"anyOf": calls}, "$defs": schemas}


def _moved(schema: Any, root: str) -> Any:
    """Return a schema whose references within itself are those from another root."""
    if isinstance(schema, list):
        return [_moved(each, root) for each in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {key: _moved(value, root) for key, value in schema.items()}
    if isinstance(schema.get("$id"), str):
        del moved["$id"]
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        moved["$ref"] = root + reference.removeprefix("#")
    return moved
