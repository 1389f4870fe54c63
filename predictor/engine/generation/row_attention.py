"""Attention of each row of a forward pass to its own pages, without padding.

A row with consecutive pages attends to a view of the pool. A row with a few runs of them attends
to each run, and joins the results by the logarithms of the sums of their weights, as
FlashAttention (2205.14135) does for blocks. Other rows copy their pages, one row at a time. What a
mask hides before the first column that a row sees, be it padding or what has left a
window, is not read. One new token sees all of the rest, and so needs no mask.

Heads of queries that share a head of keys are computed as further queries of that head, so that
keys and values are read once.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention

from predictor.engine.generation.layout import Layout, RowPages
from predictor.private.torch import flash_attention_on_cpu

_MOST_PACKED = 32
"""New tokens of a row whose heads are computed as further queries. With more, copying the mask for
the heads that share keys costs as much as it saves."""

_LEAST_RUN = 64
"""Tokens that the runs of a row have on average, if it attends to each. To copy fewer takes less
time than another call."""


@dataclass(frozen=True, slots=True)
class RowMask:
    """The mask of one row.

    Attributes:
        first: The first column that a new token of the row sees.
        is_open: Whether all new tokens see all columns from there on.
    """

    first: int
    is_open: bool


@dataclass(frozen=True, slots=True)
class Attention:
    """A call of PyTorch's attention over the rows of a forward pass.

    Attributes:
        layout: The rows.
        window: The window of the layer, see `Layout.past_within`.
        keys: The keys of all pages, of shape (heads, pages, size).
        values: The values of all pages, likewise.
        query: Of shape (rows, heads, queries, size).
        mask: Of a shape that is broadcast to (rows, heads, queries, columns); None for none.
        is_causal: Whether a query sees the columns up to its own, if there is no mask.
        scale: The factor of the products of queries and keys; None for the usual one.
    """

    layout: Layout
    window: int
    keys: torch.Tensor
    values: torch.Tensor
    query: torch.Tensor
    mask: torch.Tensor | None
    is_causal: bool
    scale: float | None

    @property
    def columns(self) -> int:
        """How many columns the layer attends to."""
        return self.layout.past_within(self.window) + self.layout.new

    def by_row(self) -> torch.Tensor | None:
        """Return the output, of shape (rows, heads, queries, size); None if rows need gathering."""
        rows = self.layout.row_pages(self.window)
        masks = self._row_masks(rows) if self._is_regular(rows) else None
        if masks is None:
            return None
        if self.layout.new == 1 or all(row.new == self.layout.new for row in rows):
            pairs = enumerate(zip(rows, masks, strict=True))
            return torch.cat([self._attend(i, row, mask, slice(None)) for i, (row, mask) in pairs])
        *outer, _ = self.query.shape
        output = self.query.new_zeros(*outer, self.values.shape[2])
        for index, (row, mask) in enumerate(zip(rows, masks, strict=True)):
            queries = slice(-row.new, None)
            output[index, :, queries] = self._attend(index, row, mask, queries)[0]
        return output

    def _is_regular(self, rows: tuple[RowPages, ...]) -> bool:
        """Return whether each head of keys has queries of all new tokens of all rows."""
        count, heads, queries, _ = self.query.shape
        has_all = self.layout.new in (1, queries)
        return count == len(rows) and heads % len(self.keys) == 0 and has_all

    def _row_masks(self, rows: tuple[RowPages, ...]) -> tuple[RowMask, ...] | None:
        """Return the mask of each row; None if a row sees padding."""
        paddings = [self.columns - len(row.pages) for row in rows]
        if self.mask is None:
            if any(paddings) or (self.is_causal and self.query.shape[2] < self.columns):
                return None
            return (RowMask(0, is_open=not self.is_causal),) * len(rows)
        masks = self.layout.noted(self.mask, _read_mask)
        if self.mask.ndim != 4 or len(masks) not in (1, len(rows)):
            return None
        masks = masks * (len(rows) // len(masks))
        sees_padding = any(mask.first < n for mask, n in zip(masks, paddings, strict=True))
        return None if sees_padding else masks

    def _attend(self, index: int, row: RowPages, mask: RowMask, queries: slice) -> torch.Tensor:
        """Return the output of one row, of shape (1, heads, queries, size)."""
        first = mask.first - (self.columns - len(row.pages))
        query = self.query[index : index + 1, :, queries]
        _, heads, count, size = query.shape
        is_packed = mask.is_open or (self.mask is not None and count <= _MOST_PACKED)
        if is_packed:
            query = query.reshape(1, len(self.keys), -1, size)
        if mask.is_open and self._reads_runs(row, first):
            return self._attend_to_runs(query, row.runs(first)).reshape(1, heads, count, -1)
        keys, values = row.read(self.keys, first), row.read(self.values, first)
        hidden = None if mask.is_open else self._hidden(index, mask.first, queries)
        is_causal = self.mask is None and self.is_causal
        if is_causal and count < len(row.pages):  # PyTorch takes queries for the first tokens
            hidden, is_causal = _causal_mask(count, keys), False
        if hidden is not None and is_packed:
            shared = len(self.keys) if hidden.shape[1] > 1 else 1
            group = heads // len(self.keys)
            hidden = hidden.expand(-1, shared * group, count, -1).reshape(
                *(1, shared, group * count, -1)
            )
        output = scaled_dot_product_attention(
            *(query, keys, values, hidden),
            is_causal=is_causal,
            scale=self.scale,
            enable_gqa=query.shape[1] > len(self.keys),
        )
        return output.reshape(1, heads, count, -1)

    def _reads_runs(self, row: RowPages, first: int) -> bool:
        """Return whether a row attends to each of its runs, and copies nothing."""
        count = len(row.breaks) - bisect_right(row.breaks, first) + 1
        is_known = self.keys.device.type == "cpu" and self.keys.shape[2] == self.values.shape[2]
        return is_known and 1 < count <= (len(row.pages) - first) // _LEAST_RUN

    def _attend_to_runs(self, query: torch.Tensor, runs: Sequence[slice]) -> torch.Tensor:
        """Return the output of a row without a mask, of the shape of the query."""
        parts = [
            flash_attention_on_cpu(
                query, self.keys[None, :, run], self.values[None, :, run], scale=self.scale
            )
            for run in runs
        ]
        shares = torch.stack([logarithm for _, logarithm in parts]).softmax(0)[..., None]
        outputs = torch.stack([output for output, _ in parts])
        return (outputs * shares).sum(0).to(query.dtype)

    def _hidden(self, index: int, first: int, queries: slice) -> torch.Tensor | None:
        """Return the mask of one row, of shape (1, heads, queries, columns)."""
        if self.mask is None:
            return None
        own = self.mask[index : index + 1] if len(self.mask) > 1 else self.mask
        return own[:, :, queries if own.shape[2] > 1 else slice(None), first:]


def _causal_mask(queries: int, keys: torch.Tensor) -> torch.Tensor:
    """Return which keys the last tokens of a row see, of shape (queries, tokens)."""
    tokens = keys.shape[2]
    seen = torch.ones(queries, tokens, dtype=torch.bool, device=keys.device)
    return seen.tril(tokens - queries)


def _read_mask(mask: torch.Tensor) -> tuple[RowMask, ...]:
    """Return the masks of the rows, for a mask of shape (rows, heads, queries, columns)."""
    is_seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    columns = is_seen.flatten(1, -2).any(1)
    firsts: list[int] = columns.int().argmax(-1).tolist()
    if mask.dtype != torch.bool:
        return tuple(RowMask(first, is_open=False) for first in firsts)
    seen: list[int] = is_seen.flatten(1, -2).sum(-1).amin(1).tolist()
    width = mask.shape[-1]
    return tuple(
        RowMask(first, is_open=count == width - first)
        for first, count in zip(firsts, seen, strict=True)
    )
