"""Parse Java's ``.properties`` format, in which TorchServe's configuration is written.

The format is that of ``java.util.Properties.load``. A logical line may span several natural ones.
``=``, ``:`` or white space follows the key. A backslash escapes a special character.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from predictor.sentences import quote

_SPACE = " \t\f"
_KEY = re.compile(r"(?:\\.|[^\\=: \t\f])*")
_SEPARATOR = re.compile(r"[ \t\f]*(?:[=:][ \t\f]*)?")
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.))", re.DOTALL)
_ESCAPED = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}
_CUT_ESCAPE = re.compile(r"(?<!\\)(?:\\\\)*\\u(?![0-9a-fA-F]{4})")


def parse_properties(text: str) -> dict[str, str]:
    r"""Return the keys and values. If a key is repeated, its last value counts.

    Raises:
        ValueError: A ``\u`` is not followed by four hexadecimal digits.
    """
    properties = {}
    for line in _logical_lines(text):
        if _CUT_ESCAPE.search(line):
            raise ValueError(f"a \\u without four digits in {quote(line, limit=40, ellipsis='')}")
        key = _KEY.match(line)
        key_end = key.end() if key else 0
        separator = _SEPARATOR.match(line, key_end)
        value_start = separator.end() if separator else key_end
        properties[_unescape(line[:key_end])] = _unescape(line[value_start:])
    return properties


def _logical_lines(text: str) -> Iterator[str]:
    parts: list[str] = []
    for natural in re.split(r"\r\n|\r|\n", text):
        line = natural.lstrip(_SPACE)
        if not parts and (not line or line[0] in "#!"):
            continue
        if _is_continued(line):
            parts.append(line[:-1])
            continue
        yield "".join([*parts, line])
        parts = []
    if parts:
        yield "".join(parts)


def _is_continued(line: str) -> bool:
    return (len(line) - len(line.rstrip("\\"))) % 2 == 1


def _unescape(text: str) -> str:
    return _ESCAPE.sub(
        lambda match: chr(int(match[1], 16)) if match[1] else _ESCAPED.get(match[2], match[2]),
        text,
    )
