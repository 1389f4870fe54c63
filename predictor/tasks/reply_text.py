"""The text of a reply beside the parser's events, which leave out the marks of its regions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_Mark = re.Pattern[str] | None


class ReplyText:
    """Knows which text stands behind the events of a response parser.

    Attributes:
        start: Where the last region begins, with its mark.
        end: Where the events end.
    """

    def __init__(self, template: Mapping[str, Any]) -> None:
        """Begin a reply.

        Args:
            template: The response template.
        """
        self._marks = {
            name: (_mark(field, "open"), _mark(field, "close"))
            for name, field in template["fields"].items()
        }
        self._text = ""
        self.start = self.end = self._body_end = 0
        self._has_mark = False

    def feed(self, text: str) -> None:
        """Add the next characters of the reply."""
        self._text += text

    def pass_event(self, event: Mapping[str, Any]) -> None:
        """Go behind the text of an event."""
        opening, closing = self._marks[event["field"]]
        sort = event["type"]
        if sort == "region_chunk":
            self.end += len(event["text"])
            self._body_end = self.end
        elif sort == "region_open":
            match = opening.search(self._text, self.end) if opening else None
            self.start, self.end = match.span() if match else (self.end, self.end)
            self._body_end, self._has_mark = self.end, self.start < self.end
        elif closing is not None and (match := closing.match(self._text, self.end)):
            self.end = match.end()

    def region(self) -> str:
        """Return the text of the last region up to where the events end, with its marks.

        Without a mark before it, it has none behind it either but what ends the reply.
        """
        return self._text[self.start : self.end if self._has_mark else self._body_end]

    def since(self, position: int) -> str:
        """Return the text from a position on."""
        return self._text[position:]


def _mark(field: Mapping[str, Any], side: str) -> _Mark:
    """Return the pattern of a mark; None if there is none, or `re` does not know such patterns."""
    pattern = field.get(f"{side}_pattern")
    if pattern is None:
        literals = field.get(side, [])
        literals = [literals] if isinstance(literals, str) else literals
        pattern = "|".join(map(re.escape, sorted(literals, key=len, reverse=True)))
    try:
        return re.compile(pattern, re.DOTALL) if pattern else None
    except re.error:  # transformers compiles them with the package `regex`
        return None
