"""Pieces of text that are cut to fit a sentence for a person, in an error, a log line or a report.

Each caller gives its own limit, because a limit follows from where the sentence goes.
"""

from __future__ import annotations

MAX_NAME = 64
"""Characters of a name that a sentence shows; a client may send a name of any length."""


def shorten(text: str, limit: int, *, ellipsis: str = "…") -> str:
    """Return `text`, cut to `limit` characters of which the last are `ellipsis`.

    Args:
        text: The text.
        limit: Most characters of the result.
        ellipsis: What marks a cut text; may be empty.
    """
    return text if len(text) <= limit else text[: limit - len(ellipsis)] + ellipsis


def quote(name: str, *, limit: int = MAX_NAME, ellipsis: str = "…") -> str:
    """Return a name in quotation marks, with escapes for control characters, short enough to show.

    Args:
        name: The name, often a client's.
        limit: Most characters of the name, before it is quoted.
        ellipsis: What marks a cut name; may be empty.
    """
    return repr(shorten(name, limit, ellipsis=ellipsis))
