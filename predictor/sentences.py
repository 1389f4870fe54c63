"""Pieces of text that are cut to fit a sentence for a person, in an error, a log line or a report.

Each caller gives its own limit, because a limit follows from where the sentence goes.
"""

from __future__ import annotations

from collections.abc import Sequence

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


def lacks_weights(path: object, architecture: str, missing: Sequence[str]) -> str:
    """Return that files lack weights of a model, with the names of one or two, as a phrase."""
    if len(missing) == 1:
        return f"{path} lacks a weight of {architecture}, {missing[0]}"
    names = f"{missing[0]} and {missing[1]}" if len(missing) == 2 else f"{missing[0]} among them"
    return f"{path} lacks {len(missing)} weights of {architecture}, {names}"
