"""The chat template of a model: the file that it is in, and the form of content that it takes.

Models that take images too have their template in the files of their processor, which is not
opened. Their templates take a message's content as a list of parts, of which text is one kind; a
string would leave no trace in the prompt.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from predictor.errors import RequestError, reason_of
from predictor.tasks.request import Conversation, Message

_PROCESSOR_FILES = ("chat_template.json", "processor_config.json")
"""Files of processors that have the template under the key ``chat_template``
(``processing_utils.py`` of transformers 5.23)."""

_MARKER = "marker"


def adopt_template(tokenizer: Any, path: Path) -> None:
    """Give a tokenizer without a chat template that of the model's processor, if there is one.

    Args:
        tokenizer: The tokenizer.
        path: The model's directory.
    """
    if tokenizer.chat_template:
        return
    templates = (_template_in(path / name) for name in _PROCESSOR_FILES)
    tokenizer.chat_template = next(filter(None, templates), None)


class ChatTemplate:
    """The chat template of one model."""

    def __init__(self, tokenizer: Any) -> None:
        """Take a tokenizer, which may have no template."""
        self._tokenizer = tokenizer

    def render(self, conversation: Conversation) -> str:
        """Return the prompt that continues a conversation.

        Raises:
            RequestError: The template refuses the conversation, or there is none.
        """
        if not self._tokenizer.chat_template:
            raise RequestError("This model has no chat template; ask it for completions.")
        try:
            text: str = self._tokenizer.apply_chat_template(
                template_messages(conversation.messages, in_parts=self._takes_parts),
                tools=[*conversation.tools] or None,
                tokenize=False,
                add_generation_prompt=True,
                **conversation.template_options,
            )
        # A template is a program of the model's author, and fails in any way.
        except Exception as error:
            reason = reason_of(error).rstrip(".")
            raise RequestError(f"The model's chat template refuses: {reason}.") from None
        return text

    @cached_property
    def _takes_parts(self) -> bool:
        return takes_parts(self._tokenizer)


def takes_parts(tokenizer: Any) -> bool:
    """Return whether a chat template takes content as a list of parts, and drops strings."""
    return not _shows(tokenizer, _MARKER) and _shows(tokenizer, _as_parts(_MARKER))


def template_messages(turns: Sequence[Message], *, in_parts: bool) -> list[dict[str, Any]]:
    """Return the turns of a conversation as a chat template takes them.

    Args:
        turns: The turns.
        in_parts: Whether contents are lists of parts.
    """
    return [
        {
            "role": turn.role,
            "content": _as_parts(turn.content) if in_parts else turn.content,
            **turn.extra,
        }
        for turn in turns
    ]


def _template_in(file: Path) -> str | None:
    try:
        values = json.loads(file.read_bytes())
    except (OSError, ValueError):  # a processor's file, of which nothing else is needed
        return None
    template = values.get("chat_template") if isinstance(values, dict) else None
    return template if isinstance(template, str) else None


def _as_parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


def _shows(tokenizer: Any, content: str | list[dict[str, str]]) -> bool:
    try:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
    # A template is a program of the model's author, and fails in any way.
    except Exception:
        return False
    return _MARKER in text
