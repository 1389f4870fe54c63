"""Reads calls out of JSON while it is written, so that their arguments can be streamed."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator

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

    def __init__(self, first: int, names: Collection[str]) -> None:
        """Begin a text.

        Args:
            first: The index in the reply that its first call has.
            names: The functions that may be called. What names another is no call.
        """
        self.calls = 0
        self._names = names
        self._first = first
        self._text = ""
        self._depth = 0
        self._is_closing = False
        self._is_string = False
        self._position = 0

    def feed(self, text: str) -> Iterator[CallPart]:
        """Take the next characters, and yield the parts of calls that they make certain."""
        self._text += text
        while True:
            if not self._depth:
                self._pass_brace()
                head = _HEAD.match(self._text)
                if head is None or (name := _name(head[1])) not in self._names:
                    return
                self._text, self._position = self._text[head.end() :], 0
                yield new_call(self._first + self.calls, name, "")
                self.calls += 1
            end = self._end()
            arguments, self._text = self._text[:end], self._text[end:]
            self._position = 0
            if arguments:
                yield CallPart(self._first + self.calls - 1, arguments)
            if self._depth or not end:
                return
            self._is_closing = True

    def rest(self) -> str:
        """Return the text after the last call, without what closes a list of calls."""
        if self._depth:
            return ""
        self._pass_brace()
        text = self._text.strip()
        return text if text.strip("] ;,\t\r\n") else ""

    def _pass_brace(self) -> None:
        """Drop the bracket that closes the call before, once it is there."""
        if self._is_closing and (text := self._text.lstrip()):
            self._text, self._is_closing = text.removeprefix("}"), False

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


def _name(text: str) -> str:
    """Return the name in a JSON string; empty if it is no valid string."""
    try:
        return str(json.loads(text))
    except ValueError:
        return ""
