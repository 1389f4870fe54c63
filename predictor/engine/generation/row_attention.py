"""Attention of each row of a forward pass to its own pages, without padding.

A row with consecutive pages attends to a view of the pool. A row with a few runs of them attends
to each run, and joins the results by the logarithms of the sums of their weights, as
FlashAttention (2205.14135) does for blocks. Other rows copy their pages, one row at a time. What a
mask hides before the first column that a row sees, be it padding or what has left a
window, is not read. One new token sees all of the rest, and so needs no mask. Nor does a chunk of a
prompt: what was there before it is seen by all of its tokens, and they see each other causally.

Heads of queries that share a head of keys are computed as further queries of that head, so that
keys and values are read once.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn.functional import scaled_dot_product_attention

from predictor.engine.generation.layout import Layout, RowPages
from predictor.private.torch import flash_attention_on_cpu

_MOST_PACKED = 32
"""New tokens of a row whose heads are computed as further queries. With more, copying the mask for
the heads that share keys costs as much as it saves."""

_LEAST_CAUSAL = 2048
"""Tokens of a row from which on a chunk of a prompt attends to the tokens before it apart from its
own. With fewer, joining the two costs as much as computing a mask."""

_LEAST_RUN = 64
"""Tokens that the runs of a row have on average, if it attends to each. To copy fewer takes less
time than another call."""


_Pair = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True)
class RowMask:
    """The mask of one row.

    Attributes:
        first: The first column that a new token of the row sees.
        is_open: Whether all new tokens see all columns from there on.
        is_causal: Whether each sees all from there to its own.
    """

    first: int
    is_open: bool
    is_causal: bool


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
            return (RowMask(0, is_open=not self.is_causal, is_causal=self.is_causal),) * len(rows)
        masks = self.layout.noted(self.mask, partial(_read_mask, new=[row.new for row in rows]))
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
            runs = [(self.keys[None, :, run], self.values[None, :, run]) for run in row.runs(first)]
            return self._joined(self._attend_each(query, runs)).reshape(1, heads, count, -1)
        keys, values = row.read(self.keys, first), row.read(self.values, first)
        if mask.is_causal and not is_packed and self._is_split(count, keys):
            return self._attend_causally(query, keys, values)
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
        return self._can_join() and 1 < count <= (len(row.pages) - first) // _LEAST_RUN

    def _is_split(self, count: int, keys: torch.Tensor) -> bool:
        """Return whether new tokens attend to those before them apart from their own."""
        return count == keys.shape[2] or (self._can_join() and keys.shape[2] >= _LEAST_CAUSAL)

    def _can_join(self) -> bool:
        return self.keys.device.type == "cpu" and self.keys.shape[2] == self.values.shape[2]

    def _attend_causally(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        """Return the output of the last tokens of a row, of shape (1, heads, queries, size).

        Args:
            query: Of shape (1, heads, queries, size).
            keys: The keys of the row, of shape (1, heads, tokens, size).
            values: The values likewise.
        """
        _, heads, count, size = query.shape
        past, group = keys.shape[2] - count, heads // len(self.keys)
        if not past:
            return scaled_dot_product_attention(
                *(query, keys, values), is_causal=True, scale=self.scale, enable_gqa=group > 1
            )
        own_keys, own_values = (
            one[:, :, past:].repeat_interleave(group, 1) for one in (keys, values)
        )
        packed = query.reshape(1, len(self.keys), -1, size)
        before = self._attend_each(packed, [(keys[:, :, :past], values[:, :, :past])])
        of_past = [
            (output.reshape(query.shape), weight.reshape(1, heads, count))
            for output, weight in before
        ]
        of_own = flash_attention_on_cpu(
            query, own_keys, own_values, is_causal=True, scale=self.scale
        )
        return self._joined([*of_past, of_own])

    def _attend_each(self, query: torch.Tensor, parts: Sequence[_Pair]) -> list[_Pair]:
        """Return the output of each part of the columns, and the logarithm of its weights' sum."""
        return [
            flash_attention_on_cpu(query, keys, values, scale=self.scale) for keys, values in parts
        ]

    def _joined(self, parts: Sequence[_Pair]) -> torch.Tensor:
        """Return the output for all columns, given that of each part of them."""
        shares = torch.stack([logarithm for _, logarithm in parts]).softmax(0)[..., None]
        outputs = torch.stack([output for output, _ in parts])
        return (outputs * shares).sum(0).to(outputs.dtype)

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


def _read_mask(mask: torch.Tensor, new: Sequence[int]) -> tuple[RowMask, ...]:
    """Return the masks of the rows.

    Args:
        mask: Of shape (rows, heads, queries, columns); one row is for all.
        new: The new tokens of each row, which are the last of the queries.
    """
    is_seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    columns = is_seen.flatten(1, -2).any(1)
    firsts: list[int] = columns.int().argmax(-1).tolist()
    if mask.dtype != torch.bool:
        return tuple(RowMask(first, is_open=False, is_causal=False) for first in firsts)
    seen: list[int] = is_seen.flatten(1, -2).sum(-1).amin(1).tolist()
    width = mask.shape[-1]
    equal = len(set(new)) == 1 or len(firsts) == len(new)
    return tuple(
        RowMask(
            first,
            is_open=count == width - first,
            is_causal=equal and _is_causal(is_seen[index], first, new[index]),
        )
        for index, (first, count) in enumerate(zip(firsts, seen, strict=True))
    )


def _is_causal(is_seen: torch.Tensor, first: int, new: int) -> bool:
    """Return whether new tokens see all columns from the first one to their own, and no others.

    Args:
        is_seen: Of shape (heads, queries, columns).
        first: The first column that is seen.
        new: How many new tokens there are.
    """
    own = is_seen[:, -new:]
    if own.shape[1] < new or new <= _MOST_PACKED:  # their mask is copied
        return False
    ends = own.shape[2] - new
    causal = torch.ones(new, new, dtype=torch.bool, device=own.device).tril()
    return bool(own[..., first:ends].all()) and bool((own[..., ends:] == causal).all())
