"""OpenAI's keys for tools and reasoning: what a conversation offers, and what its reply must be.

Calls that a request forces (``tool_choice``) are a form of the reply, which a grammar enforces.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from predictor.errors import RequestError
from predictor.protocol.http.json_body import check_count, optional, require_type
from predictor.protocol.openai.keys import Refusal
from predictor.sentences import quote
from predictor.tasks.request import ForcedCalls, Grammar

KEYS = (
    *("tools", "tool_choice", "parallel_tool_calls"),
    *("chat_template_kwargs", "reasoning_effort"),
)
"""Keys of requests that are read here."""

_OF_CHATS = "it is for chats, and a completion has no chat template"

REFUSED_OF_COMPLETIONS: Mapping[str, Refusal] = {
    "tools": Refusal(_OF_CHATS, ([],)),
    "tool_choice": Refusal(_OF_CHATS, ("none", "auto")),
    "parallel_tool_calls": Refusal(_OF_CHATS, (True, False)),
    "chat_template_kwargs": Refusal(_OF_CHATS, ({},)),
    "reasoning_effort": Refusal(_OF_CHATS, ("none",)),
}
"""Those that would change a chat, in a request for completions."""

FUNCTION_KEYS = ("name", "description", "parameters", "strict")
"""Keys of a function that are followed."""

_NAME = re.compile(r"[\w.:-]{1,128}", re.ASCII)
_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
_CHOICES = ("none", "auto", "required")
_RESERVED = frozenset(
    {
        *("conversation", "messages", "tools", "tokenize", "add_generation_prompt"),
        *("continue_final_message", "chat_template", "return_dict", "return_tensors"),
        *("return_assistant_tokens_mask", "padding", "truncation", "max_length"),
        *("tokenizer_kwargs", "documents", "processor_kwargs"),
    }
)
"""Parameters of ``apply_chat_template`` that are no variables of a template, or are set here."""


@dataclass(frozen=True, slots=True)
class ToolUse:
    """What a reply may call.

    Attributes:
        tools: The functions, in OpenAI's form.
        forced: The calls that it must make, or None.
        is_single: Whether it calls at most one function.
        grammar: The form of the calls that it must make, or None.
    """

    tools: tuple[Mapping[str, Any], ...] = ()
    forced: ForcedCalls | None = None
    is_single: bool = False
    grammar: Grammar | None = None


def tool_use_of(given: Mapping[str, object]) -> ToolUse:
    """Return the tools of a request, and which of them the reply must call.

    Raises:
        RequestError: A key has another form, or names a tool that is not there.
    """
    tools = _tools(given)
    parallel = optional(given, "parallel_tool_calls", bool, "parallel_tool_calls")
    is_single = parallel is False
    choice = given.get("tool_choice", "auto" if tools else "none")
    if choice == "none":
        return ToolUse()
    if not tools:
        raise RequestError("tool_choice needs tools; give at least one.")
    if choice == "auto":
        return ToolUse(tools, is_single=is_single)
    if choice == "required":
        grammar = _grammar(_calls_schema(tools, is_single=is_single), tools)
        return ToolUse(tools, ForcedCalls(), is_single, grammar)
    name = _chosen(choice, tools)
    (tool,) = (tool for tool in tools if tool["function"]["name"] == name)
    grammar = _grammar(_arguments_schema(tool), (tool,))
    return ToolUse(tools, ForcedCalls(name), True, grammar)


def template_options_of(given: Mapping[str, object]) -> dict[str, object]:
    """Return the variables of the chat template that a request sets.

    ``reasoning_effort`` is one, as vLLM has it. Templates that can only turn reasoning off take
    ``enable_thinking``, which the effort ``none`` sets.

    Raises:
        RequestError: A key has another form.
    """
    options: dict[str, object] = {}
    effort = optional(given, "reasoning_effort", str, "reasoning_effort")
    if effort is not None:
        if effort not in _EFFORTS:
            raise RequestError(f"reasoning_effort must be one of {', '.join(_EFFORTS)}.")
        options |= {"reasoning_effort": effort}
        options |= {"enable_thinking": False} if effort == "none" else {}
    own = optional(given, "chat_template_kwargs", dict, "chat_template_kwargs") or {}
    for name in own:
        if name in _RESERVED:
            raise RequestError(f"chat_template_kwargs cannot set {name!r}.")
    return options | own


def _tools(given: Mapping[str, object]) -> tuple[Mapping[str, Any], ...]:
    tools = optional(given, "tools", list, "tools") or []
    check_count(len(tools))
    checked = tuple(_tool(tool, f"tools[{number}]") for number, tool in enumerate(tools))
    names = [tool["function"]["name"] for tool in checked]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise RequestError(f"tools has two functions of the name {quote(twice)}.")
    return checked


def _tool(tool: object, where: str) -> Mapping[str, Any]:
    given = _present(require_type(tool, dict, where))
    if given.get("type") != "function":
        raise RequestError(f"{where}.type must be 'function'.")
    function = _present(require_type(given.get("function"), dict, f"{where}.function"))
    inner = f"{where}.function"
    name = require_type(function.get("name"), str, f"{inner}.name")
    if not _NAME.fullmatch(name):
        raise RequestError(
            f"{inner}.name must have 1 to 128 letters, digits, '_', '-', '.' or ':'."
        )
    optional(function, "description", str, f"{inner}.description")
    optional(function, "strict", bool, f"{inner}.strict")
    optional(function, "parameters", dict, f"{inner}.parameters")
    followed = {key: value for key, value in function.items() if key in FUNCTION_KEYS}
    return {"type": "function", "function": followed}


def _chosen(choice: object, tools: tuple[Mapping[str, Any], ...]) -> str:
    """Return the name of the function that a request has chosen."""
    if isinstance(choice, str):
        raise RequestError(f"tool_choice must be one of {', '.join(_CHOICES)}, or name a function.")
    chosen = require_type(choice, dict, "tool_choice")
    if chosen.get("type") != "function":
        raise RequestError("tool_choice.type must be 'function'.")
    function = require_type(chosen.get("function"), dict, "tool_choice.function")
    name = require_type(function.get("name"), str, "tool_choice.function.name")
    if name not in [tool["function"]["name"] for tool in tools]:
        raise RequestError(f"tool_choice names {quote(name)}, which is not in tools.")
    return name


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


def _present(holder: Mapping[str, object]) -> dict[str, Any]:
    return {key: value for key, value in holder.items() if value is not None}
