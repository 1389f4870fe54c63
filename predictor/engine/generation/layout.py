"""The layout of a forward pass: its rows, and the pages and columns of their tokens.

`kv_cache` says how rows are padded and which pages there are.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import torch

from predictor.engine.generation.prompt_tokens import PromptScores
from predictor.shape_buckets import LEAST_PLAIN, bucket_context, bucket_new_tokens

_HOST = torch.device("cpu")

_MOST_NOTES = 4
"""Masks of a forward pass that are remembered: one for each kind of layer. A model that makes one
for each layer has no more of them in memory."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SequenceChunk:
    """New tokens of one sequence: a row of a forward pass.

    Attributes:
        key: The sequence.
        start: How many of its tokens are cached.
        tokens: The tokens after those.
        adapter: The adapter that computes them; None is the model alone.
        drafts: How many of the last tokens are drafts. Logits are needed after each of them, too.
        scores: Takes the log probabilities of tokens of a prompt; None if they are not needed.
    """

    key: int
    start: int
    tokens: Sequence[int]
    adapter: str | None = None
    drafts: int = 0
    scores: PromptScores | None = None

    @property
    def end(self) -> int:
        """How many tokens are cached after the forward pass."""
        return self.start + len(self.tokens)

    @property
    def known_end(self) -> int:
        """How many of them are no drafts."""
        return self.end - self.drafts


@dataclass(frozen=True, slots=True)
class Indices:
    """The pages of the new tokens of a forward pass in one pool.

    Attributes:
        written: The pages of the new tokens, of shape (tokens,).
        fresh: Which of the computed columns are written there, of shape (tokens,); None for all.
    """

    written: torch.Tensor
    fresh: torch.Tensor | None

    def to(self, device: torch.device) -> Indices:
        """Return a copy on a device."""
        fresh = None if self.fresh is None else self.fresh.to(device)
        return Indices(self.written.to(device), fresh)


@dataclass(frozen=True, slots=True)
class RowPages:
    """The pages of the columns that a layer attends to in one row.

    Attributes:
        pages: The pages, on the host, of shape (tokens,).
        new: How many of the last ones are of new tokens.
        breaks: The tokens, but for the first, whose pages do not follow those before them in the
            pool.
    """

    pages: torch.Tensor
    new: int
    breaks: tuple[int, ...]

    def runs(self, first: int) -> list[slice]:
        """Return the runs of consecutive pages of the row, in the order of its tokens.

        Args:
            first: The token to begin with, which is counted from the first of the pages.
        """
        after = self.breaks[bisect_right(self.breaks, first) :]
        tokens = pairwise((first, *after, len(self.pages)))
        starts = ((int(self.pages[start]), end - start) for start, end in tokens)
        return [slice(page, page + count) for page, count in starts]

    def read(self, pool: torch.Tensor, first: int) -> torch.Tensor:
        """Return the keys or values of the row, of shape (1, heads, tokens, size).

        Args:
            pool: Those of all pages, of shape (heads, pages, size).
            first: The token to begin with, which is counted from the first of the pages.
        """
        if not self.breaks or first >= self.breaks[-1]:
            return pool[None, :, self.runs(first)[0]]
        return pool.index_select(1, self.pages[first:].to(pool.device))[None]


class Layout:
    """The pages and columns of the tokens of one forward pass.

    Attributes:
        past: Columns before the new ones; none if no token is kept.
        new: Columns that the model computes.
        lengths: Tokens of each row, of shape (rows,).
        lacks_padding: Whether rows in half precision were gathered in a width of their own, for
            which oneDNN may compile kernels.
    """

    def __init__(
        self,
        rows: Sequence[SequenceChunk],
        pages: Sequence[torch.Tensor] | None,
        *,
        window_pages: Sequence[torch.Tensor] | None = None,
        bucket_shapes: bool = False,
        pads_context: bool = True,
        pads_new: bool = True,
    ) -> None:
        """Lay out rows.

        Args:
            rows: The rows.
            pages: For each row the pages of all its tokens, of shape (tokens,); None if no token is
                kept.
            window_pages: The same in the pool of layers that attend to a window; None without any.
            bucket_shapes: Whether to add columns of padding up to the next of a few shapes, see
                `shape_buckets`.
            pads_context: Whether those before the new ones are among them.
            pads_new: Whether the new columns may have padding.
        """
        self.new, width = max(len(row.tokens) for row in rows), max(row.end for row in rows)
        if bucket_shapes:
            self.new = bucket_new_tokens(self.new) if pads_new else self.new
            width = max(self.new, bucket_context(width) if pads_context else width)
        self.past = 0 if pages is None else width - self.new
        self.lengths = torch.tensor([row.end for row in rows])
        is_padded = sum(len(row.tokens) for row in rows) < len(rows) * self.new
        if is_padded and not pads_new:
            raise ValueError("rows that continue a state have unequal numbers of new tokens")
        self.lacks_padding, self._pads_context = False, pads_context
        self._rows, self._pages, self._window_pages = rows, pages, window_pages
        self._fresh = self._find_fresh() if is_padded else None
        self._indices: dict[tuple[torch.device, int], Indices] = {}
        self._gather: dict[tuple[torch.device, int], torch.Tensor] = {}
        self._row_pages: dict[int, tuple[RowPages, ...]] = {}
        self._notes: deque[tuple[torch.Tensor, Any]] = deque(maxlen=_MOST_NOTES)

    def past_within(self, window: int) -> int:
        """Return how many columns before the new ones a layer attends to.

        Args:
            window: Positions that a token attends to, its own among them; 0 for all.
        """
        return min(self.past, window - 1) if window else self.past

    def past_positions(self) -> torch.Tensor:
        """Return the positions of the columns before the new ones, of shape (rows, columns).

        Those of padding are 0.
        """
        columns = torch.arange(self.past) - (self.past + self.new)
        return (columns + self.lengths[:, None]).clamp_(min=0)

    def indices(self, device: torch.device, window: int = 0) -> Indices:
        """Return the indices of the forward pass on a device.

        Args:
            device: The device.
            window: The window of the layer, see `past_within`.
        """
        key = (device, window)
        if key not in self._indices:
            is_host = device.type == "cpu"
            self._indices[key] = (
                self._find_written(window) if is_host else self.indices(_HOST, window).to(device)
            )
        return self._indices[key]

    def gather(self, device: torch.device, window: int = 0) -> torch.Tensor:
        """Return the pages of the columns that a layer attends to, of shape (rows, columns).

        Args:
            device: The device.
            window: The window of the layer, see `past_within`.
        """
        key = (device, window)
        if key not in self._gather:
            is_host = device.type == "cpu"
            self._gather[key] = (
                self._find_columns(window) if is_host else self.gather(_HOST, window).to(device)
            )
        return self._gather[key]

    def note_gathered(self, pool: torch.Tensor) -> None:
        """Note that rows of a pool of pages were gathered."""
        self.lacks_padding |= not self._pads_context and pool.element_size() < LEAST_PLAIN

    def row_pages(self, window: int = 0) -> tuple[RowPages, ...]:
        """Return the same for each row, without padding.

        Args:
            window: The window of the layer, see `past_within`.
        """
        if window not in self._row_pages:
            columns = self.past_within(window) + self.new
            self._row_pages[window] = tuple(
                RowPages(own[-columns:], len(row.tokens), _find_breaks(own[-columns:]))
                for row, own in zip(self._rows, self._pages_within(window), strict=True)
            )
        return self._row_pages[window]

    def noted(self, mask: torch.Tensor, read: Callable[[torch.Tensor], T]) -> T:
        """Return what a function returns for a mask, which it reads once in a forward pass.

        Args:
            mask: A mask, which many layers share.
            read: The function; the same for all masks.
        """
        for noted, result in self._notes:
            if noted is mask:
                note: T = result
                return note
        self._notes.append((mask, note := read(mask)))
        return note

    def _pages_within(self, window: int) -> Sequence[torch.Tensor]:
        pages = self._window_pages if window else self._pages
        if pages is None:
            raise RuntimeError("no token is kept")
        return pages

    def _find_written(self, window: int) -> Indices:
        pages = self._pages_within(window)
        written = [own[row.start :] for row, own in zip(self._rows, pages, strict=True)]
        return Indices(torch.cat(written), self._fresh)

    def _find_columns(self, window: int) -> torch.Tensor:
        columns = self.past_within(window) + self.new
        gather = torch.zeros(len(self._rows), columns, dtype=torch.long)
        for index, row in enumerate(self.row_pages(window)):
            gather[index, columns - len(row.pages) :] = row.pages
        return gather

    def _find_fresh(self) -> torch.Tensor:
        ends = range(self.new, (len(self._rows) + 1) * self.new, self.new)
        return torch.cat(
            [
                torch.arange(end - len(row.tokens), end)
                for row, end in zip(self._rows, ends, strict=True)
            ]
        )


def _find_breaks(pages: torch.Tensor) -> tuple[int, ...]:
    breaks: list[int] = ((pages[1:] - pages[:-1] != 1).nonzero().flatten() + 1).tolist()
    return tuple(breaks)
