"""The chat template of a model: the file that it is in, and the form of content that it takes.

Models that take images too have their template in the files of their processor, which is not
opened. Their templates take a message's content as a list of parts, of which text is one kind; a
string would leave no trace in the prompt.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from predictor.errors import RequestError, reason_of
from predictor.tasks.control_tokens import ControlTokens
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


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A conversation as a text.

    Attributes:
        marked: The text, with `mark` inside of each control token that is to be text.
        mark: A character that the conversation has not; empty if nothing is marked.
    """

    marked: str
    mark: str = ""

    @property
    def text(self) -> str:
        """The text itself."""
        return self.marked.replace(self.mark, "") if self.mark else self.marked


class ChatTemplate:
    """The chat template of one model."""

    def __init__(self, tokenizer: Any, *, splits_special_tokens: bool = False) -> None:
        """Take a tokenizer, which may have no template.

        Args:
            tokenizer: The tokenizer.
            splits_special_tokens: Whether control tokens in what callers write are text.
        """
        self._tokenizer = tokenizer
        self._control_tokens = None
        if splits_special_tokens:
            self._control_tokens = ControlTokens(tokenizer, chat_templates(tokenizer))

    def render(self, conversation: Conversation) -> ChatPrompt:
        """Return the prompt that continues a conversation.

        Raises:
            RequestError: The template refuses the conversation, or there is none.
        """
        if not self._tokenizer.chat_template:
            raise RequestError("This model has no chat template; ask it for completions.")
        messages: Sequence[Message] = conversation.messages
        mark = ""
        if self._control_tokens is not None:
            messages, mark = self._control_tokens.mark(conversation)
        try:
            text: str = self._tokenizer.apply_chat_template(
                template_messages(messages, in_parts=self._takes_parts),
                tools=[*conversation.tools] or None,
                tokenize=False,
                add_generation_prompt=True,
                **conversation.template_options,
            )
        # A template is a program of the model's author, and fails in any way.
        except Exception as error:
            reason = reason_of(error).rstrip(".")
            raise RequestError(f"The model's chat template refuses: {reason}.") from None
        return ChatPrompt(text, mark)

    @cached_property
    def _takes_parts(self) -> bool:
        return takes_parts(self._tokenizer)


def chat_templates(tokenizer: Any) -> str:
    """Return the texts of all chat templates of a tokenizer, of which some have several by name."""
    templates = tokenizer.chat_template or ""
    return "\n".join(templates.values()) if isinstance(templates, dict) else str(templates)


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
