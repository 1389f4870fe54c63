"""The pages of a pool, and the sequences that own them.

A page holds the keys and values of one token in every layer of a pool. A sequence owns any free
pages, consecutive ones where it can (`free_pages`). Layers that keep whole sequences share one
pool. Layers that attend to a window share another, where a sequence gives back the pages of tokens
that have left the window.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from predictor.engine.generation.free_pages import NO_PAGE, FreePages
from predictor.engine.generation.kv_accounting import PADDING_PAGES, usable_tokens

_PADDING = 0
"""A page of the padding, which stands for tokens that are no longer kept."""


@dataclass(slots=True)
class _Owned:
    """The pages of a sequence by position, of which those from `first` to `end` are kept."""

    pages: torch.Tensor
    first: int = 0
    end: int = 0


class PageTable:
    """The pages that sequences own, by the positions of their tokens."""

    def __init__(self, pages: int, max_length: int) -> None:
        """Begin with all pages free.

        Args:
            pages: Pages of the pool, including the padding; 0 if none is kept.
            max_length: Tokens of the longest sequence.
        """
        self._free = FreePages(PADDING_PAGES, usable_tokens(pages) if pages else 0)
        self._max_length = max_length
        self._owned: dict[int, _Owned] = {}

    @property
    def free(self) -> int:
        """How many pages no sequence owns."""
        return self._free.count

    def owns(self, key: int) -> bool:
        """Return whether a sequence has had pages since it began."""
        return key in self._owned

    def count(self, key: int) -> int:
        """Return how many first tokens of a sequence have had pages."""
        own = self._owned.get(key)
        return 0 if own is None else own.end

    def owned(self, key: int) -> list[int]:
        """Return the pages of a sequence, in the order of its tokens."""
        own = self._owned[key]
        pages: list[int] = own.pages[own.first : own.end].tolist()
        return pages

    def take(self, key: int, end: int) -> torch.Tensor:
        """Return the page of each of a sequence's first tokens, after taking those that it lacks.

        Args:
            key: The sequence.
            end: How many tokens.

        Returns:
            Pages, of shape (tokens,). Tokens that were forgotten have a page of the padding.

        Raises:
            MemoryError: There are not enough pages.
        """
        lacking = max(0, end - self.count(key))
        if lacking > self._free.count:
            raise MemoryError(f"{lacking} KV pages needed, {self._free.count} are free")
        return self._append(key, self._free.take(lacking, self._last(key)))[:end]

    def forget(self, key: int, before: int) -> None:
        """Free the pages of a sequence's tokens before a position."""
        own = self._owned[key]
        if before > own.first:
            self._free.put_back(own.pages[own.first : before])
            own.pages[own.first : before] = _PADDING
            own.first = before

    def truncate(self, key: int, end: int) -> None:
        """Free the pages of a sequence's tokens from a position on."""
        own = self._owned[key]
        if end < own.end:
            self._free.put_back(own.pages[end : own.end])
            own.end = end

    def release(self, key: int) -> None:
        """Free all pages of a sequence."""
        own = self._owned.pop(key, None)
        if own is not None:
            self._free.put_back(own.pages[own.first : own.end])

    def _last(self, key: int) -> int:
        """The last page of a sequence, or `NO_PAGE`."""
        own = self._owned.get(key)
        return NO_PAGE if own is None or not own.end else int(own.pages[own.end - 1])

    def _append(self, key: int, pages: torch.Tensor) -> torch.Tensor:
        """Give a sequence further pages; return all of its."""
        own = self._owned.get(key)
        if own is None:
            own = self._owned[key] = _Owned(self._no_pages())
        own.pages[own.end : own.end + len(pages)] = pages
        own.end += len(pages)
        return own.pages[: own.end]

    @torch.inference_mode(mode=False)  # within a pass too: a plan between passes adds to it
    def _no_pages(self) -> torch.Tensor:
        return torch.empty(self._max_length, dtype=torch.long)
