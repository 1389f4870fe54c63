"""Java's ``.properties`` files, as TorchServe's configuration and snapshots are.

The format is that of ``java.util.Properties.load``: logical lines over several natural ones, ``=``,
``:`` or white space after the key, backslashes before what would mean something else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_SPACE = " \t\f"
_END_OF_KEY = re.compile(r"(?:\\.|[^\\=: \t\f])*")
_SEPARATOR = re.compile(r"[ \t\f]*(?:[=:][ \t\f]*)?")
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.))", re.DOTALL)
_MEANT = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}
_CUT_ESCAPE = re.compile(r"(?<!\\)(?:\\\\)*\\u(?![0-9a-fA-F]{4})")


def parse_properties(text: str) -> dict[str, str]:
    r"""Returns the keys and values; of a repeated key the last.

    Raises:
        ValueError: A ``\u`` is not followed by four hexadecimal digits.
    """
    found = {}
    for line in _logical_lines(text):
        if _CUT_ESCAPE.search(line):
            raise ValueError(f"a \\u without four digits in {line[:40]!r}")
        key = _END_OF_KEY.match(line)
        end = key.end() if key else 0
        after = _SEPARATOR.match(line, end)
        found[_unescaped(line[:end])] = _unescaped(line[after.end() if after else end :])
    return found


def _logical_lines(text: str) -> Iterator[str]:
    parts: list[str] = []
    for natural in re.split(r"\r\n|\r|\n", text):
        line = natural.lstrip(_SPACE)
        if not parts and (not line or line[0] in "#!"):
            continue
        if _goes_on(line):
            parts.append(line[:-1])
            continue
        yield "".join([*parts, line])
        parts = []
    if parts:
        yield "".join(parts)


def _goes_on(line: str) -> bool:
    return (len(line) - len(line.rstrip("\\"))) % 2 == 1


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(
        lambda match: chr(int(match[1], 16)) if match[1] else _MEANT.get(match[2], match[2]), text
    )
