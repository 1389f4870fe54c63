"""Tokenises large texts one at a time, for the memory that a tokenizer takes meanwhile."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence

LARGE = 64 * 1024
"""Characters beyond which a text is large. A tokenizer takes up to 260 bytes a character until it
is done, so up to 16 MiB for a text that is not large."""

_PIECE = 32 * 1024
"""Characters of a piece of a large text."""

_SEARCHED = 1024
"""Characters among which a piece's end is looked for."""

_one = threading.Lock()


@contextlib.contextmanager
def one_at_a_time(*texts: str) -> Iterator[None]:
    """Wait, if texts are large, until no other thread tokenises large ones.

    Args:
        texts: The texts that are tokenised in one call.
    """
    if sum(map(len, texts)) <= LARGE:
        yield
        return
    with _one:
        yield


def pieces(text: str, *, from_end: bool = False) -> Iterator[str]:
    """Yield a text piece by piece, cut before white space where there is some.

    Args:
        text: The text.
        from_end: Whether the last piece comes first.
    """
    start, end = 0, len(text)
    while end - start > _PIECE:
        if from_end:
            cut = _break_near(text, end - _PIECE)
            yield text[cut:end]
            end = cut
        else:
            cut = _break_near(text, start + _PIECE)
            yield text[start:cut]
            start = cut
    yield text[start:end]


def _break_near(text: str, near: int) -> int:
    """Return a place before white space that is near to another one, or that one."""
    for place in range(near, max(0, near - _SEARCHED), -1):
        if text[place].isspace() and not text[place - 1].isspace():
            return place
    return near


def batches(texts: Sequence[str]) -> Iterator[list[str]]:
    """Yield texts in order, as many at a time as are not large together, or one that is."""
    batch: list[str] = []
    length = 0
    for text in texts:
        if batch and length + len(text) > LARGE:
            yield batch
            batch, length = [], 0
        batch.append(text)
        length += len(text)
    if batch:
        yield batch
