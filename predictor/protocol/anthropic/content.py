"""The messages of a request, whose content is blocks, as turns.

The source is Anthropic's API reference as its Python client has it
(``anthropic.types.message_param``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from predictor.errors import RequestError
from predictor.protocol.http.json_body import kind, present, require_type
from predictor.protocol.openai.messages import part_text, template_call
from predictor.protocol.openai.turns import Turns
from predictor.sentences import quote

_ROLES = ("user", "assistant", "system")
_TEXT = ("text",)
_BLOCKS: Mapping[str, tuple[str, ...]] = {
    "user": ("text", "tool_result"),
    "assistant": ("text", "tool_use", "thinking", "redacted_thinking"),
    "system": _TEXT,
}


def add_messages(turns: Turns, messages: object) -> None:
    """Add the messages of a request to a conversation.

    Raises:
        RequestError: There is none, or one has another form or holds what is not supported.
    """
    given = require_type(messages, list, "messages")
    if not given:
        raise RequestError("messages is empty; give at least one.")
    for number, message in enumerate(given):
        where = f"messages[{number}]"
        _add_message(turns, present(require_type(message, dict, where)), where)


def text_of(content: object, where: str) -> str:
    """Return the text of a string, or of a list of blocks of text, one below the other.

    Raises:
        RequestError: It is neither.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RequestError(f"{where} must be a string or a list, not {kind(content)}.")
    return "\n".join(
        part_text(block, _TEXT, f"{where}[{number}]") for number, block in enumerate(content)
    )


def _add_message(turns: Turns, message: Mapping[str, object], where: str) -> None:
    if "role" not in message:
        raise RequestError(f"{where} has no 'role'.")
    role = require_type(message["role"], str, f"{where}.role")
    if role not in _ROLES:
        raise RequestError(f"{where}.role must be one of {', '.join(_ROLES)}.")
    content = message.get("content")
    if not isinstance(content, list):
        turns.add(role, text_of(content, f"{where}.content"))
        return
    if not content and role == "user":
        raise RequestError(f"{where}.content is empty; give at least one block.")
    _add_blocks(turns, role, content, f"{where}.content")


def _add_blocks(turns: Turns, role: str, blocks: Sequence[object], where: str) -> None:
    texts: list[str] = []
    for number, block in enumerate(blocks):
        place = f"{where}[{number}]"
        given = present(require_type(block, dict, place))
        sort = require_type(given.get("type"), str, f"{place}.type")
        if sort not in _BLOCKS[role]:
            names = ", ".join(_BLOCKS[role])
            raise RequestError(f"{place} is of type {quote(sort)}; only {names} are supported.")
        if sort == "text":
            texts.append(part_text(given, _TEXT, place))
            continue
        _flush(turns, role, texts)
        _ADDERS[sort](turns, given, place)
    _flush(turns, role, texts)


def _flush(turns: Turns, role: str, texts: list[str]) -> None:
    if texts:
        turns.add(role, "\n".join(texts))
        texts.clear()


def _add_result(turns: Turns, block: Mapping[str, Any], where: str) -> None:
    identity = require_type(block.get("tool_use_id"), str, f"{where}.tool_use_id")
    turns.add_output(identity, text_of(block.get("content", ""), f"{where}.content"))


def _add_use(turns: Turns, block: Mapping[str, Any], where: str) -> None:
    identity = require_type(block.get("id"), str, f"{where}.id")
    arguments = require_type(block.get("input", {}), dict, f"{where}.input")
    turns.add_call(template_call({**block, "arguments": arguments}, identity, where))


def _add_thinking(turns: Turns, block: Mapping[str, Any], where: str) -> None:
    turns.add_reasoning(require_type(block.get("thinking"), str, f"{where}.thinking"))


def _skip(turns: Turns, block: Mapping[str, Any], where: str) -> None:
    """Do nothing: what is encrypted by another server is no text."""


_ADDERS = {
    "tool_result": _add_result,
    "tool_use": _add_use,
    "thinking": _add_thinking,
    "redacted_thinking": _skip,
}
