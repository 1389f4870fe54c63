"""OpenAI's keys for tools and reasoning in chats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from predictor.errors import RequestError
from predictor.protocol.http.json_body import check_count, optional, present, require_type
from predictor.protocol.openai.functions import (
    Tool,
    ToolChoice,
    ToolUse,
    check_tools,
    checked_tool,
    tool_use,
)
from predictor.protocol.openai.keys import Refusal

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

_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
_CHOICES: tuple[Literal["none", "auto", "required"], ...] = ("none", "auto", "required")
_RESERVED = frozenset(
    {
        *("conversation", "messages", "tools", "tokenize", "add_generation_prompt"),
        *("continue_final_message", "chat_template", "return_dict", "return_tensors"),
        *("return_assistant_tokens_mask", "padding", "truncation", "max_length"),
        *("tokenizer_kwargs", "documents", "processor_kwargs"),
    }
)
"""Parameters of ``apply_chat_template`` that are no variables of a template, or are set here."""


def tool_use_of(given: Mapping[str, object]) -> ToolUse:
    """Return the tools of a request, and which of them the reply must call.

    Raises:
        RequestError: A key has another form, or names a tool that is not there.
    """
    tools = _tools(given)
    parallel = optional(given, "parallel_tool_calls", bool, "parallel_tool_calls")
    choice = ToolChoice("auto") if tools else ToolChoice("none")
    if "tool_choice" in given:
        choice = _choice(given["tool_choice"])
    return tool_use(tools, choice, is_single=parallel is False)


def template_options_of(given: Mapping[str, object]) -> dict[str, object]:
    """Return the variables of the chat template that a request sets.

    ``reasoning_effort`` is one, as vLLM has it. Templates that can only turn reasoning off take
    ``enable_thinking``, which the effort ``none`` sets.

    Raises:
        RequestError: A key has another form.
    """
    effort = optional(given, "reasoning_effort", str, "reasoning_effort")
    options = {} if effort is None else effort_options(effort, "reasoning_effort")
    own = present(optional(given, "chat_template_kwargs", dict, "chat_template_kwargs") or {})
    for name in own:
        if name in _RESERVED:
            raise RequestError(f"chat_template_kwargs cannot set {name!r}.")
    return options | own


def effort_options(effort: str, where: str) -> dict[str, object]:
    """Return the variables of the chat template that an effort of reasoning sets.

    Raises:
        RequestError: There is no such effort.
    """
    if effort not in _EFFORTS:
        raise RequestError(f"{where} must be one of {', '.join(_EFFORTS)}.")
    return {"reasoning_effort": effort} | ({"enable_thinking": False} if effort == "none" else {})


def choice_by_name(choice: str) -> ToolChoice:
    """Return the choice of a word.

    Raises:
        RequestError: There is no such choice.
    """
    for mode in _CHOICES:
        if choice == mode:
            return ToolChoice(mode)
    raise RequestError(f"tool_choice must be one of {', '.join(_CHOICES)}, or name a function.")


def _tools(given: Mapping[str, object]) -> tuple[Tool, ...]:
    tools = optional(given, "tools", list, "tools") or []
    check_count(len(tools))
    checked = tuple(_tool(tool, f"tools[{number}]") for number, tool in enumerate(tools))
    check_tools(checked)
    return checked


def _tool(tool: object, where: str) -> Tool:
    given = present(require_type(tool, dict, where))
    if given.get("type") != "function":
        raise RequestError(f"{where}.type must be 'function'.")
    inner = f"{where}.function"
    return checked_tool(require_type(given.get("function"), dict, inner), inner)


def _choice(choice: object) -> ToolChoice:
    if isinstance(choice, str):
        return choice_by_name(choice)
    chosen = require_type(choice, dict, "tool_choice")
    if chosen.get("type") != "function":
        raise RequestError("tool_choice.type must be 'function'.")
    function = require_type(chosen.get("function"), dict, "tool_choice.function")
    name = require_type(function.get("name"), str, "tool_choice.function.name")
    return ToolChoice("function", name)
