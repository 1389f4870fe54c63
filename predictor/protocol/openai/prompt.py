"""OpenAI's prompts: texts and token ids of completions, the messages of a chat."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import cast

from predictor.errors import RequestError
from predictor.protocol.http.json_body import check_count, check_keys, kind, require_type
from predictor.sentences import quote
from predictor.tasks.request import Message, PromptText

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_LARGEST_ID = 2**31 - 1
_MESSAGE_KEYS = ("role", "content")
_MESSAGE_IGNORED = frozenset({"name", "annotations"})
_MESSAGE_REFUSED = ("tool_calls", "tool_call_id", "function_call", "audio", "refusal")


def prompt_texts(prompt: object) -> list[PromptText]:
    """Return the prompts of a request for completions.

    Args:
        prompt: A string, a list of strings, a list of token ids, or a list of such lists.

    Raises:
        RequestError: It is none of these, or is empty.
    """
    if isinstance(prompt, str):
        return [prompt]
    if not isinstance(prompt, list):
        raise RequestError(f"prompt must be a string or a list, not {kind(prompt)}.")
    if not prompt:
        raise RequestError("prompt is empty; give at least one.")
    if isinstance(prompt[0], int):
        return [_token_ids(prompt, "prompt")]
    check_count(len(prompt))
    if isinstance(prompt[0], list):
        names = [f"prompt[{number}]" for number in range(len(prompt))]
        return [
            _token_ids(require_type(ids, list, name), name)
            for ids, name in zip(prompt, names, strict=True)
        ]
    return [require_type(text, str, f"prompt[{number}]") for number, text in enumerate(prompt)]


def conversation(messages: object) -> tuple[Message, ...]:
    """Return the turns of a chat; a developer's are the system's.

    Raises:
        RequestError: There is none, or one has another form or holds more than text.
    """
    turns = require_type(messages, list, "messages")
    if not turns:
        raise RequestError("messages is empty; give at least one.")
    return tuple(_message(turn, f"messages[{number}]") for number, turn in enumerate(turns))


def _token_ids(ids: list[object], where: str) -> array[int]:
    if not set(map(type, ids)) <= {int}:  # hundreds of thousands are checked in milliseconds
        for number, token in enumerate(ids):
            require_type(token, int, f"{where}[{number}]")
    tokens = cast("list[int]", ids)
    try:
        return array("i", tokens)
    except OverflowError:  # such an id is in no vocabulary, as little as -1 is
        return array("i", (token if 0 <= token <= _LARGEST_ID else -1 for token in tokens))


def _message(turn: object, where: str) -> Message:
    given = _present(require_type(turn, dict, where))
    for key in _MESSAGE_REFUSED:
        if given.get(key, []) != []:
            raise RequestError(f"{where}.{key} is not supported.")
    rest = given.keys() - _MESSAGE_IGNORED - set(_MESSAGE_REFUSED)
    check_keys(rest, _MESSAGE_KEYS, where)
    for key in _MESSAGE_KEYS:
        if key not in given:
            raise RequestError(f"{where} has no {key!r}.")
    role = _ROLES.get(require_type(given["role"], str, f"{where}.role"))
    if role is None:
        raise RequestError(f"{where}.role must be one of {', '.join(_ROLES)}.")
    return Message(role, _content(given["content"], f"{where}.content"))


def _content(content: object, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RequestError(f"{where} must be a string or a list, not {kind(content)}.")
    return "".join(_part(part, f"{where}[{number}]") for number, part in enumerate(content))


def _part(part: object, where: str) -> str:
    given = _present(require_type(part, dict, where))
    sort = require_type(given.get("type"), str, f"{where}.type")
    if sort != "text":
        raise RequestError(f"{where} is of type {quote(sort)}; only 'text' is supported.")
    check_keys(given, ("type", "text"), where)
    return require_type(given.get("text"), str, f"{where}.text")


def _present(holder: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in holder.items() if value is not None}
