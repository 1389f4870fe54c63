"""Decodes requests for responses.

The source is OpenAI's API reference as its Python client has it
(``openai.types.responses.response_create_params``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from predictor.errors import RequestError
from predictor.protocol.http.json_body import (
    check_count,
    check_writable,
    optional,
    present,
    require_type,
)
from predictor.protocol.openai.chat import size_of
from predictor.protocol.openai.functions import (
    Tool,
    ToolChoice,
    ToolUse,
    check_tools,
    checked_tool,
    function_names,
    tool_use,
)
from predictor.protocol.openai.keys import Refusal, split_keys
from predictor.protocol.openai.nested_keys import strange_names
from predictor.protocol.openai.parameters import SHARED, parameters_of
from predictor.protocol.openai.responses.items import add_input
from predictor.protocol.openai.structured import SCHEMA_KEYS, format_grammar
from predictor.protocol.openai.tools import choice_by_name, effort_options, template_options_of
from predictor.protocol.openai.turns import Turns
from predictor.tasks.request import (
    Conversation,
    GenerationRequest,
    Grammar,
    Prompt,
)

_PARAMETERS = {**SHARED, "max_output_tokens": "max_new_tokens"}
_LOGPROBS = "message.output_text.logprobs"
_TEMPLATE_KEYS = ("input", "instructions", "tools", "chat_template_kwargs")

KEYS = (
    *("model", "input", "instructions", "stream", *_PARAMETERS, "top_logprobs", "include"),
    *("tools", "tool_choice", "parallel_tool_calls", "text", "reasoning"),
    *("chat_template_kwargs", "cache_salt"),
)
"""Keys of a request that are followed."""

_NOT_STORED = "no response is stored; send the whole conversation as 'input'"

REFUSED: Mapping[str, Refusal] = {
    "previous_response_id": Refusal(_NOT_STORED),
    "conversation": Refusal(_NOT_STORED),
    "prompt": Refusal("no prompt is stored; send it as 'instructions'"),
    "background": Refusal("a response that is not waited for would have to be stored", (False,)),
    "moderation": Refusal("this server moderates nothing"),
}
"""Keys that would change the answer."""

IGNORED = frozenset(
    {
        *("store", "metadata", "user", "safety_identifier", "service_tier", "truncation"),
        *("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
        *("max_tool_calls", "stream_options", "context_management", "background_options"),
        *("access_programs", "image", "client_metadata", "priority", "request_id"),
    }
)
"""Keys that change nothing here."""

_ECHOED = (
    *("instructions", "max_output_tokens", "temperature", "top_p", "reasoning"),
    *("metadata", "user", "safety_identifier", "prompt_cache_key", "max_tool_calls"),
)


@dataclass(frozen=True, slots=True)
class ResponseCall:
    """A decoded request and everything that its response depends on.

    Attributes:
        request: The request, of one prompt.
        stream: Whether the response is streamed.
        ignored: Names of keys that no table has, and of tools that are not functions.
        echo: Keys of the request that its response repeats.
    """

    request: GenerationRequest
    stream: bool
    ignored: tuple[str, ...]
    echo: Mapping[str, object]


def decode_response(document: Mapping[str, object]) -> ResponseCall:
    """Return the request in a body of ``/responses``.

    Raises:
        RequestError: The body is not of OpenAI's form, or has a key that is not supported.
    """
    given, ignored = split_keys(document, KEYS, refused=REFUSED, ignored=IGNORED)
    if "input" not in given:
        raise RequestError("The body has no 'input'.")
    tools, others = _tools(given)
    use = _tool_use(given, tools)
    grammar = _grammar(given, use)
    parameters = replace(
        parameters_of(given, _PARAMETERS), grammar=grammar, logprobs=_logprobs(given)
    )
    salt = optional(given, "cache_salt", str, "cache_salt") or ""
    prompt = Prompt(_conversation(given, use), parameters)
    return ResponseCall(
        GenerationRequest((prompt,), cache_salt=salt),
        stream=optional(given, "stream", bool, "stream") or False,
        ignored=ignored + others + _nested_names(given),
        echo=_checked_echo(present(document), parameters.logprobs or 0),
    )


def _conversation(given: Mapping[str, object], use: ToolUse) -> Conversation:
    turns = Turns()
    instructions = optional(given, "instructions", str, "instructions")
    if instructions:
        turns.add("system", instructions)
    add_input(turns, given["input"])
    options = template_options_of(
        {key: given[key] for key in ("chat_template_kwargs",) if key in given}
    )
    return Conversation(
        turns.messages(),
        use.tools,
        use.forced,
        use.is_single,
        {**_effort(given), **options},
        size=size_of(given, _TEMPLATE_KEYS),
    )


def _effort(given: Mapping[str, object]) -> dict[str, object]:
    reasoning = present(optional(given, "reasoning", dict, "reasoning") or {})
    effort = optional(reasoning, "effort", str, "reasoning.effort")
    return {} if effort is None else effort_options(effort, "reasoning.effort")


def _grammar(given: Mapping[str, object], use: ToolUse) -> Grammar | None:
    text = present(optional(given, "text", dict, "text") or {})
    form = optional(text, "format", dict, "text.format")
    grammar = None if form is None else format_grammar(present(form), "text.format")
    if grammar is not None and use.grammar is not None:
        raise RequestError("tool_choice cannot force a call of a reply that has another form.")
    return grammar or use.grammar


def _nested_names(given: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the keys of a checked format that are ignored."""
    form = given.get("text", {}).get("format")
    return tuple(strange_names("text.format", [form], ("type", *SCHEMA_KEYS)))


def _logprobs(given: Mapping[str, object]) -> int | None:
    """Return how many alternatives the log probabilities have; None if none are wanted."""
    include = optional(given, "include", list, "include") or []
    names = [require_type(name, str, f"include[{n}]") for n, name in enumerate(include)]
    top = parameters_of(given, {"top_logprobs": "logprobs"}).logprobs
    return (top or 0) if _LOGPROBS in names else top or None


def _tools(given: Mapping[str, object]) -> tuple[tuple[Tool, ...], tuple[str, ...]]:
    """Return the functions, and names for the other tools, which this server does not have."""
    listed = optional(given, "tools", list, "tools") or []
    check_count(len(listed))
    tools: list[Tool] = []
    others: dict[str, None] = {}
    for number, tool in enumerate(listed):
        where = f"tools[{number}]"
        keys = require_type(tool, dict, where)
        sort = require_type(keys.get("type"), str, f"{where}.type")
        if sort == "function":
            tools.append(checked_tool(keys, where))
        else:
            others[f"tools[] of type {sort}"] = None
    check_tools(tools)
    return tuple(tools), tuple(others)


def _tool_use(given: Mapping[str, object], tools: tuple[Tool, ...]) -> ToolUse:
    parallel = optional(given, "parallel_tool_calls", bool, "parallel_tool_calls")
    choice, tools = _choice(given.get("tool_choice", "auto"), tools)
    if choice.mode == "auto" and not tools:
        return ToolUse()
    return tool_use(tools, choice, is_single=parallel is False)


def _choice(choice: object, tools: tuple[Tool, ...]) -> tuple[ToolChoice, tuple[Tool, ...]]:
    """Return which tools the reply calls, and those that it may call."""
    if isinstance(choice, str):
        return choice_by_name(choice), tools
    chosen = require_type(choice, dict, "tool_choice")
    sort = chosen.get("type")
    if sort == "function":
        name = require_type(chosen.get("name"), str, "tool_choice.name")
        return ToolChoice("function", name), tools
    if sort != "allowed_tools":
        raise RequestError("tool_choice.type must be 'function' or 'allowed_tools'.")
    mode = require_type(chosen.get("mode"), str, "tool_choice.mode")
    if mode not in ("auto", "required"):
        raise RequestError("tool_choice.mode must be 'auto' or 'required'.")
    allowed = _allowed(require_type(chosen.get("tools"), list, "tool_choice.tools"), tools)
    return choice_by_name(mode), allowed


def _allowed(names: list[Any], tools: tuple[Tool, ...]) -> tuple[Tool, ...]:
    allowed = set()
    for number, each in enumerate(names):
        where = f"tool_choice.tools[{number}]"
        allowed.add(require_type(require_type(each, dict, where).get("name"), str, f"{where}.name"))
    if strange := allowed.difference(function_names(tools)):
        raise RequestError(f"tool_choice names {min(strange)!r}, which is not in tools.")
    return tuple(tool for tool in tools if tool["function"]["name"] in allowed)


def _checked_echo(given: Mapping[str, object], top_logprobs: int) -> dict[str, object]:
    """Return `_echo`; what cannot be repeated is refused before anything is generated."""
    echo = _echo(given, top_logprobs)
    for key, value in echo.items():
        check_writable(value, key)
    return echo


def _echo(given: Mapping[str, object], top_logprobs: int) -> dict[str, object]:
    """Return the keys of a checked body that its response repeats."""
    text = present(optional(given, "text", dict, "text") or {})
    return {
        **{key: given.get(key) for key in _ECHOED},
        "parallel_tool_calls": given.get("parallel_tool_calls", True),
        "service_tier": "default",
        "store": False,
        "text": {"format": {"type": "text"}, **text},
        "tool_choice": given.get("tool_choice", "auto"),
        "tools": [_whole_tool(tool) for tool in _listed(given)],
        "top_logprobs": top_logprobs,
        "truncation": "disabled",
    }


def _listed(given: Mapping[str, object]) -> list[dict[str, object]]:
    tools = given.get("tools")
    return tools if isinstance(tools, list) else []


def _whole_tool(tool: dict[str, object]) -> dict[str, object]:
    """Return a tool as responses repeat it: a function has all its keys there."""
    if tool.get("type") != "function":
        return tool
    return {"parameters": None, "strict": None, **tool}


PLAIN_ECHO: Mapping[str, object] = _echo({}, 0)
"""What a response repeats of a request that has none of these keys."""
