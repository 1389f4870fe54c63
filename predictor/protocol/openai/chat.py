"""The conversation of a request for a chat: its messages, tools and options of the template."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from predictor.protocol.openai.messages import conversation_messages
from predictor.protocol.openai.tools import template_options_of, tool_use_of
from predictor.tasks.request import Conversation, Grammar

_TEMPLATE_KEYS = ("messages", "tools", "chat_template_kwargs")


def conversation_of(given: Mapping[str, object]) -> tuple[Conversation, Grammar | None]:
    """Return the conversation in a body, and the form of the calls that the reply must make.

    Raises:
        RequestError: A key has another form.
    """
    messages, use = conversation_messages(given["messages"]), tool_use_of(given)
    conversation = Conversation(
        messages,
        use.tools,
        use.forced,
        use.is_single,
        template_options_of(given),
        size=size_of(given, _TEMPLATE_KEYS),
    )
    return conversation, use.grammar


def size_of(given: Mapping[str, object], names: Iterable[str]) -> int:
    """Return the characters of keys of a body that a chat template takes, about."""
    return sum(len(json.dumps(given[name], ensure_ascii=False)) for name in names if name in given)
