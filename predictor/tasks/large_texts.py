"""Tokenises large texts one at a time, for the memory that a tokenizer takes meanwhile."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence

LARGE = 64 * 1024
"""Characters beyond which a text is large. A tokenizer takes up to 260 bytes a character until it
is done, so up to 16 MiB for a text that is not large."""

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
