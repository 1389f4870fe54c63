"""Which form a model's messages have: what it is given of tools, and how its reply is read.

The form is that of the tokenizer's own response template, or one of those in
`predictor.tasks.reply_formats`, by a setting or by what the chat template and the special tokens
show.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from predictor.tasks.chat_template import chat_templates
from predictor.tasks.message_parser import (
    CallListParser,
    ChainedParser,
    MessageParser,
    NamedCallParser,
    TemplateParser,
)
from predictor.tasks.reply_formats import (
    CALL_ALIASES,
    CALL_FORMATS,
    LINE_BREAKS,
    REASONING_ALIASES,
    REASONING_FORMATS,
    CallFormat,
    detect_calls,
    detect_reasoning,
    harmony_lead,
    marks_of,
    response_template,
)
from predictor.tasks.request import Conversation


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """How conversations are encoded and replies to them read: settings of these names.

    Attributes:
        tool_call_parser: How calls of functions are written: a name in `reply_formats`, ``auto`` or
            ``none``.
        reasoning_parser: The same for how reasoning is marked.
        split_special_tokens: Whether special tokens in what users and tools say are text.
    """

    tool_call_parser: str = "auto"
    reasoning_parser: str = "auto"
    split_special_tokens: bool = False


DEFAULT_CHAT = ChatOptions()


@dataclass(frozen=True, slots=True)
class ReplyForm:
    """How the replies to one prompt are read.

    Attributes:
        new_parser: Begins the parsing of one of them.
        kept_tokens: Special tokens that are part of their text, since they mark its parts.
        lead: What comes before a reply that must have a form, such as reasoning that the prompt has
            begun: the rule ``lead`` of a grammar, or empty.
    """

    new_parser: Callable[[], MessageParser]
    kept_tokens: frozenset[int] = frozenset()
    lead: str = ""


class MessageForm:
    """How one model's replies are read as messages."""

    def __init__(self, tokenizer: Any, options: ChatOptions) -> None:
        """Choose the form of a model's messages.

        Args:
            tokenizer: The model's tokenizer.
            options: The formats of calls and reasoning.
        """
        self._tokenizer = tokenizer
        texts = _texts(tokenizer)
        is_auto = options.tool_call_parser == options.reasoning_parser == "auto"
        self._own = getattr(tokenizer, "response_template", None) if is_auto else None
        self._calls = _call_format(options.tool_call_parser, texts)
        self._reasoning = _reasoning_format(options.reasoning_parser, texts)

    def reply_form(self, conversation: Conversation, prompt: str) -> ReplyForm | None:
        """Return how the replies to a prompt are read; None if all of a reply is content.

        Args:
            conversation: The conversation.
            prompt: The prompt that the chat template has made of it.
        """
        prefix, forced = self._prefix(prompt), _forced_parser(conversation)
        lead = self._lead(prefix)
        if forced is not None and not lead:
            return ReplyForm(forced)
        template = self._template(has_tools=bool(conversation.tools) and forced is None)
        if template is None:
            return None
        new_parser: Callable[[], MessageParser] = partial(
            TemplateParser,
            self._tokenizer,
            template,
            prefix=prompt if self._own is not None else prefix,
            tools=conversation.tools,
            is_single=conversation.is_single,
        )
        if forced is not None:
            new_parser = partial(ChainedParser, new_parser, forced)
        return ReplyForm(new_parser, self._kept_tokens(template), lead)

    def _lead(self, prefix: str) -> str:
        """Return the rule of what comes before a reply that must have some form."""
        if self._calls is not None and self._calls.marks_all:
            return f"lead: {harmony_lead(self._terminal)}"
        if not prefix or self._reasoning is None:
            return ""
        mark = self._reasoning[1]
        if mark in self._special_tokens():
            return f"lead: /(?s:.*)/ {self._terminal(mark)} {LINE_BREAKS}"
        pattern = re.escape(mark).replace("/", r"\/")
        return f"lead: reasoning {LINE_BREAKS}\nreasoning[lazy]: /(?s:.*){pattern}/"

    def _terminal(self, mark: str) -> str:
        """Return a mark as a grammar names it: a special token by its id, a text in quotes."""
        token = self._special_tokens().get(mark)
        return json.dumps(mark) if token is None else f"<[{token}]>"

    def _special_tokens(self) -> dict[str, int]:
        tokenizer = self._tokenizer
        return dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))

    def _kept_tokens(self, template: Mapping[str, Any]) -> frozenset[int]:
        special = self._special_tokens()
        return frozenset(special[mark] for mark in marks_of(template, list(special)))

    def _template(self, *, has_tools: bool) -> dict[str, Any] | None:
        if self._own is not None:
            return dict(self._own)
        calls = self._calls
        if calls is not None and not has_tools and not calls.marks_all:
            calls = None
        return response_template(calls, self._reasoning)

    def _prefix(self, prompt: str) -> str:
        """Return what opens the reasoning of a reply, if the prompt ends with it."""
        if self._reasoning is None or not prompt.rstrip().endswith(self._reasoning[0].strip()):
            return ""
        return self._reasoning[0]


def _forced_parser(conversation: Conversation) -> Callable[[], MessageParser] | None:
    if conversation.forced is None:
        return None
    name = conversation.forced.function
    if name is not None:
        return partial(NamedCallParser, name)
    names = frozenset(tool["function"]["name"] for tool in conversation.tools)
    return partial(CallListParser, names)


def _texts(tokenizer: Any) -> str:
    """Return all chat templates of a tokenizer, and the names of its added tokens."""
    return "\n".join((chat_templates(tokenizer), *map(str, tokenizer.get_added_vocab())))


def _call_format(name: str, texts: str) -> CallFormat | None:
    if name == "auto":
        return detect_calls(texts)
    return CALL_FORMATS.get(CALL_ALIASES.get(name, name))


def _reasoning_format(name: str, texts: str) -> tuple[str, str] | None:
    if name == "auto":
        return detect_reasoning(texts)
    return REASONING_FORMATS.get(REASONING_ALIASES.get(name, name))
