"""Keys and values of other people's files, as the report and the error sentences show them.

Every value becomes one short line, whatever it holds. Values that look like secrets are hidden.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

from predictor.sentences import shorten

_SECRET_KEY = re.compile(
    r"pass(word|wd|phrase)?s?\b|secret|credential|(?<!\w)token$|_token$|authtoken|api_?key", re.I
)
_SECRET_VALUE = re.compile(r"pass\w*=", re.I)
_HIDDEN = "(not shown)"
_MAX_VALUE = 60
"""Characters of a value in the report."""

_MAX_PARTS = 16
"""Parts of a nested value in the report."""

_MAX_PATH, _MAX_PATH_END = 50, 20
"""Characters of a path in a sentence, and how many of them are its end if it is longer."""


def one_line(text: str, most: int) -> str:
    """Return the start of a text, without characters that could move a terminal's cursor."""
    line = "".join(char if char.isprintable() else " " for char in text[: most + 1])
    return shorten(line, most, ellipsis="...")


def quote_path(path: str) -> str:
    """Return a path for a sentence: quoted, on one line, with the middle left out if it is long."""
    text = repr(path[:1024])
    if len(text) <= _MAX_PATH:
        return text
    return f"{text[: _MAX_PATH - _MAX_PATH_END - 3]}...{text[-_MAX_PATH_END:]}"


def format_value(key: str, value: Any) -> str:
    """Return a value as one short line, or a placeholder if it looks like a secret."""
    if _SECRET_KEY.search(key.replace("-", "_")):
        return _HIDDEN
    if isinstance(value, str):
        return _HIDDEN if _SECRET_VALUE.search(value) else one_line(value, _MAX_VALUE)
    try:
        return one_line(_to_json(value, [_MAX_PARTS]), _MAX_VALUE)
    except ValueError:  # Python does not print numbers of more than 4,300 digits
        return _HIDDEN


def _to_json(value: Any, parts_left: list[int]) -> str:
    """Return a value as JSON, with at most so many parts: a nested value may be huge."""
    parts_left[0] -= 1
    if parts_left[0] < 0:
        return "..."
    if isinstance(value, dict):
        return "{" + ", ".join(_pairs(value, parts_left)) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_to_json(one, parts_left) for one in value[:_MAX_PARTS]) + "]"
    if isinstance(value, str):
        return json.dumps(value[:_MAX_VALUE], ensure_ascii=False)
    return json.dumps(value, default=str)[:_MAX_VALUE]


def _pairs(value: dict[Any, Any], parts_left: list[int]) -> Iterator[str]:
    for key, one in itertools.islice(value.items(), _MAX_PARTS):
        text = _HIDDEN if _SECRET_KEY.search(str(key)) else _to_json(one, parts_left)
        yield f"{json.dumps(str(key), ensure_ascii=False)}: {text}"
