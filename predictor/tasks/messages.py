"""Which form a model's messages have: what it is given of tools, and how its reply is read.

The form is that of the tokenizer's own response template, or one of those in
`predictor.tasks.reply_formats`, by a setting or by what the chat template and the special tokens
show.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from predictor.tasks.message_parser import (
    CallListParser,
    MessageParser,
    NamedCallParser,
    TemplateParser,
)
from predictor.tasks.reply_formats import (
    CALL_ALIASES,
    CALL_FORMATS,
    REASONING_ALIASES,
    REASONING_FORMATS,
    CallFormat,
    detect_calls,
    detect_reasoning,
    marks_of,
    response_template,
)
from predictor.tasks.request import Conversation


@dataclass(frozen=True, slots=True)
class ReplyForm:
    """How the replies to one prompt are read.

    Attributes:
        new_parser: Begins the parsing of one of them.
        kept_tokens: Special tokens that are part of their text, since they mark its parts.
    """

    new_parser: Callable[[], MessageParser]
    kept_tokens: frozenset[int] = frozenset()


class MessageForm:
    """How one model's replies are read as messages."""

    def __init__(self, tokenizer: Any, *, tool_call_parser: str, reasoning_parser: str) -> None:
        """Choose the form of a model's messages.

        Args:
            tokenizer: The model's tokenizer.
            tool_call_parser: A name in `reply_formats`, ``auto`` or ``none``.
            reasoning_parser: The same for reasoning.
        """
        self._tokenizer = tokenizer
        texts = _texts(tokenizer)
        is_auto = tool_call_parser == reasoning_parser == "auto"
        self._own = getattr(tokenizer, "response_template", None) if is_auto else None
        self._calls = _call_format(tool_call_parser, texts)
        self._reasoning = _reasoning_format(reasoning_parser, texts)

    def reply_form(self, conversation: Conversation, prompt: str) -> ReplyForm | None:
        """Return how the replies to a prompt are read; None if all of a reply is content.

        Args:
            conversation: The conversation.
            prompt: The prompt that the chat template has made of it.
        """
        if conversation.forced is not None:
            name = conversation.forced.function
            return ReplyForm(CallListParser if name is None else partial(NamedCallParser, name))
        template = self._template(has_tools=bool(conversation.tools))
        if template is None:
            return None
        new_parser = partial(
            TemplateParser,
            self._tokenizer,
            template,
            prefix=prompt if self._own is not None else self._prefix(prompt),
            tools=conversation.tools,
            is_single=conversation.is_single,
        )
        return ReplyForm(new_parser, self._kept_tokens(template))

    def _kept_tokens(self, template: Mapping[str, Any]) -> frozenset[int]:
        tokenizer = self._tokenizer
        special = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
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


def _texts(tokenizer: Any) -> str:
    """Return all chat templates of a tokenizer, and the names of its added tokens."""
    templates = tokenizer.chat_template or ""
    if isinstance(templates, dict):
        templates = "\n".join(templates.values())
    return "\n".join((templates, *map(str, tokenizer.get_added_vocab())))


def _call_format(name: str, texts: str) -> CallFormat | None:
    if name == "auto":
        return detect_calls(texts)
    return CALL_FORMATS.get(CALL_ALIASES.get(name, name))


def _reasoning_format(name: str, texts: str) -> tuple[str, str] | None:
    if name == "auto":
        return detect_reasoning(texts)
    return REASONING_FORMATS.get(REASONING_ALIASES.get(name, name))
