"""The layout of a forward pass: its rows, and the pages and columns of their tokens.

`kv_cache` says how rows are padded and which pages there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from predictor.shape_buckets import bucket_context, bucket_new_tokens

_HOST = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class SequenceChunk:
    """New tokens of one sequence: a row of a forward pass.

    Attributes:
        key: The sequence.
        start: How many of its tokens are cached.
        tokens: The tokens after those.
        adapter: The adapter that computes them; None is the model alone.
    """

    key: int
    start: int
    tokens: Sequence[int]
    adapter: str | None = None

    @property
    def end(self) -> int:
        """How many tokens are cached after the forward pass."""
        return self.start + len(self.tokens)


@dataclass(frozen=True, slots=True)
class Indices:
    """The pages of a forward pass in one pool.

    Attributes:
        gather: The pages of the columns that a layer attends to, of shape (rows, columns).
        written: The pages of the new tokens, of shape (tokens,).
        fresh: Which of the computed columns are written there, of shape (tokens,); None for all.
    """

    gather: torch.Tensor
    written: torch.Tensor
    fresh: torch.Tensor | None

    def to(self, device: torch.device) -> Indices:
        """Return a copy on a device."""
        fresh = None if self.fresh is None else self.fresh.to(device)
        return Indices(self.gather.to(device), self.written.to(device), fresh)


class Layout:
    """The pages and columns of the tokens of one forward pass.

    Attributes:
        past: Columns before the new ones; none if no token is kept.
        new: Columns that the model computes.
        lengths: Tokens of each row, of shape (rows,).
    """

    def __init__(
        self,
        rows: Sequence[SequenceChunk],
        pages: Sequence[torch.Tensor] | None,
        *,
        window_pages: Sequence[torch.Tensor] | None = None,
        bucket_shapes: bool = False,
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
            pads_new: Whether the new columns may have padding.
        """
        self.new, width = max(len(row.tokens) for row in rows), max(row.end for row in rows)
        if bucket_shapes:
            self.new = bucket_new_tokens(self.new) if pads_new else self.new
            width = max(self.new, bucket_context(width))
        self.past = 0 if pages is None else width - self.new
        self.lengths = torch.tensor([row.end for row in rows])
        is_padded = sum(len(row.tokens) for row in rows) < len(rows) * self.new
        if is_padded and not pads_new:
            raise ValueError("rows that continue a state have unequal numbers of new tokens")
        self._rows, self._pages, self._window_pages = rows, pages, window_pages
        self._fresh = self._find_fresh() if is_padded else None
        self._by_window: dict[tuple[torch.device, int], Indices] = {}

    def past_within(self, window: int) -> int:
        """Return how many columns before the new ones a layer attends to.

        Args:
            window: Positions that a token attends to, its own among them; 0 for all.
        """
        return min(self.past, window - 1) if window else self.past

    def indices(self, device: torch.device, window: int = 0) -> Indices:
        """Return the indices of the forward pass on a device.

        Args:
            device: The device.
            window: The window of the layer, see `past_within`.
        """
        key = (device, window)
        if key not in self._by_window:
            is_host = device.type == "cpu"
            self._by_window[key] = (
                self._place(window) if is_host else self.indices(_HOST, window).to(device)
            )
        return self._by_window[key]

    def _place(self, window: int) -> Indices:
        pages = self._window_pages if window else self._pages
        if pages is None:
            raise RuntimeError("no token is kept")
        columns = self.past_within(window) + self.new
        gather = torch.zeros(len(self._rows), columns, dtype=torch.long)
        for index, own in enumerate(pages):
            seen = own[-columns:]
            gather[index, columns - len(seen) :] = seen
        written = [own[row.start :] for row, own in zip(self._rows, pages, strict=True)]
        return Indices(gather, torch.cat(written), self._fresh)

    def _find_fresh(self) -> torch.Tensor:
        ends = range(self.new, (len(self._rows) + 1) * self.new, self.new)
        return torch.cat(
            [
                torch.arange(end - len(row.tokens), end)
                for row, end in zip(self._rows, ends, strict=True)
            ]
        )
