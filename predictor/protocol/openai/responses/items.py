"""The input of a response: texts, calls of functions, their outputs and reasoning, as turns.

The source is OpenAI's API reference as its Python client has it
(``openai.types.responses.response_input_item_param``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from predictor.errors import RequestError
from predictor.protocol.http.json_body import kind, optional, present, require_type
from predictor.protocol.openai.messages import part_text, template_call
from predictor.protocol.openai.turns import Turns
from predictor.sentences import quote

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_TEXTS = ("input_text", "output_text", "text")
_REASONING = ("reasoning_text", "text")
_SORTS = ("message", "function_call", "function_call_output", "reasoning")


def add_input(turns: Turns, given: object) -> None:
    """Add the input of a request to a conversation.

    Args:
        turns: The conversation.
        given: A text, or a list of items.

    Raises:
        RequestError: It has another form, or an item is of a type that is not supported.
    """
    if isinstance(given, str):
        turns.add("user", given)
        return
    if not isinstance(given, list):
        raise RequestError(f"input must be a string or a list, not {kind(given)}.")
    if not given:
        raise RequestError("input is empty; give at least one item.")
    for number, item in enumerate(given):
        _add_item(turns, present(require_type(item, dict, f"input[{number}]")), f"input[{number}]")


def _add_item(turns: Turns, item: Mapping[str, object], where: str) -> None:
    sort = require_type(item.get("type", "message"), str, f"{where}.type")
    if sort == "message":
        _add_message(turns, item, where)
    elif sort == "function_call":
        identity = require_type(item.get("call_id"), str, f"{where}.call_id")
        turns.add_call(template_call(item, identity, where))
    elif sort == "function_call_output":
        identity = require_type(item.get("call_id"), str, f"{where}.call_id")
        turns.add_output(identity, _text(item.get("output"), _TEXTS, f"{where}.output"))
    elif sort == "reasoning":
        _add_reasoning(turns, item, where)
    elif sort == "item_reference":
        raise RequestError(f"{where} names an item of another response; no response is stored.")
    else:
        raise RequestError(
            f"{where} is of type {quote(sort)}; only {', '.join(_SORTS)} are supported."
        )


def _add_message(turns: Turns, item: Mapping[str, object], where: str) -> None:
    if "role" not in item:
        raise RequestError(f"{where} has no 'role'.")
    role = _ROLES.get(require_type(item["role"], str, f"{where}.role"))
    if role is None:
        raise RequestError(f"{where}.role must be one of {', '.join(_ROLES)}.")
    if "content" not in item:
        raise RequestError(f"{where} has no 'content'.")
    turns.add(role, _text(item["content"], _TEXTS, f"{where}.content"))


def _add_reasoning(turns: Turns, item: Mapping[str, object], where: str) -> None:
    """Add the text of reasoning; what is encrypted, or a summary alone, is no text of it."""
    content = optional(item, "content", list, f"{where}.content") or []
    text = _text(content, _REASONING, f"{where}.content")
    if text:
        turns.add_reasoning(text)


def _text(content: object, sorts: Sequence[str], where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RequestError(f"{where} must be a string or a list, not {kind(content)}.")
    return "".join(
        part_text(part, sorts, f"{where}[{number}]") for number, part in enumerate(content)
    )
