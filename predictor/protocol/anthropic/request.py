"""Decodes requests for messages.

The source is Anthropic's API reference as its Python client has it
(``anthropic.types.message_create_params``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from predictor.errors import RequestError
from predictor.protocol.anthropic.content import add_messages, text_of
from predictor.protocol.http.json_body import check_count, optional, present, require_type
from predictor.protocol.openai.chat import size_of
from predictor.protocol.openai.functions import (
    Tool,
    ToolChoice,
    ToolUse,
    check_tools,
    checked_tool,
    tool_use,
)
from predictor.protocol.openai.keys import Refusal, split_keys
from predictor.protocol.openai.parameters import parameters_of
from predictor.protocol.openai.structured import format_grammar
from predictor.protocol.openai.tools import effort_options, template_options_of
from predictor.protocol.openai.turns import Turns
from predictor.tasks.request import Conversation, GenerationRequest, Grammar, Prompt

_PARAMETERS = {
    "max_tokens": "max_new_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "stop_sequences": "stop",
}
_TEMPLATE_KEYS = ("messages", "system", "tools", "chat_template_kwargs")

KEYS = (
    *("model", "messages", "system", "stream", *_PARAMETERS, "tools", "tool_choice"),
    *("thinking", "output_config", "output_format", "chat_template_kwargs", "cache_salt"),
)
"""Keys of a request that are followed."""

REFUSED: Mapping[str, Refusal] = {
    "mcp_servers": Refusal("this server calls no other servers", ([],)),
}
"""Keys that would change the answer."""

IGNORED = frozenset(
    {
        *("metadata", "service_tier", "container", "context_management", "cache_control"),
        *("inference_geo", "speed", "betas", "user_profile_id", "workspace_id", "diagnostics"),
    }
)
"""Keys that change nothing here."""

_CHOICES = {"auto": ToolChoice("auto"), "any": ToolChoice("required"), "none": ToolChoice("none")}
_THINKING = ("enabled", "disabled", "adaptive")


@dataclass(frozen=True, slots=True)
class MessageCall:
    """A decoded request.

    Attributes:
        request: The request, of one prompt.
        stream: Whether the message is streamed.
        ignored: Names of keys that no table has, and of tools that have no schema.
    """

    request: GenerationRequest
    stream: bool
    ignored: tuple[str, ...]

    @property
    def conversation(self) -> Conversation:
        """The conversation."""
        text = self.request.prompts[0].text
        if not isinstance(text, Conversation):
            raise TypeError("a message answers a conversation")
        return text


def decode_message(document: Mapping[str, object]) -> MessageCall:
    """Return the request in a body of ``/v1/messages``.

    Raises:
        RequestError: The body is not of Anthropic's form, or has a key that is not supported.
    """
    call = decode_count(document)
    if call.conversation.messages[-1].role == "assistant":
        raise RequestError("The last message is the assistant's; no reply is continued.")
    return call


def decode_count(document: Mapping[str, object]) -> MessageCall:
    """Return the request in a body of ``/v1/messages/count_tokens``; see `decode_message`."""
    given, ignored = split_keys(document, KEYS, refused=REFUSED, ignored=IGNORED)
    if "messages" not in given:
        raise RequestError("The body has no 'messages'.")
    tools, others = _tools(given)
    use = _tool_use(given, tools)
    parameters = replace(parameters_of(given, _PARAMETERS), grammar=_grammar(given, use))
    salt = optional(given, "cache_salt", str, "cache_salt") or ""
    prompt = Prompt(_conversation(given, use), parameters)
    stream = optional(given, "stream", bool, "stream") or False
    return MessageCall(GenerationRequest((prompt,), cache_salt=salt), stream, ignored + others)


def _conversation(given: Mapping[str, object], use: ToolUse) -> Conversation:
    turns = Turns()
    if system := text_of(given.get("system", ""), "system"):
        turns.add("system", system)
    add_messages(turns, given["messages"])
    return Conversation(
        turns.messages(),
        use.tools,
        use.forced,
        use.is_single,
        _template_options(given),
        size=size_of(given, _TEMPLATE_KEYS),
    )


def _template_options(given: Mapping[str, object]) -> dict[str, object]:
    options: dict[str, object] = {}
    config = present(optional(given, "output_config", dict, "output_config") or {})
    effort = optional(config, "effort", str, "output_config.effort")
    if effort is not None:
        options |= effort_options(effort, "output_config.effort")
    if "thinking" in given:
        thinking = require_type(given["thinking"], dict, "thinking")
        sort = require_type(thinking.get("type"), str, "thinking.type")
        if sort not in _THINKING:
            raise RequestError(f"thinking.type must be one of {', '.join(_THINKING)}.")
        options |= {} if sort == "adaptive" else {"enable_thinking": sort == "enabled"}
    own = {key: given[key] for key in ("chat_template_kwargs",) if key in given}
    return options | template_options_of(own)


def _grammar(given: Mapping[str, object], use: ToolUse) -> Grammar | None:
    where = "output_format"
    form = optional(given, where, dict, where)
    if "output_config" in given:
        config = present(require_type(given["output_config"], dict, "output_config"))
        where = "output_config.format" if "format" in config else where
        form = optional(config, "format", dict, "output_config.format") or form
    grammar = None if form is None else format_grammar(present(form), where)
    if grammar is not None and use.grammar is not None:
        raise RequestError("tool_choice cannot force a call of a reply that has another form.")
    return grammar or use.grammar


def _tools(given: Mapping[str, object]) -> tuple[tuple[Tool, ...], tuple[str, ...]]:
    """Return the functions, and names for the tools that this server does not have."""
    listed = optional(given, "tools", list, "tools") or []
    check_count(len(listed))
    tools: list[Tool] = []
    others: dict[str, None] = {}
    for number, tool in enumerate(listed):
        where = f"tools[{number}]"
        keys = present(require_type(tool, dict, where))
        sort = optional(keys, "type", str, f"{where}.type") or "custom"
        if sort != "custom":
            others[f"tools[] of type {sort}"] = None
            continue
        schema = require_type(keys.get("input_schema"), dict, f"{where}.input_schema")
        tools.append(checked_tool({**keys, "parameters": schema}, where))
    check_tools(tools)
    return tuple(tools), tuple(others)


def _tool_use(given: Mapping[str, object], tools: tuple[Tool, ...]) -> ToolUse:
    choice = present(optional(given, "tool_choice", dict, "tool_choice") or {"type": "auto"})
    single = optional(
        choice, "disable_parallel_tool_use", bool, "tool_choice.disable_parallel_tool_use"
    )
    chosen = _choice(choice)
    if chosen.mode == "auto" and not tools:
        return ToolUse()
    return tool_use(tools, chosen, is_single=single or False)


def _choice(choice: Mapping[str, object]) -> ToolChoice:
    sort = require_type(choice.get("type"), str, "tool_choice.type")
    if sort == "tool":
        return ToolChoice("function", require_type(choice.get("name"), str, "tool_choice.name"))
    if sort not in _CHOICES:
        raise RequestError(f"tool_choice.type must be one of {', '.join(_CHOICES)}, tool.")
    return _CHOICES[sort]
