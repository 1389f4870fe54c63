"""JSON from clients, parsed strictly and refused in our own words, and JSON for clients.

Knows nothing of any protocol's fields. What it raises never quotes a value, only names (shortened),
because a value may be a prompt.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NoReturn, TypeVar

import orjson
from starlette.responses import JSONResponse, Response

from predictor.errors import RequestError, nearest
from predictor.sentences import quote
from predictor.tasks.request import MAX_INSTANCES

_T = TypeVar("_T")

MAX_NESTING = 255
"""Most levels of lists and objects in values that are written again or walked through.

`json`, chat templates and compilers of schemas recurse: each level takes frames of the stack.
"""

_LEVELS_OF_ANSWER = 8
"""Levels of an answer above a value that it repeats, and some more."""

_MOST_DIGITS = 64
_LONG_NUMBER = b"0" * 19
"""As many digits as an integer has that orjson may return as a float."""

_DIGITS_AS_ZEROS = bytes(ord("0") if chr(byte) in "123456789" else byte for byte in range(256))
_KINDS: dict[type, str] = {
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


class JSONAnswer(JSONResponse):
    """A JSON response that is written quickly."""

    def render(self, content: Any) -> bytes:
        """Return the body."""
        return dump_json(content)


class JSONBody(Response):
    """A JSON response whose body is already written."""

    media_type = "application/json"


def dump_json(content: object) -> bytes:
    """Return JSON values as the body of a response."""
    return orjson.dumps(content)


def parse_document(body: bytes) -> dict[str, object]:
    """Return the JSON object in `body`; as strict as `parse_json`.

    Raises:
        RequestError: The body is not a JSON object.
    """
    return require_type(parse_json(body), dict, "The body")


def parse_json(body: bytes) -> object:
    """Return the JSON value in `body`.

    Stricter than `json.loads`: UTF-8 only (RFC 8259, section 8.1), no ``NaN`` or ``Infinity``, no
    number that overflows a double, no integer of more than 64 digits, no escape that stands for
    half of a surrogate pair (such a string cannot be encoded again).

    Raises:
        RequestError: The body is not such JSON.
    """
    if _LONG_NUMBER not in body.translate(_DIGITS_AS_ZEROS):  # `re` takes far longer
        with contextlib.suppress(orjson.JSONDecodeError):  # the slower parser says what is wrong
            return orjson.loads(body)
    text = decode_text(body)
    try:
        return _load(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise RequestError(f"The body is not valid JSON at {where}.") from None
    except RecursionError:
        raise RequestError("The body's JSON is nested too deeply.") from None


def nested_within(value: object, levels: int = MAX_NESTING) -> bool:
    """Return whether a JSON value has at most this many levels of lists and objects."""
    level = [value]
    for _ in range(levels + 1):
        level = [child for each in level if isinstance(each, dict | list) for child in _in(each)]
        if not level:
            return True
    return False


def _in(holder: dict[str, object] | list[object]) -> Iterable[object]:
    return holder.values() if isinstance(holder, dict) else holder


def check_nesting(value: object) -> None:
    """Refuse a JSON value of too many levels.

    Raises:
        RequestError: It has more than `MAX_NESTING`.
    """
    if not nested_within(value):
        raise RequestError(
            f"The body's JSON is nested too deeply: at most {MAX_NESTING} levels are accepted."
        )


def check_writable(value: object, what: str) -> None:
    """Refuse a value that an answer repeats and that cannot be written there.

    Args:
        value: A JSON value of a request.
        what: The value, at the beginning of a sentence.

    Raises:
        RequestError: It has an integer of more than 64 bits, or too many levels.
    """
    if not is_writable(value):
        raise RequestError(
            f"{what} cannot be repeated in the answer: an integer has more than 64 bits, or there "
            "are too many levels."
        )


def is_writable(value: object) -> bool:
    """Return whether a value can be written, also some levels deep in the JSON of an answer."""
    for _ in range(_LEVELS_OF_ANSWER):
        value = [value]
    try:
        dump_json(value)
    except TypeError:  # `orjson.JSONEncodeError` is one
        return False
    return True


def decode_text(body: bytes) -> str:
    """Return the text in `body`.

    Raises:
        RequestError: It is not UTF-8.
    """
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise RequestError(f"The body is not valid UTF-8 at byte {error.start}.") from None


def _load(text: str) -> object:
    document: object = json.loads(
        text, parse_int=_integer, parse_float=_number, parse_constant=_constant
    )
    if "\\ud" in text or "\\uD" in text:
        try:
            json.dumps(document, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise RequestError("The body has half of a surrogate pair in a string.") from None
    return document


def _integer(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise RequestError(f"The body has an integer of more than {_MOST_DIGITS} digits.")
    return int(digits)


def _number(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise RequestError("The body has a number that is too large.")
    return number


def _constant(name: str) -> NoReturn:
    raise RequestError(f"The body has {name}, which is not a JSON number.")


def require_type(value: object, wanted: type[_T], what: str) -> _T:
    """Return `value` if it is of the JSON type `wanted`; a boolean is not an integer.

    Raises:
        RequestError: It is not; the sentence says what `what` is and should be.
    """
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        raise RequestError(f"{what} must be {_KINDS[wanted]}, not {kind(value)}.")
    return value


def kind(value: object) -> str:
    """Return what a JSON value is, in words: ``"a list"``."""
    return _KINDS.get(type(value), "something else")


def check_keys(document: Iterable[str], names: Collection[str], where: str) -> None:
    """Check that every key of an object is known.

    Raises:
        RequestError: One is not; the sentence names the nearest known one.
    """
    for key in document:
        if key not in names:
            raise RequestError(f"Unknown key {quote(key)} in {where}; {nearest(key, names)}")


def optional(document: Mapping[str, object], key: str, wanted: type[_T], what: str) -> _T | None:
    """Return the value of an optional key, checked, or ``None`` if the key is absent.

    A key with the value ``null`` is not absent in V2, whose schema has no nullable field. Others
    take `present` first.

    Raises:
        RequestError: The value is of another type.
    """
    return require_type(document[key], wanted, what) if key in document else None


def present(document: Mapping[str, object]) -> dict[str, object]:
    """Return an object without the keys whose value is ``null``, which is the same as absent."""
    return {key: value for key, value in document.items() if value is not None}


def check_count(prompts: int, most: int = MAX_INSTANCES) -> None:
    """Refuse more prompts than one request may have, before any is looked at.

    Args:
        prompts: The number of prompts or texts.
        most: The most that there may be.

    Raises:
        RequestError: Names both numbers.
    """
    if prompts > most:
        raise RequestError(f"A request has at most {most} prompts; here are {prompts}.")
