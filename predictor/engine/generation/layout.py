"""The layout of a forward pass: its rows, and the pages and columns of their tokens.

`kv_cache` says how rows are padded and which pages there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from predictor.shape_buckets import bucket_context, bucket_new_tokens


@dataclass(frozen=True, slots=True)
class SequenceChunk:
    """New tokens of one sequence: a row of a forward pass.

    Attributes:
        key: The sequence.
        start: How many of its tokens are cached.
        tokens: The tokens after those.
    """

    key: int
    start: int
    tokens: Sequence[int]

    @property
    def end(self) -> int:
        """How many tokens are cached after the forward pass."""
        return self.start + len(self.tokens)


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
        bucket_shapes: bool = False,
        pads_new: bool = True,
    ) -> None:
        """Lay out rows.

        Args:
            rows: The rows.
            pages: For each row the pages of all its tokens, of shape (tokens,); None if no token is
                kept.
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
        self._host = None if pages is None else self._index(rows, pages, is_padded=is_padded)
        self._by_device: dict[torch.device, tuple[torch.Tensor, torch.Tensor, Any]] = {}

    def indices(
        self, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return the indices of the forward pass on a device.

        They are: the pages to gather, of shape (rows, width); the pages to write, of shape
        (tokens,); and which of the computed columns are written there, of shape (tokens,), or None
        for all of them.
        """
        if self._host is None:
            raise RuntimeError("no token is kept")
        if device not in self._by_device:
            gather, written, fresh = self._host
            self._by_device[device] = (
                gather.to(device),
                written.to(device),
                None if fresh is None else fresh.to(device),
            )
        return self._by_device[device]

    def _index(
        self, rows: Sequence[SequenceChunk], pages: Sequence[torch.Tensor], *, is_padded: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        width = self.past + self.new
        gather = torch.zeros(len(rows), width, dtype=torch.long)
        for index, own in enumerate(pages):
            gather[index, width - len(own) :] = own
        written = torch.cat([own[row.start :] for row, own in zip(rows, pages, strict=True)])
        fresh = [
            torch.arange((index + 1) * self.new - len(row.tokens), (index + 1) * self.new)
            for index, row in enumerate(rows)
        ]
        return gather, written, torch.cat(fresh) if is_padded else None
