"""Reads calls out of JSON while it is written, so that their arguments can be streamed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from predictor.tasks.tool_calls import CallPart, new_call

_HEAD = re.compile(
    r'[\s\[,;]*\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,'
    r'\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
"""What precedes the arguments in the one order of keys that all models are taught."""

_STEP = re.compile(r'[{}"\\]')


class CallText:
    """The text of an object, or of a list of objects, with a name and arguments each.

    Attributes:
        calls: Calls that have begun.
    """

    def __init__(self, first: int) -> None:
        """Begin a text whose first call has this index in the reply."""
        self.calls = 0
        self._first = first
        self._text = ""
        self._depth = 0
        self._is_string = False
        self._position = 0

    def feed(self, text: str) -> Iterator[CallPart]:
        """Take the next characters, and yield the parts of calls that they make certain."""
        self._text += text
        while True:
            if not self._depth:
                head = _HEAD.match(self._text)
                if head is None:
                    return
                self._text, self._position = self._text[head.end() :], 0
                yield new_call(self._first + self.calls, json.loads(head[1]), "")
                self.calls += 1
            end = self._end()
            arguments, self._text = self._text[:end], self._text[end:]
            self._position = 0
            if arguments:
                yield CallPart(self._first + self.calls - 1, arguments)
            if self._depth or not end:
                return
            self._text = self._text.lstrip().removeprefix("}")

    def _end(self) -> int:
        """Return where the arguments end, or the text if they go on; count their brackets."""
        for step in iter(lambda: _STEP.search(self._text, self._position), None):
            mark, self._position = step[0], step.end()
            if mark == "\\":
                if self._position == len(self._text):
                    self._position -= 1
                    return self._position  # what it escapes is not there yet
                self._position += 1
            elif mark == '"':
                self._is_string = not self._is_string
            elif not self._is_string:
                self._depth += 1 if mark == "{" else -1
                if not self._depth:
                    return self._position
        return len(self._text)
